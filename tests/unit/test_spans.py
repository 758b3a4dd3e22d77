"""Each run has a span in Airflow's trace, from its order to the beginning of its task."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from air_executor.airflow import spans
from air_executor.airflow.compat import trace_carrier
from air_executor.airflow.work import Work
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.unit.documents import kept
from tests.unit.test_compat import task_workload
from tests.unit.test_executor import executor, silent_server  # noqa: F401

CARRIER = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    monkeypatch.setattr(spans, "_is_on", lambda: True)
    return exporter


def nanoseconds(moment: str | None) -> int:
    return int(datetime.fromisoformat(moment or "").timestamp() * 1_000_000) * 1000


def test_it_is_below_airflows_span_and_lasts_from_the_order_to_the_start(
    store: RunStore, told: InMemorySpanExporter
) -> None:
    record = kept(store, RunState.SUCCEEDED)
    spans.start(record, CARRIER)
    [span] = told.get_finished_spans()
    assert span.parent is not None and span.context is not None
    assert f"{span.context.trace_id:032x}" == CARRIER["traceparent"].split("-")[1]
    assert f"{span.parent.span_id:016x}" == CARRIER["traceparent"].split("-")[2]
    assert (span.start_time, span.end_time) == (nanoseconds(record.queued_at), nanoseconds(record.running_at))
    assert span.name == f"air_executor.start.{record.identity.task_id}{record.identity.index}"
    assert span.attributes is not None and span.attributes["airflow.dag_id"] == record.identity.dag_id


@pytest.mark.parametrize("carrier", [None, {}, {"traceparent": "nonsense"}])
def test_without_a_place_in_a_trace_nothing_fails(
    store: RunStore, told: InMemorySpanExporter, carrier: dict[str, Any] | None
) -> None:
    spans.start(kept(store, RunState.SUCCEEDED), carrier)
    spans.start(kept(store, RunState.QUEUED), CARRIER)  # one that never began
    assert all(span.parent is None for span in told.get_finished_spans())


def test_it_is_off_where_airflow_does_not_trace(store: RunStore, told: InMemorySpanExporter, monkeypatch: Any) -> None:
    monkeypatch.setattr(spans, "_is_on", lambda: False)
    spans.start(kept(store, RunState.SUCCEEDED), CARRIER)
    assert told.get_finished_spans() == ()


def test_a_workloads_place_in_the_trace_is_kept_until_its_end(store: RunStore, executor: Any) -> None:  # noqa: F811
    workload = task_workload()
    assert trace_carrier(workload) is None
    workload.ti.context_carrier = CARRIER
    work: Work = executor._work
    record = kept(store, RunState.RUNNING)
    work.add(record, workload.ti.key, trace_carrier(workload))
    assert work.runs[record.id].carrier == CARRIER
    work.runs.clear()  # it has no runner
