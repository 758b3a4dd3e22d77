"""The activities of a host: what a cancellation means for a run, and orders that the host can't execute."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import WorkflowExecutionStatus, WorkflowQueryFailedError, WorkflowQueryRejectedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from air_executor.errors import AirExecutorError, StateDirError
from air_executor.runs import limits
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import Identity, RunRecord, RunState, queued
from air_executor.temporal import asking, cards, host_runs
from air_executor.temporal.backend import TemporalBackend
from air_executor.temporal.execution import DETACHED, UNFIT
from air_executor.temporal.host_runs import HostRuns
from air_executor.temporal.link import Order
from air_executor.temporal.settings import Settings
from air_executor.temporal.slots import HostSlots
from tests.support.airflow_env import config
from tests.unit.documents import identity, record

SETTINGS = Settings("localhost:1", "default", "q", ("new", "old"))


class Backend:
    """Runs nothing."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.stopped: list[tuple[str, str]] = []
        self.error: Exception | None = None

    def knows(self, run_id: str) -> bool:
        return False

    def folder(self, run_id: str) -> str:
        return str(self.path)

    def order(self, request: RunRequest, record: RunRecord) -> None:
        if self.error is not None:
            raise self.error

    def stop(self, run_id: str, reason: str, *, unwanted: bool) -> None:
        self.stopped.append((run_id, reason))

    def is_stopping(self, run_id: str) -> bool:
        return False

    def follow(self, record: RunRecord) -> None:
        pass


class Workflow:
    """A workflow that a host asks."""

    def __init__(self) -> None:
        self.is_answering = asyncio.Event()
        self.asked = 0
        self.error: Exception | None = None
        self.status = WorkflowExecutionStatus.RUNNING
        self.state = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED

    async def query(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked += 1
        await self.is_answering.wait()
        if self.error is not None:
            raise self.error
        return {"reason": "marked failed", "unwanted": False}

    async def describe(self, **_: Any) -> Any:
        return SimpleNamespace(status=self.status)

    async def seen(self, *_: Any) -> Any:
        mine = [SimpleNamespace(activity_id="test", state=self.state)] if self.state else []
        return SimpleNamespace(status=self.status, raw_description=SimpleNamespace(pending_activities=mine))


class Host:
    """A host with one run, whose activity is made to believe this and that."""

    def __init__(self, folder: Path) -> None:
        self.backend, self.workflow = Backend(folder), Workflow()
        self.runs = HostRuns(cast(Any, self.backend), SETTINGS, "one", "q@one", str(folder), 1.0)
        self.runs.client = cast(Any, SimpleNamespace(get_workflow_handle=lambda *_, **__: self.workflow))
        self.environment = ActivityEnvironment()
        self.beats = 0
        self.environment.on_heartbeat = self._beaten
        self.record = record(RunState.RUNNING)
        self.runs._follow(self.record.id)
        card = {"id": self.record.id, "identity": {"kind": "task"}, "summary": "t"}
        self.task: asyncio.Task[Any] = asyncio.ensure_future(self.environment.run(self.runs.attach, card))

    def _beaten(self, *_: Any) -> None:
        self.beats += 1

    async def ends(self) -> None:
        self.runs._ends[self.record.id].set_result(self.record.advance(RunState.SUCCEEDED))

    async def beaten(self) -> None:
        before = self.beats
        for _ in range(500):
            await asyncio.sleep(0.01)
            if self.beats > before + 1 or self.task.done():
                return


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(host_runs, "BEAT_S", 0.05)
    yield


@pytest.mark.parametrize("why", ["paused", "reset"])
def test_a_pause_or_a_reset_in_temporal_is_nothing_to_a_run(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        host = Host(tmp_path)
        monkeypatch.setattr(asking, "workflow", lambda *_: host.workflow.seen())
        await host.beaten()
        host.environment.cancel(ActivityCancellationDetails(**{why: True}))
        await host.beaten()
        assert not host.task.done() and not host.backend.stopped
        await host.ends()
        assert (await host.task)["state"] == "succeeded"

    asyncio.run(check())


def test_a_run_is_stopped_after_its_activity_was_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        host = Host(tmp_path)
        monkeypatch.setattr(asking, "workflow", lambda *_: host.workflow.seen())
        await host.beaten()
        host.environment.cancel(ActivityCancellationDetails(paused=True))
        await host.beaten()
        host.workflow.is_answering.set()
        host.workflow.state = PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED
        await host.beaten()
        await host.beaten()
        assert host.backend.stopped == [(host.record.id, "marked failed")]
        assert not host.task.done()
        await host.ends()
        await host.task
        # And one whose whole workflow is over.
        host = Host(tmp_path)
        await host.beaten()
        host.environment.cancel(ActivityCancellationDetails(reset=True))
        await host.beaten()
        host.workflow.state, host.workflow.status = cast(Any, 0), WorkflowExecutionStatus.TERMINATED
        with pytest.raises(asyncio.CancelledError):
            await host.task
        assert [reason for _, reason in host.backend.stopped] == ["its workflow was ended in Temporal"]

    asyncio.run(check())


@pytest.mark.parametrize(
    "error",
    [
        WorkflowQueryFailedError("it can't be replayed"),
        WorkflowQueryRejectedError(WorkflowExecutionStatus.FAILED),
        RPCError("away", RPCStatusCode.UNAVAILABLE, b""),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_run_is_stopped_though_nobody_can_say_why(error: Exception, tmp_path: Path) -> None:
    async def check() -> None:
        host = Host(tmp_path)
        host.workflow.error = error
        host.workflow.is_answering.set()
        await host.beaten()
        host.environment.cancel(ActivityCancellationDetails(cancel_requested=True))
        await host.beaten()
        assert host.backend.stopped == [(host.record.id, "its workflow was ended in Temporal")]
        assert not host.task.done()
        await host.ends()
        await host.task

    asyncio.run(check())


def test_a_worker_that_ends_while_it_asks_why_detaches_its_run(tmp_path: Path) -> None:
    async def check() -> None:
        host = Host(tmp_path)
        await host.beaten()
        host.environment.cancel(ActivityCancellationDetails(cancel_requested=True))
        while not host.workflow.asked:
            await asyncio.sleep(0.01)
        host.environment.worker_shutdown()
        host.task.cancel()
        with pytest.raises(ApplicationError) as caught:
            await host.task
        assert caught.value.type == DETACHED and caught.value.details == ("q@one", "one")
        assert not host.backend.stopped

    asyncio.run(check())


def test_an_end_is_told_whatever_is_asked_for_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        host = Host(tmp_path)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(record: RunRecord, _: Any) -> dict[str, Any]:
            begun.set()
            await go_on.wait()
            return record.to_document()

        monkeypatch.setattr(host.runs, "_document", slow)
        await host.beaten()
        await host.ends()
        await begun.wait()
        host.environment.cancel(ActivityCancellationDetails(worker_shutdown=True))
        await asyncio.sleep(0)
        go_on.set()
        assert (await host.task)["state"] == "succeeded"

    asyncio.run(check())


def sealed(key: str, **changes: Any) -> dict[str, Any]:
    """Return the card of a run, as an executor with this key makes it."""
    request = RunRequest.from_message(
        {
            "id": str(uuid.uuid4()),
            "identity": {name: value for name, value in vars(identity()).items() if value is not None},
            "workload": {},
            "air": {},
            "server": None,
            "log_file": None,
        }
    )
    made = cards.card(
        request,
        queued(request.id, request.identity, limits={}, log_file=None),
        dataclasses.replace(SETTINGS, keys=(key,)),
    )
    return {**made, **changes}


def test_runs_of_a_former_version_are_asked_for_by_its_name(tmp_path: Path) -> None:
    async def check() -> None:
        backend, mark = Backend(tmp_path), tmp_path / "by-worker"
        runs = HostRuns(cast(Any, backend), SETTINGS, "one", "q@place", str(tmp_path), 1.0)
        runs.client = cast(Any, None)
        card = sealed("new")
        ordered = asyncio.ensure_future(ActivityEnvironment().run(runs.run, card))
        await asyncio.wait([ordered], timeout=0.2)
        ordered.cancel()
        await asyncio.wait([ordered])
        live = [record(RunState.RUNNING, card["id"])]
        assert mark.read_text() == "q@place" and mark.stat().st_mode & 0o777 == 0o600
        assert not runs.take_over(live)
        mark.write_text("")
        assert runs.take_over(live)
        mark.unlink()
        assert not runs.take_over(live), "it is not a worker's"

    asyncio.run(check())


def test_a_host_that_can_execute_nothing_leaves_orders_to_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.monotonic()
    monkeypatch.setattr("air_executor.temporal.slots.time", SimpleNamespace(monotonic=lambda: now_s))

    async def check() -> None:
        nonlocal now_s
        backend = Backend(tmp_path)
        runs = HostRuns(cast(Any, backend), SETTINGS, "one", "q@one", str(tmp_path), 1.0)
        slots = runs.slots = HostSlots(2, lambda: 0)
        queue = slots.supplier()

        async def ordered(card: dict[str, Any]) -> str | None:
            running = asyncio.ensure_future(ActivityEnvironment().run(runs.run, card))
            await asyncio.wait([running], timeout=0.2)
            if not running.done():
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError, ApplicationError):
                    await running
                return None
            error = running.exception()
            assert isinstance(error, ApplicationError)
            return error.type

        def is_asking() -> bool:
            return queue.try_reserve_slot(cast(Any, None)) is not None

        assert await ordered(sealed("new", identity={})) == UNFIT
        assert is_asking(), "only that order is wrong"
        for pause_s in (30, 60, 120, 240, 240):
            assert await ordered(sealed("unknown")) == UNFIT
            assert await ordered(sealed("unknown")) == UNFIT  # it was on its way
            now_s += pause_s - 1
            assert not is_asking()
            now_s += 2
            assert is_asking()
        backend.error = StateDirError("cannot write: no space left on device")
        assert await ordered(sealed("old")) == UNFIT
        assert not is_asking()
        errors = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert len(errors) == 1 and "temporal_key" in errors[0].getMessage()
        backend.error = None
        now_s += 241
        assert await ordered(sealed("old")) is None  # it runs
        assert await ordered(sealed("unknown")) == UNFIT
        now_s += 31
        assert is_asking(), "the pause is a short one again"

    asyncio.run(check())


def test_a_limit_that_depends_on_earlier_tries_does_so_on_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host of the first try has learned goes to the executor, and from there to the host of the second."""
    rule = {"memory": ["1GiB", "2GiB"]}
    backend = TemporalBackend(config(tmp_path / "executor"), SETTINGS, lambda *_: "alive")
    sent: list[Order] = []
    monkeypatch.setattr(backend._link, "open", lambda: None)
    monkeypatch.setattr(backend._link, "begin", lambda work: work.close())
    monkeypatch.setattr(backend._link, "send", sent.append)
    backend.open(None)
    first = identity()

    def order(who: Identity, air: Any = rule) -> dict[str, Any]:
        request = RunRequest(id=str(uuid.uuid4()), identity=who, workload={}, air=air)
        backend.order(request, queued(request.id, who, limits=limits.public(air), log_file=None))
        return sent[-1].card

    async def taken_by(host: HostRuns, card: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(ApplicationError):  # its backend orders nothing
            await ActivityEnvironment().run(host.run, card)
        end = record(RunState.KILLED, card["id"], Identity(**card["identity"]), peak_memory_bytes=1 << 30)
        return await host._document(end, card)

    def host(name: str) -> HostRuns:
        (folder := tmp_path / name).mkdir()
        idle = Backend(folder)
        idle.error = AirExecutorError("not here")
        return HostRuns(cast(Any, idle), SETTINGS, name, "q@one", str(folder), 1.0)

    one, two = host("one"), host("two")
    one._store.learned.note_memory_end(first, 1 << 30)  # as the runner does
    card = order(first)
    assert card["learned"] == {"ends": [], "peaks": []}
    end = asyncio.run(taken_by(one, card))
    backend._news._take([{"id": card["id"], "end": end}])
    assert [each.state for each in backend.take_ends()] == [RunState.KILLED]
    second = dataclasses.replace(first, try_number=2, workload_id=str(uuid.uuid4()))
    asyncio.run(taken_by(two, order(second)))
    assert two._store.learned.memory_ends(second) == 1
    assert two._store.learned.peaks(second) == [1 << 30]
    for air in ({"memory": "1GiB"}, {"memory": "nonsense"}, "nonsense", None):
        assert "learned" not in order(first, air)  # what makes no sense is refused on its host, with the reason
