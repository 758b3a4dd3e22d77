"""What was waited for while the machine stood still has not been waited for."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

from air_executor import AirExecutor
from air_executor.airflow import compat, task_instances
from air_executor.airflow.live_runs import Run
from air_executor.airflow.patience import Patience
from air_executor.airflow.reconcile import Reconciler
from air_executor.launcher.client.backend import LocalBackend
from air_executor.machine.awake import AwakeClock
from air_executor.runner.active import ActiveRun
from air_executor.runner.history import History
from air_executor.runs.limits import Limits
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.clocks import Time
from tests.unit.documents import kept
from tests.unit.processes import result_of


def test_pauses_hardly_count(clock: Time) -> None:
    awake, began_s = AwakeClock(), clock.mono_s
    clock.run(100, awake.look)
    assert awake.since_s(began_s) == 100
    for _ in range(3):
        clock.pause(3600)
        clock.run(20, awake.look)
    assert 160 <= awake.since_s(began_s) <= 180
    assert awake.since_s(clock.mono_s - 10) == 10  # since the last pause


def test_who_looks_more_often_notices_shorter_pauses(clock: Time) -> None:
    awake, began_s = AwakeClock(5.0), clock.mono_s
    clock.run(10, awake.look)
    clock.pause(12)
    assert 10 < awake.since_s(began_s) <= 16


def test_what_began_within_a_pause_has_not_waited_longer_than_it_took(clock: Time) -> None:
    awake = AwakeClock()
    clock.pause(50)
    began_s = clock.mono_s
    clock.pause(50)
    assert 0 <= awake.since_s(began_s) <= 50


def test_a_clock_that_is_looked_at_in_a_process_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("air_executor.machine.awake._LONGEST_S", 0.5)
    monkeypatch.setattr("air_executor.machine.awake._NORMAL_S", 0.1)

    def watch() -> tuple[float, float]:
        awake, began_s = AwakeClock(), time.monotonic()
        pid = os.getpid()
        helper = os.fork()
        if helper == 0:
            time.sleep(0.2)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(2)
            os.kill(pid, signal.SIGCONT)
            os._exit(0)
        while os.waitpid(helper, os.WNOHANG) == (0, 0):
            awake.look()
            time.sleep(0.05)
        return time.monotonic() - began_s, awake.since_s(began_s)

    passed_s, awake_s = result_of(watch)
    assert passed_s >= 2
    assert awake_s < passed_s - 1.5


def test_a_pause_is_no_absence_of_the_api_server(clock: Time) -> None:
    awake = AwakeClock()
    patience = Patience(30.0, lambda _: None, awake)
    began_s, error = clock.mono_s, OSError("away")
    clock.pause(600)
    assert not patience._give_up(None, error, began_s)
    assert max(patience._wait_s(1000, began_s) for _ in range(100)) > 10
    clock.run(31, awake.look)
    assert patience._give_up(None, error, began_s)


def test_a_pause_does_not_count_for_a_limit_of_wall_time(
    clock: Time, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ActiveRun(store, kept(store, RunState.STARTING), config(store.root))
    run.limits = Limits(timeout=60.0)
    run.attach(os.getpid())
    clock.run(10, lambda: run.check(told=False))
    clock.pause(600)
    assert run.check(told=False) is None
    monkeypatch.setattr(History, "due_s", lambda _: None)  # when to measure next is another question
    assert 40 <= (run.due_in_s() or 0) <= 50
    clock.run(44, run.due_in_s)
    assert run.check(told=False) is None
    clock.run(7, lambda: run.check(told=False))
    assert run.ending is not None
    assert "wall time limit of 60 s" in run.ending.reason


def test_a_run_that_was_to_be_born_in_a_pause_still_has_its_time(clock: Time, store: RunStore) -> None:
    backend, unborn = LocalBackend(config(store.root)), kept(store, RunState.QUEUED)
    backend.follow(unborn)
    backend.take_ends()
    clock.pause(3600)
    assert backend.take_ends() == []
    clock.run(20, lambda: backend.take_ends())
    assert store.read(unborn.id).state is RunState.QUEUED
    ends: list[Any] = []
    clock.run(15, lambda: ends.extend(backend.take_ends()))
    assert [record.state for record in ends] == [RunState.LOST]
    backend.close()


# Heartbeats


@pytest.fixture
def beaten(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """What is passed on to a database in which everything runs."""
    beaten: list[set[str]] = []

    def beat(ti_ids: Any, min_age_s: float) -> set[str]:
        assert not min_age_s
        beaten.append(set(ti_ids))
        return set()

    monkeypatch.setattr(task_instances, "beat", beat)
    monkeypatch.setattr(task_instances, "states_of", lambda ids: dict.fromkeys(ids, "running"))
    return beaten


def reconciler_of(store: RunStore) -> Reconciler:
    return Reconciler(LocalBackend(config(store.root)), store.root, 7)


def test_after_a_pause_heartbeats_are_passed_on_before_anything_else_though_no_runner_has_woken(
    clock: Time, store: RunStore, beaten: list[set[str]]
) -> None:
    reconciler, record = reconciler_of(store), kept(store, RunState.RUNNING)
    store.heartbeat(record.id)
    ti_id = record.identity.workload_id

    def make_pass() -> None:
        reconciler.begin({record.id: ti_id})
        wait_for(reconciler.outcome, "the pass")

    assert reconciler.is_due()
    make_pass()
    assert beaten.pop() == {ti_id}
    assert not reconciler.is_due()
    clock.run(1, reconciler.is_due)
    clock.pause(290)
    assert reconciler.is_behind()
    assert reconciler.is_due()
    make_pass()
    assert beaten.pop() == {ti_id}
    assert not reconciler.is_behind()
    # One that stays silent while others run is not vouched for.
    clock.run(80, reconciler.is_due)
    make_pass()
    assert beaten.pop() == set()
    assert reconciler.is_silent(record.id)


def test_a_clock_that_is_set_forward_makes_heartbeats_overdue(
    clock: Time, store: RunStore, beaten: list[set[str]]
) -> None:
    reconciler = reconciler_of(store)
    reconciler.begin({})
    wait_for(reconciler.outcome, "the pass")
    assert not reconciler.is_due()
    clock.wall_s += 3600
    assert reconciler.is_due()


def test_a_pass_that_does_not_end_is_waited_for_once(
    clock: Time, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler, is_over = reconciler_of(store), threading.Event()
    monkeypatch.setattr(reconciler, "_pass", lambda *_: is_over.wait())
    clock.pause(600)
    reconciler.begin({})
    waits: list[float] = []
    thread = reconciler._thread
    assert thread is not None
    monkeypatch.setattr(thread, "join", waits.append)
    for _ in range(5):
        reconciler.catch_up(5.0)
    is_over.set()
    assert waits == [5.0]


# The scheduler, before it fails tasks


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A scheduler's module, with what it finds without a heartbeat."""
    module: Any = ModuleType("airflow.jobs.scheduler_job_runner")

    class Runner:
        found: list[Any] = []

        def _find_task_instances_without_heartbeats(self, *, session: Any) -> list[Any]:
            return self.found

    module.SchedulerJobRunner = Runner
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Runner


def test_the_scheduler_fails_nothing_whose_runner_lives(
    scheduler: Any, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = AirExecutor(parallelism=4)
    reconciler = reconciler_of(store)
    executor._work.backend, executor._passes.reconciler = reconciler._backend, reconciler
    monkeypatch.setattr(Reconciler, "is_due", lambda _: False)
    monkeypatch.setattr(AirExecutor, "_working", [executor])
    compat.use_vouching(executor._vouch)
    compat.use_vouching(executor._vouch)  # as by the executor of another team
    lives, dead, strange = (kept(store, RunState.RUNNING) for _ in range(3))
    lock = store.lock(lives.identity.workload_id)
    other_lock = store.lock(strange.identity.workload_id)
    assert lock.acquire(0) and other_lock.acquire(0)

    def instance(record: Any) -> Any:
        return SimpleNamespace(id=record.identity.workload_id, key=record.id)

    for record in (lives, dead):
        executor._work.runs[record.id] = Run(record.id, record.identity.workload_id)
    scheduler.found = [instance(record) for record in (lives, dead, strange)]
    found = scheduler()._find_task_instances_without_heartbeats(session=None)
    assert [ti.key for ti in found] == [dead.id, strange.id]
    # A runner that hangs keeps its lock, and is Airflow's to fail.
    reconciler._signs[lives.id] = (0.0, time.monotonic() - 1000)
    assert scheduler()._find_task_instances_without_heartbeats(session=None) == scheduler.found
    lock.release()
    other_lock.release()


def test_airflow_looks_for_missing_heartbeats_where_it_is_asked_not_to() -> None:
    """What :func:`compat.use_vouching` replaces is there, and what decides."""
    purge = inspect.getsource(SchedulerJobRunner._find_and_purge_task_instances_without_heartbeats)
    assert "self._find_task_instances_without_heartbeats(" in purge
    find = SchedulerJobRunner._find_task_instances_without_heartbeats
    assert list(inspect.signature(getattr(find, "stock", find)).parameters) == ["self", "session"]
