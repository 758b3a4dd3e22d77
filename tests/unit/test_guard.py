"""Whatever goes wrong with one run, in any part, at any call: nothing raises out of the executor, others go on."""

from __future__ import annotations

import logging
import random
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.utils.state import TaskInstanceState
from sqlalchemy.exc import OperationalError

from air_executor import AirExecutor
from air_executor.airflow import task_instances
from air_executor.airflow.reconcile import Outcome, Unwanted
from air_executor.airflow.reports import Report
from air_executor.errors import IllegalTransitionError, RecordError, StateDirError
from air_executor.guard import Guard
from air_executor.runs.record import RunRecord, RunState
from tests.support.airflow_env import config
from tests.support.memory_backend import MemoryBackend, Place, Run
from tests.unit import documents
from tests.unit.test_compat import task_workload


class OddError(Exception):
    """An error of a kind that nobody expects."""


def errors() -> list[Exception]:
    return [
        OddError("odd"),
        OSError(5, "input/output error"),
        ValueError("value"),
        KeyError("key"),
        TypeError("type"),
        AttributeError("attribute"),
        RuntimeError("can't start new thread"),
        RecursionError("deep"),
        MemoryError(),
        StopIteration(),
        AssertionError(),
        UnicodeEncodeError("utf-8", "\udcf6", 0, 1, "surrogates not allowed"),
        RecordError("record"),
        StateDirError("state directory"),
        IllegalTransitionError("transition"),
        OperationalError("SELECT 1", {}, Exception("database")),
    ]


class Mood:
    """Decides, by chance, which calls fail."""

    def __init__(self, seed: int, share: float) -> None:
        self.random = random.Random(seed)
        self.share = share

    def wrap(self, part: Any) -> Any:
        return Moody(part, self)

    def swing(self) -> None:
        if self.random.random() < self.share:
            raise self.random.choice(errors())


class Moody:
    """Stands for a part, any call on which may raise before anything is done."""

    def __init__(self, part: Any, mood: Mood) -> None:
        self._part, self._mood = part, mood

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            self._mood.swing()
            return value(*args, **kwargs)

        return call


class Passes:
    """Stands for the reconciler: finds what the test wants it to find."""

    is_database_away = False

    def __init__(self) -> None:
        self.found = Outcome(set(), [], set())

    def is_due(self) -> bool:
        return True

    def begin(self, *_: Any, **__: Any) -> None:
        pass

    def catch_up(self, timeout_s: float) -> None:
        pass

    def outcome(self) -> Outcome:
        return self.found


class World:
    """An executor whose parts may all fail, and what the scheduler has heard from it."""

    def __init__(self, mood: Mood, folder: Path, parallelism: int = 100) -> None:
        self.mood = mood
        self.place = Place(folder=folder)
        self.backend, self.passes = MemoryBackend(self.place), Passes()
        assert self.backend.open("1.test")
        self.executor = executor = AirExecutor(parallelism=parallelism)
        self.work = executor._work
        self.work.options = config("/nowhere")
        self.work.backend = mood.wrap(self.backend)
        self.work.gpu_queue.open(self.work.backend)
        executor._passes.reconciler = mood.wrap(self.passes)
        self.events: dict[Any, list[Any]] = {}

    def live(self) -> list[RunRecord]:
        return [run.record for run in self.place.runs.values() if not run.record.state.is_end]

    def finish(self, *records: RunRecord) -> None:
        for record in records:
            self.place.finish(record.id, RunState.FAILED, reason="as the test said")

    def are_acknowledged(self, *records: RunRecord) -> list[bool]:
        return [self.backend.record(record.id).reported_at is not None for record in records]

    def queue(self, count: int) -> list[Any]:
        workloads = [task_workload(task_id=f"t{uuid.uuid4().hex}", executor_config=None) for _ in range(count)]
        for workload in workloads:
            self.executor.queue_workload(workload, session=None)  # type: ignore[arg-type]
        return workloads

    def loop(self) -> None:
        """Do what a loop of the scheduler does with its executor."""
        self.executor.heartbeat()
        assert isinstance(self.executor.slots_available, int)
        assert isinstance(self.executor.slots_occupied, int)
        for key, (state, info) in self.executor.get_event_buffer().items():
            self.events.setdefault(key, []).append((state, info))
        self.executor._task_event_logs.clear()

    def orphan(self, state: RunState) -> Any:
        """A task instance of a scheduler that is gone, with its run."""
        record = documents.record(state)
        self.place.runs[record.id] = Run(record, owner="0.gone")
        who = record.identity
        return SimpleNamespace(
            id=who.workload_id,
            key=task_workload(task_id=f"t{uuid.uuid4().hex}").ti.key,
            dag_id=who.dag_id,
            task_id=who.task_id,
            run_id=who.dag_run_id,
            map_index=-1,
            try_number=1,
            queue="default",
            external_executor_id=record.id,
            state="running",
        )


@pytest.fixture
def _secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "only-for-tests-but-long-enough" * 4)
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    # There is no database.
    monkeypatch.setattr(task_instances, "name_runs", lambda _: None)
    monkeypatch.setattr(task_instances, "is_beating", lambda *_: False)


@pytest.mark.usefixtures("_secret")
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(8))
def test_nothing_raises_out_of_the_executor_and_every_end_is_told(
    seed: int, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mood = Mood(seed, share)
    world = World(mood, tmp_path)
    executor, chance = world.executor, random.Random(seed)
    monkeypatch.setattr(AirExecutor, "_working", [executor])
    monkeypatch.setattr(task_instances, "name_runs", lambda _: mood.swing())
    monkeypatch.setattr(task_instances, "is_beating", lambda *_: mood.swing() or False)
    owed = set()
    for _ in range(12):
        owed |= {workload.ti.key for workload in world.queue(3)}
        world.loop()
        orphans = [world.orphan(chance.choice([RunState.RUNNING, RunState.FAILED])) for _ in range(2)]
        back = executor.try_adopt_task_instances(orphans)
        owed |= {ti.key for ti in orphans if ti not in back}
        executor._wait_for_news(0.001)
        executor.debug_dump()
        live = world.live()
        world.finish(*chance.sample(live, k=len(live) // 2))
        if world.work.runs:
            run_id, run = chance.choice(list(world.work.runs.items()))
            world.passes.found = Outcome({run_id}, [], set())
            owed.discard(run.key)  # another scheduler has it
        if world.work.runs:
            run_id, run = chance.choice(list(world.work.runs.items()))
            world.passes.found.unwanted.append(Unwanted(run_id, "marked"))
            owed.discard(run.key)  # Airflow has given it up
        if world.work.runs:
            run = chance.choice(list(world.work.runs.values()))
            executor.revoke_task(ti=SimpleNamespace(id=run.ti_id, key=run.key))  # type: ignore[arg-type]
            owed.discard(run.key)
    mood.share = 0.0
    for _ in range(3):
        world.finish(*world.live())
        world.loop()
    assert owed <= world.events.keys()
    assert not executor.running
    assert not world.work.runs
    mood.share = share
    executor.terminate()
    executor.end()


@pytest.mark.usefixtures("_secret")
@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_the_end_of_one_run_that_cannot_be_told_hurts_no_other(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(Mood(0, 0.0), tmp_path)
    bad, *good = world.queue(3)
    world.loop()
    report = world.executor._ends.report

    def report_most(key: Any, record: RunRecord) -> None:
        if key == bad.ti.key:
            raise error
        report(key, record)

    monkeypatch.setattr(world.executor._ends, "report", report_most)
    world.finish(*world.live())
    world.loop()
    for workload in (bad, *good):
        ((state, reason),) = world.events[workload.ti.key]
        assert state == TaskInstanceState.FAILED
        assert "as the test said" in reason
    assert world.executor.slots_available == 100


@pytest.mark.usefixtures("_secret")
def test_a_record_that_cannot_be_written_keeps_no_other_from_being_recorded_as_told(tmp_path: Path) -> None:
    world = World(Mood(0, 0.0), tmp_path)
    world.queue(3)
    world.loop()
    bad, *good = world.live()
    world.finish(bad, *good)
    acknowledge = world.backend.acknowledge

    def acknowledge_most(record: RunRecord) -> RunRecord:
        if record.id == bad.id:
            raise OddError
        return acknowledge(record)

    world.backend.acknowledge = acknowledge_most  # type: ignore[method-assign]
    world.loop()
    world.loop()
    world.passes.found = Outcome(set(), [], set(), heard={record.id for record in (bad, *good)})
    world.loop()
    world.loop()
    assert world.are_acknowledged(bad, *good) == [False, True, True]
    world.backend.acknowledge = acknowledge  # type: ignore[method-assign]
    world.loop()
    assert world.are_acknowledged(bad) == [True]


@pytest.mark.usefixtures("_secret")
@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_failure_that_the_scheduler_has_missed_is_told_again_and_recorded_when_it_has_heard(
    is_ordered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(Mood(0, 0.0), tmp_path)
    asked: list[list[Report]] = []
    monkeypatch.setattr(world.passes, "begin", lambda *arguments: asked.append(arguments[2]))
    if not is_ordered:
        monkeypatch.setattr(world.backend, "order", lambda *_: 1 / 0)
    (workload,) = world.queue(1)
    world.loop()
    world.finish(*world.live())
    world.loop()
    asked.clear()
    world.loop()
    ((report,),) = asked
    assert (report.ti_id, report.executor_id) == (str(workload.ti.id), report.record and report.record.id)
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    world.passes.found = Outcome(set(), [], set(), missed={report.id})
    world.loop()
    world.passes.found = Outcome(set(), [], set())
    world.loop()
    first, second = world.events[workload.ti.key]
    assert first == second
    assert first[0] == TaskInstanceState.FAILED
    assert asked[-1] == []  # not at once: the scheduler has to come to it
    now_s += 3600
    world.loop()
    assert asked[-1] == [report]
    world.passes.found = Outcome(set(), [], set(), heard={report.id})
    world.loop()
    world.loop()
    assert asked[-1] == []
    assert len(world.events[workload.ti.key]) == 2
    assert world.are_acknowledged(*(run.record for run in world.place.runs.values())) == [True] * is_ordered


@pytest.mark.usefixtures("_secret")
def test_a_workload_of_a_kind_that_nobody_knows_is_not_offered_for_ever(tmp_path: Path) -> None:
    world = World(Mood(0, 0.0), tmp_path)
    world.executor.queued_tasks["strange"] = strange = SimpleNamespace(ti=SimpleNamespace(priority_weight=1))  # type: ignore
    (known,) = world.queue(1)
    world.executor._process_workloads([strange, known])
    assert not world.executor.queued_tasks
    assert world.executor.running == {known.ti.key}


@pytest.mark.usefixtures("_secret")
def test_before_it_has_started_an_executor_answers_all_that_a_signal_handler_may_ask() -> None:
    executor = AirExecutor(parallelism=4)
    executor.debug_dump()
    assert (executor.slots_available, executor.slots_occupied) == (4, 0)
    executor.sync()
    executor.terminate()
    executor.end()


def test_a_series_of_failures_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(logging.getLogger("test.guard"))

    def attempt(error: BaseException | None) -> None:
        with guard("Moving a stone"):
            if error is not None:
                raise error

    for _ in range(5):
        attempt(ValueError("too heavy"))
    (entry,) = caplog.records
    assert "Moving a stone failed" in entry.getMessage()
    assert "in attempt" in caplog.text
    attempt(OSError("gone"))  # of another kind: that is news
    assert len(caplog.records) == 2
    attempt(None)
    attempt(OSError("gone"))  # it had worked again
    assert len(caplog.records) == 3
    with pytest.raises(SystemExit), guard("Moving a stone"):
        sys.exit(0)
