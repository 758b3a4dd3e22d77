"""AirExecutor as the scheduler calls it: a real launcher, real runners, and an API server that never answers."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

from air_executor import AirExecutor
from air_executor.airflow import compat, idle, stops, task_instances
from air_executor.airflow.live_runs import Run
from air_executor.airflow.reconcile import Outcome, Reconciler
from air_executor.errors import ConfigError
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs import record as runs
from air_executor.runs.record import UNWANTED, RunState
from air_executor.runs.store import RunStore
from tests.support.waiting import wait_for
from tests.unit.documents import identity
from tests.unit.instances import Database
from tests.unit.processes import family, result_of
from tests.unit.test_compat import task_workload


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An API server that takes every connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/execution/"


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: str) -> Iterator[AirExecutor]:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", silent_server)
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "only-for-tests-but-long-enough" * 4)
    # There is no scheduler that would queue these tasks in a database.
    monkeypatch.setattr(Reconciler, "is_due", lambda _: False)
    monkeypatch.setattr(task_instances, "name_runs", lambda _: None)
    monkeypatch.setattr("air_executor.airflow.executor.fail_jobs_of_dead_executors", lambda *_: None)
    executor = AirExecutor(parallelism=4)
    with family():
        executor.start()
        yield executor
        executor.terminate()
        wait_until(executor, lambda: not executor._work.runs, "all runs to end")
        executor.end()


def wait_until(executor: AirExecutor, condition: Any, what: str) -> None:
    def synced() -> Any:
        executor.sync()
        return condition()

    wait_for(synced, what)


def queue(executor: AirExecutor, **changes: Any) -> Any:
    workload = task_workload(executor_config=None, **changes)
    executor.queue_workload(workload, session=None)  # type: ignore[arg-type]
    return workload


def instance(workload: Any) -> Any:
    """What the scheduler would pass for the task instance of a workload."""
    return SimpleNamespace(id=workload.ti.id, key=workload.ti.key)


def store(executor: AirExecutor) -> RunStore:
    return RunStore(executor._work.options.state_dir)


def records(executor: AirExecutor) -> list[Any]:
    return list(store(executor).records())


def test_queued_tasks_become_runs_up_to_the_parallelism(executor: AirExecutor) -> None:
    def waiting() -> list[str]:
        return [workload.ti.task_id for _, workload in executor.order_queued_tasks_by_priority()]

    workloads = [queue(executor, task_id=f"t{number}", priority_weight=number) for number in range(6)]
    order = waiting()
    if compat.AIRFLOW_VERSION[:2] != (3, 2):  # where Airflow has the lightest come first
        assert order == ["t5", "t4", "t3", "t2", "t1", "t0"]
    executor.heartbeat()
    assert len(executor.running) == 4
    assert executor.slots_available == 4 - 4 - 2
    assert {record.identity.task_id for record in records(executor)} == set(order[:4])
    assert waiting() == order[4:]
    assert all(executor.has_task(instance(workload)) for workload in workloads)


def test_the_ids_of_runs_are_put_in_the_database_without_an_event_that_may_end_the_scheduler(
    executor: AirExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: dict[str, str] = {}
    monkeypatch.setattr(task_instances, "name_runs", named.update)
    workloads = [queue(executor), queue(executor, task_id="other")]
    executor.heartbeat()
    assert named == {record.identity.workload_id: record.id for record in records(executor)}
    assert named.keys() == {str(workload.ti.id) for workload in workloads}
    assert executor.event_buffer == {}


def test_revoking_a_task_stops_its_runner_and_frees_its_slot_without_an_event(executor: AirExecutor) -> None:
    workload = queue(executor)
    executor.heartbeat()
    (record,) = records(executor)
    wait_until(executor, lambda: store(executor).read(record.id).state is RunState.STARTING, "the runner")
    executor.get_event_buffer()
    executor.revoke_task(ti=instance(workload))
    assert not executor.has_task(instance(workload))
    assert executor.slots_available == 4
    wait_until(executor, lambda: store(executor).read(record.id).reported_at, "the end of the runner")
    ended = store(executor).read(record.id)
    assert ended.state is RunState.KILLED
    assert "revoked by the scheduler" in (ended.reason or "")
    assert executor.get_event_buffer() == {}
    assert not psutil.pid_exists(ended.pid)


def test_what_does_not_heed_a_stop_is_killed_though_the_database_never_answers(
    executor: AirExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = queue(executor)
    executor.heartbeat()
    (record,) = records(executor)
    wait_until(executor, lambda: store(executor).read(record.id).pid, "the runner")
    runner = psutil.Process(store(executor).read(record.id).pid)
    runner.suspend()
    # No pass over the database ever comes to its end here.
    monkeypatch.setattr(stops, "STUBBORN_S", 0.2)
    monkeypatch.setattr(executor._work, "options", dataclasses.replace(executor._work.options, stop_grace_seconds=0.1))
    executor.revoke_task(ti=instance(workload))
    wait_until(executor, lambda: store(executor).read(record.id).state is RunState.KILLED, "its end")
    assert not runner.is_running()


def test_revoking_a_task_that_is_still_queued_or_unknown_is_quiet(executor: AirExecutor) -> None:
    workload = queue(executor)
    executor.revoke_task(ti=instance(workload))
    executor.revoke_task(ti=instance(task_workload()))
    executor.heartbeat()
    assert records(executor) == []


def test_a_runner_that_is_killed_fails_its_task_with_the_reason(executor: AirExecutor) -> None:
    workload = queue(executor)
    executor.heartbeat()
    (record,) = records(executor)
    wait_until(executor, lambda: store(executor).read(record.id).state is RunState.STARTING, "the runner")
    os.kill(store(executor).read(record.id).pid or 0, signal.SIGKILL)
    wait_until(executor, lambda: executor.running == set(), "the end")
    state, reason = executor.event_buffer[workload.ti.key]
    assert state == TaskInstanceState.FAILED
    assert "SIGKILL" in reason
    assert "SIGKILL" in executor._task_event_logs[-1].extra


def test_a_full_disk_fails_the_workload_and_nothing_else(executor: AirExecutor) -> None:
    def order_with_no_room() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        workload = queue(executor)
        executor.heartbeat()
        state, reason = executor.event_buffer[workload.ti.key]
        return [str(state), reason, len(executor.running), len(list(store(executor).ids()))]

    state, reason, running, folders = result_of(order_with_no_room)
    assert state.endswith("failed")
    assert "cannot write" in reason
    assert (running, folders) == (0, 0)
    queue(executor)
    executor.heartbeat()
    assert len(executor.running) == 1


def test_a_state_directory_that_has_gone_fails_the_workload_clearly(executor: AirExecutor) -> None:
    shutil.rmtree(store(executor).root)
    workload = queue(executor)
    executor.heartbeat()
    state, reason = executor.event_buffer[workload.ti.key]
    assert state == TaskInstanceState.FAILED
    assert "cannot make" in reason
    assert executor.running == set()


def test_a_resumed_task_waits_for_its_former_runner(executor: AirExecutor) -> None:
    first = queue(executor)
    executor.heartbeat()
    (record,) = records(executor)
    wait_until(executor, lambda: store(executor).read(record.id).state is RunState.STARTING, "the first runner")
    queue(executor, id=str(first.ti.id))
    executor.heartbeat()
    (second,) = [other for other in records(executor) if other.id != record.id]
    executor._work.backend.stop(record.id, "as if it had deferred")
    wait_until(executor, lambda: store(executor).read(second.id).state is RunState.STARTING, "the second runner")
    # One of the two has ended; the task instance is still this executor's.
    assert executor.has_task(instance(first))
    one, two = store(executor).read(record.id), store(executor).read(second.id)
    assert one.ended_at is not None
    assert two.starting_at is not None
    assert two.starting_at >= one.ended_at


def test_the_debug_dump_names_runs(executor: AirExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = queue(executor)
    executor.heartbeat()
    (record,) = records(executor)
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(AirExecutor, "log", SimpleNamespace(info=lambda text, *args: said.append(text % args)))
        executor.debug_dump()
    assert f"air_executor.state_dir {store(executor).root}" in said
    assert f"air_executor.runs (1)\n\t{record.id} {workload.ti.key}" in said
    assert "air_executor.waiting_for_gpus (0)" in said


def test_an_option_that_cannot_be_used_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__KEEP_RUNS", "-1")
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "only-for-tests-but-long-enough" * 4)
    with pytest.raises(ConfigError, match="keep_runs"):
        AirExecutor(parallelism=4).start()


def test_a_scheduler_that_is_stopped_while_it_starts_leaves_nothing(
    executor: AirExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow ends its executors when SIGTERM comes, even while it starts them."""
    before = os.listdir(store(executor).executors)
    monkeypatch.setattr(LocalBackend, "warm_up", lambda _: sys.exit(0))
    stopped = AirExecutor(parallelism=4)
    with pytest.raises(SystemExit):
        stopped.start()
    assert len(os.listdir(store(executor).executors)) == 2
    stopped.end()
    assert os.listdir(store(executor).executors) == before


def test_runs_of_a_scheduler_that_is_gone_are_adopted(executor: AirExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = queue(executor)
    executor.heartbeat()
    (record,) = records(executor)
    wait_until(executor, lambda: store(executor).read(record.id).state is RunState.STARTING, "the runner")
    heir = AirExecutor(parallelism=4)
    heir.start()
    try:
        lost = SimpleNamespace(id=uuid.uuid4(), key="lost", external_executor_id=None, state="running")
        mine = SimpleNamespace(id=workload.ti.id, key=workload.ti.key, external_executor_id=record.id, state="running")
        said: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(AirExecutor, "log", SimpleNamespace(info=lambda text, *args: said.append(text % args)))
            assert heir.try_adopt_task_instances([lost, mine]) == [lost]  # type: ignore[list-item]
        assert [line for line in said if line.startswith("Adopting ")] == [
            "Adopting 2 tasks of dead schedulers: 1 adopted, 0 queued again, 0 running elsewhere, 1 returned to Airflow"
        ]
        assert heir.running == {workload.ti.key}
        os.kill(store(executor).read(record.id).pid or 0, signal.SIGKILL)
        wait_until(heir, lambda: heir.running == set(), "the end to be told to the heir")
        assert heir.event_buffer[workload.ti.key][0] == TaskInstanceState.FAILED
        # Until the database agrees, the scheduler may have to hear it again.
        heir.sync()
        assert heir.try_adopt_task_instances([mine]) == []  # type: ignore[list-item]
        assert store(executor).read(record.id).reported_at is None
        heir._passes.act_on(Outcome(set(), [], set(), heard={record.id}))
        heir.sync()
        # Told once: nobody can adopt it again.
        assert store(executor).read(record.id).reported_at
        assert heir.try_adopt_task_instances([mine]) == [mine]  # type: ignore[list-item]
    finally:
        heir.end()


def test_what_a_scheduler_has_in_hand_stays_as_it_is_when_it_takes_itself_for_gone(executor: AirExecutor) -> None:
    executor.parallelism = 1
    ordered, waiting = queue(executor), queue(executor, task_id="later")
    executor.heartbeat()
    (before,) = records(executor)
    orphans = [
        SimpleNamespace(id=ordered.ti.id, key=ordered.ti.key, external_executor_id=before.id, state="queued"),
        SimpleNamespace(id=waiting.ti.id, key=waiting.ti.key, external_executor_id=None, state="queued"),
    ]
    assert executor.try_adopt_task_instances(orphans) == []  # type: ignore[arg-type]
    assert executor.running == {ordered.ti.key}
    assert executor.queued_tasks == {waiting.ti.key: waiting}
    (record,) = records(executor)
    assert not record.state.is_end


def test_what_was_ordered_again_by_a_scheduler_that_died_at_once_is_ordered_again(
    executor: AirExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = task_workload(executor_config=None)
    monkeypatch.setattr(compat, "workload_of", lambda *_: workload)
    never_began = runs.queued(str(uuid.uuid4()), compat.identity_of(workload, team=None), limits={}, log_file=None)
    store(executor).create(never_began.advance(RunState.LOST, outcome=UNWANTED, reason="its scheduler died"))
    # The database does not know the id of the next run: that scheduler had no time to note it.
    orphan = SimpleNamespace(id=workload.ti.id, key=workload.ti.key, external_executor_id=never_began.id)
    orphan.state = "queued"
    assert executor.try_adopt_task_instances([orphan]) == []  # type: ignore[list-item]
    assert executor.queued_tasks == {workload.ti.key: workload}
    orphan.state = "running"
    executor.queued_tasks.clear()
    assert executor.try_adopt_task_instances([orphan]) == [orphan]  # type: ignore[list-item]


def test_a_scheduler_with_nothing_to_do_is_woken_by_the_end_of_a_run(
    executor: AirExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler: Any = ModuleType("airflow.jobs.scheduler_job_runner")
    scheduler.time = time
    monkeypatch.setitem(sys.modules, scheduler.__name__, scheduler)
    compat.use_idle_wait(executor._wait_for_news)
    queue(executor)
    executor.trigger_tasks(1)
    wait_until(executor, lambda: records(executor)[0].pid, "the runner")
    os.kill(records(executor)[0].pid, signal.SIGKILL)
    scheduler.time.sleep(500)  # returns when the run has ended; this test has no such patience
    executor.sync()
    assert not executor._work.runs
    before_s = scheduler.time.monotonic()
    scheduler.time.sleep(0.05)  # with nothing to wait for it is a sleep like any other
    assert scheduler.time.monotonic() >= before_s + 0.05


class Runs:
    """Stands for the backend of an executor whose runs end when the test says so."""

    def __init__(self, executor: AirExecutor, count: int) -> None:
        self._ended: list[str] = []
        self._endings: list[str] = []
        for number in range(count):
            executor._work.runs[f"run-{number}"] = Run(key=f"key-{number}", ti_id=None)
            executor.running.add(f"key-{number}")  # type: ignore[arg-type]

    def end(self, *run_ids: str) -> None:
        """Let runs end, one with each look."""
        self._endings += run_ids

    def has_news(self) -> bool:
        if self._endings:
            self._ended.append(self._endings.pop(0))
        return bool(self._ended)

    def ends(self) -> list[str]:
        return self._ended

    def fileno(self) -> int | None:
        return self._always_readable

    _always_readable = os.open(os.devnull, os.O_RDONLY)


@pytest.fixture
def many() -> Iterator[tuple[AirExecutor, Runs]]:
    """An executor with 100 live runs, of the 120 that it may have."""
    executor = AirExecutor(parallelism=120)
    executor._work.backend = runs_ = Runs(executor, 100)  # type: ignore[assignment]
    AirExecutor._working.append(executor)
    idle.woken_s = time.monotonic() - 1000  # the scheduler was busy for long
    yield executor, runs_
    AirExecutor._working.remove(executor)
    idle.woken_s = math.inf


def test_the_slot_of_a_run_that_has_ended_is_free_before_the_scheduler_knows(many: tuple[AirExecutor, Runs]) -> None:
    executor, backend = many
    assert (executor.slots_available, executor.slots_occupied) == (20, 100)
    backend.end("run-1", "run-2", "somebody-elses")
    while backend._endings:
        backend.has_news()
    assert (executor.slots_available, executor.slots_occupied) == (22, 98)
    executor.running.discard("key-2")  # type: ignore[arg-type]
    assert (executor.slots_available, executor.slots_occupied) == (22, 98)


def test_ends_gather_while_there_is_plenty_of_work(
    many: tuple[AirExecutor, Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, backend = many
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    backend.end(*executor._work.runs)
    executor._wait_for_news(500)
    assert len(backend.ends()) == 100 - 5 * idle.PLENTY_PER_CPU + 1


def test_a_scheduler_that_has_not_worked_long_is_woken_by_the_first_end(many: tuple[AirExecutor, Runs]) -> None:
    executor, backend = many
    idle.woken_s = math.inf
    backend.end(*executor._work.runs)
    executor._wait_for_news(500)
    assert len(backend.ends()) == 1


@pytest.mark.parametrize(
    ("outcome", "delivered", "event"),
    [
        ("success", True, TaskInstanceState.SUCCESS),
        ("up_for_retry", True, TaskInstanceState.SUCCESS),
        ("deferred", True, None),
        ("up_for_reschedule", True, None),
        ("up_for_reschedule", False, TaskInstanceState.FAILED),
    ],
)
def test_the_scheduler_hears_of_no_end_after_which_a_task_goes_on(
    many: tuple[AirExecutor, Runs], outcome: str, delivered: bool, event: TaskInstanceState | None
) -> None:
    executor, _ = many
    began = runs.queued(str(uuid.uuid4()), identity(), limits={}, log_file=None).advance(RunState.STARTING)
    ended = began.advance(RunState.RUNNING).advance(RunState.SUCCEEDED, outcome=outcome, delivered=delivered)
    del executor._work.runs["run-0"]
    executor._ends.report("key-0", ended)
    assert "key-0" not in executor.running
    assert executor.event_buffer == ({} if event is None else {"key-0": (event, None)})


@pytest.mark.parametrize(
    ("state", "has_begun", "is_told"),
    [("restarting", True, True), ("queued", True, False), ("restarting", False, False)],
)
def test_the_scheduler_hears_of_the_end_of_what_was_cleared_while_it_ran(
    many: tuple[AirExecutor, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    has_begun: bool,
    is_told: bool,
) -> None:
    database = Database(f"sqlite:///{tmp_path}/airflow.db")
    monkeypatch.setattr(task_instances, "create_session", database.session)
    executor, _ = many
    key = TaskInstanceKey("d", "t", "r", 1, -1)
    database.add(state, task_id="t")
    began = runs.queued(str(uuid.uuid4()), identity(), limits={}, log_file=None).advance(RunState.STARTING)
    began = began.advance(RunState.RUNNING) if has_begun else began
    executor._ends.report(key, began.advance(RunState.KILLED, outcome=UNWANTED, reason="killed while it was stopped"))
    assert executor.event_buffer == ({key: (TaskInstanceState.SUCCESS, None)} if is_told else {})
    database.engine.dispose()
