"""A span for each run of a task, from its order to the beginning of its task, in Airflow's trace of the DAG run.

Airflow's own spans begin in the task process (``worker.TASK``), and when the task instance was queued
(``task_run.TASK``). This one, below the latter, tells how much of the time between is the executor's. Airflow sets
OpenTelemetry up for the whole process from 3.2 on; in 3.1 there is no span.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from airflow.configuration import conf

from air_executor.runs.record import RunRecord

#: How the names of the attributes begin that Airflow's own spans have, too.
_AIRFLOWS = "airflow"


@cache
def _is_on() -> bool:
    return bool(conf.getboolean("traces", "otel_on", fallback=False))


def start(record: RunRecord, carrier: Mapping[str, Any] | None) -> None:
    """Report the span of a run that has begun its task.

    :param carrier: says where in which trace it belongs, as Airflow gives it with a task instance.
    """
    if not _is_on() or not carrier or record.queued_at is None or record.running_at is None:
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    who = record.identity
    span = trace.get_tracer("air_executor").start_span(
        f"air_executor.start.{who.task_id}{who.index}",
        context=TraceContextTextMapPropagator().extract(dict(carrier)),
        start_time=_nanoseconds(record.queued_at),
        attributes={
            f"{_AIRFLOWS}.dag_id": who.dag_id or "",
            f"{_AIRFLOWS}.task_id": who.task_id or "",
            f"{_AIRFLOWS}.dag_run.run_id": who.dag_run_id or "",
            f"{_AIRFLOWS}.task_instance.try_number": who.try_number or 0,
            f"{_AIRFLOWS}.task_instance.map_index": -1 if who.map_index is None else who.map_index,
            "air_executor.run_id": record.id,
            "host.name": record.host or "",
        },
    )
    span.end(end_time=max(_nanoseconds(record.queued_at), _nanoseconds(record.running_at)))


def _nanoseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1_000_000) * 1000
