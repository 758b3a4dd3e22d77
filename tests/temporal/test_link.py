"""An executor's connection to a real Temporal server, and what it asks there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio import activity
from temporalio.api.worker.v1 import WorkerHeartbeat
from temporalio.client import Client
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from air_executor.runs.backend import RunRequest
from air_executor.runs.record import UNWANTED, RunState, queued
from air_executor.temporal import asking, cards, dag_runs, overview
from air_executor.temporal.backend import TemporalBackend
from air_executor.temporal.link import Link, Order
from air_executor.temporal.settings import WORKER, Settings
from air_executor.temporal.watch import LiveRun
from air_executor.temporal.workflow import NAME
from air_executor.temporal.workflow_worker import workflow_worker
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.temporal.conftest import Temporal
from tests.unit.documents import identity


@pytest.fixture
def settings(temporal: Temporal) -> Settings:
    return Settings(temporal.address, "default", f"link-{uuid.uuid4()}", ("a key",))


@pytest.fixture
def link(settings: Settings) -> Iterator[Link]:
    ends: list[Any] = []
    made = Link(settings, ends.extend, lambda *_: "alive")
    made.ends = ends  # type: ignore[attr-defined]
    made.open()
    yield made
    made.close()


def order(workflow_id: str, sent: list[str]) -> Order:
    header = {"dag": "d", "dag_run": "r", "most_events": 100}
    card = {
        "id": str(uuid.uuid4()),
        "identity": {},
        "summary": "t",
        "queue": "nobody's",
        "until": time.time() + 600,
        "priority": 3,
        "fairness": "d",
    }
    return Order(workflow_id, header, card, 100, sent.append)


def test_a_database_that_has_lost_the_search_attributes_takes_orders(
    temporal: Temporal, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    link._has_attributes = True  # as it was when this executor began
    sent: list[str] = []
    with caplog.at_level(logging.WARNING):
        link.send(order(f"{link.queue}-lost", sent))
        wait_for(lambda: sent or link.ends, "the order to be sent")  # type: ignore[attr-defined]
    assert sent and not link.ends  # type: ignore[attr-defined]
    assert [record.levelname for record in caplog.records if "temporal setup" in record.message] == ["WARNING"]
    assert temporal.has(f"{link.queue}-lost")
    temporal.end_workflow(f"{link.queue}-lost", "terminate")


def test_an_order_that_is_refused_for_another_reason_fails(
    temporal: Temporal, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    refused = order("x" * 2000, [])
    link.send(refused)
    ends = cast(Any, link).ends
    wait_for(lambda: ends, "the end")
    assert "refuses the order" in ends[0]["end"]["reason"]


def test_a_queue_whose_hosts_are_all_full_is_served(
    temporal: Temporal, settings: Settings, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def described(*_: Any) -> Any:  # whoever is full does not poll, and is forgotten after five minutes
        answer = await real(*_)
        del answer.pollers[:]
        return answer

    real = asking.queue
    monkeypatch.setattr(asking, "queue", described)

    @activity.defn(name="run")
    async def run() -> None: ...

    async def check() -> None:
        runtime = Runtime(telemetry=TelemetryConfig(), worker_heartbeat_interval=timedelta(seconds=1))
        client = await Client.connect(temporal.address, runtime=runtime, identity=f"{WORKER}one")
        full = settings.queue("full")
        async with Worker(client, task_queue=full, activities=[run]):
            for _ in range(100):
                if await link_served([full, settings.queue("other")]) == {full}:
                    break
                await asyncio.sleep(0.2)
            else:
                pytest.fail("nobody serves the queue")
            seen = await overview.look(client, settings, ["full", "other"])
        assert [(queue.name, queue.workers) for queue in seen.queues] == [("full", 1), ("other", 0)]
        assert [host.name for host in seen.hosts] == ["one"]

    async def link_served(queues: list[str]) -> set[str]:
        return await asyncio.to_thread(lambda: link.call(link.served(queues), 10))

    asyncio.run(check())


def test_a_server_without_heartbeats_knows_hosts_by_their_polls(
    temporal: Temporal, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    @activity.defn(name="run")
    async def run() -> None: ...

    async def nothing(*_: Any) -> list[Any]:
        return []

    async def strangers(*_: Any) -> list[Any]:
        return [WorkerHeartbeat(worker_identity="somebody", task_queue="theirs")]

    async def refused(*_: Any) -> list[Any]:
        raise RPCError("unknown method", RPCStatusCode.UNIMPLEMENTED, b"")

    async def check() -> None:
        client = await Client.connect(temporal.address, identity=f"{WORKER}one")
        host = workflow_worker(client, settings.prefix)
        async with host, Worker(client, task_queue=settings.queue("a"), activities=[run]):
            for answer in (nothing, strangers, refused):
                monkeypatch.setattr(overview, "_workers", answer)
                for _ in range(100):
                    seen = await overview.look(client, settings, ["a", "b"])
                    if seen.hosts and seen.queues[0].workers:
                        break
                    await asyncio.sleep(0.2)
                assert [host.name for host in seen.hosts] == ["one"]
                assert [queue.workers for queue in seen.queues] == [1, 0]

    asyncio.run(check())


def test_workflows_of_former_executors_are_looked_for_until_they_were_found(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("air_executor.temporal.news.WATCH_S", 0.1)
    asked: list[int] = []

    async def open_workflows() -> AsyncIterator[tuple[str, dict[str, Any]]]:
        asked.append(1)
        if len(asked) < 3:
            raise RPCError("too many requests", RPCStatusCode.RESOURCE_EXHAUSTED, b"")
        yield "airflow-d-r", {"dag": "d", "dag_run": "r"}

    backend = TemporalBackend(config(tmp_path / "state"), settings, lambda *_: "alive")
    monkeypatch.setattr(backend._link, "open_workflows", open_workflows)
    backend.open(None)
    wait_for(backend.open_dag_runs, "the workflow")
    assert backend.open_dag_runs() == [("d", "r")]
    time.sleep(0.5)
    assert len(asked) == 3
    backend.close()


def test_a_run_whose_workflow_was_terminated_ends(temporal: Temporal, settings: Settings, tmp_path: Path) -> None:
    """No host has it yet; Temporal still shows it with the workflow that has ended."""
    backend = TemporalBackend(config(tmp_path / "state"), settings, lambda *_: "alive")
    backend.open(None)
    try:
        who = identity(dag_run_id=str(uuid.uuid4()))
        request = RunRequest(id=str(uuid.uuid4()), identity=who, workload={})
        backend.order(request, queued(request.id, who, limits={}, log_file=None))
        workflow_id = cards.workflow_id(who)
        run = backend._followed.live()[request.id]
        wait_for(lambda: _offers(backend, run), "the run to be offered")
        temporal.end_workflow(workflow_id, "terminate")
        wait_for(lambda: backend._link.call(backend._news.watch.look(), 60) or backend.ends(), "the end", every_s=0.5)
        (end,) = backend.take_ends()
        assert (end.id, end.state) == (request.id, RunState.KILLED) and "terminated" in str(end.reason)
    finally:
        backend.close()


def test_a_scheduler_that_stood_still_leaves_to_another_what_that_has_taken_over(
    temporal: Temporal, settings: Settings, tmp_path: Path
) -> None:
    former, other = (
        TemporalBackend(config(tmp_path / name), settings, lambda *_: "alive") for name in ("former", "other")
    )
    with contextlib.ExitStack() as at_end:
        for backend in (former, other):
            backend.open(None)
            at_end.callback(backend.close)
        who, run_ids = identity(dag_run_id=str(uuid.uuid4())), [str(uuid.uuid4()) for _ in range(2)]
        for run_id in run_ids:
            request = RunRequest(id=run_id, identity=who, workload={})
            former.order(request, queued(run_id, who, limits={}, log_file=None))
        taken, kept = run_ids
        runs = former._followed.live()
        wait_for(lambda: all(_offers(former, run) for run in runs.values()), "the runs to be offered")
        record = other.adopt(taken, lambda: who)
        assert record is not None
        other.follow(record)

        def looks() -> bool:
            for backend in (former, other):
                backend._link.call(backend._news.watch.look(), 60)
            return not former.is_mine(taken)

        wait_for(looks, "the former to notice", every_s=0.5)
        assert former.is_mine(kept) and other.is_mine(taken)
        assert former._followed.live().keys() == {kept} and other._followed.live().keys() == {taken}
        (end,) = former.take_ends()
        assert end.id == taken and end.outcome == UNWANTED and not former.record(taken).state.is_end
        former.follow(former.record(taken))  # as when the other one dies
        assert former.is_mine(taken)
        wait_for(lambda: looks() or not other.is_mine(taken), "the other to notice", every_s=0.5)
        assert former._followed.live().keys() == {kept, taken}
        temporal.end_workflow(cards.workflow_id(who), "terminate")


def _offers(backend: TemporalBackend, run: LiveRun) -> bool:
    if run.execution is None:
        return False
    seen = backend._link.call(backend._link.look(run.workflow_id, run.execution), 10)
    return seen is not None and bool(seen.runs)


def test_a_run_is_found_beyond_a_first_workflow_that_was_executed_anew(temporal: Temporal, link: Link) -> None:
    async def check() -> None:
        client = await Client.connect(temporal.address)
        who = identity(dag_run_id=str(uuid.uuid4()))
        first, later = cards.workflow_id(who), cards.successor_id(who, cards.workflow_id(who))
        assert later is not None
        for workflow_id in (first, later):
            one = order(workflow_id, [])
            await client.start_workflow(
                NAME,
                one.header,
                id=workflow_id,
                task_queue=link._settings.prefix,
                start_signal="order",
                start_signal_args=[link.queue, [one.card]],
            )
        assert await dag_runs.workflow_of(client, one.card["id"], who) == later
        unborn = str(uuid.uuid4())  # ended before anybody executed it
        await (await client.start_workflow(NAME, {}, id=unborn, task_queue="nobody's")).terminate()
        assert await asking.known(client, unborn) is None
        assert await dag_runs.workflow_of(client, str(uuid.uuid4()), who) is None

    wait_for(link.connected.is_set, "the link")
    asyncio.run(check())
