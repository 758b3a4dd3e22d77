"""Users change their mind while tasks are queued, start, run and wait: what they want holds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from air_executor.runs.record import RunState
from tests.faults.conftest import Fly
from tests.support.airflow_env import FEW, Airflow
from tests.support.api import DagRun, quote
from tests.support.flights import Flight, frozen, kill_scheduler, launcher, start_scheduler, unfinished
from tests.support.proxy import Proxy
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def components() -> tuple[str, ...]:
    return (*FEW, "triggerer")


@pytest.fixture(scope="module")
def has_postgres() -> bool:
    """On SQLite, which locks no rows, Airflow's scheduler ends when a DAG run is deleted that it is looking at."""
    return True


def delete(run: DagRun) -> None:
    """Delete a DAG run. Airflow wants it to be over first."""
    run.api.call("PATCH", run.path, {"state": "failed"})
    run.api.call("DELETE", run.path)


#: What users do to a task, and what its run is in the end.
DEEDS: dict[str, tuple[Callable[[DagRun], None], str]] = {
    "success": (lambda run: run.mark("work", "success"), "success"),
    "failed": (lambda run: run.mark("work", "failed"), "failed"),
    "cleared": (lambda run: run.clear("work"), "success"),
    "deleted": (delete, "deleted"),
}


def check_outcome(flights: dict[str, Flight], first_try: list[str]) -> None:
    """See that users' deeds hold: the first try got as far as ``first_try``, and only what was cleared has a second."""
    flights["cleared"].wait_for("begin 0 2")
    flights["cleared"].release()
    for deed, (_, state) in DEEDS.items():
        flight = flights[deed]
        if state != "deleted":
            assert flight.run.wait() == state, deed
        assert flight.effects == ([*first_try, "begin 0 2", "end 0 2"] if deed == "cleared" else first_try), deed
        wait_for(lambda flight=flight: all(r.state.is_end for r in flight.records()), f"the end of what was {deed}")


def test_what_the_user_does_to_queued_tasks_holds(airflow: Airflow, fly: Fly) -> None:
    with frozen(launcher(airflow)):
        flights = {deed: fly(f"queued-{deed}", 1) for deed in DEEDS}
        for flight in flights.values():
            flight.queued()
        for deed, (do, _) in DEEDS.items():
            do(flights[deed].run)
    check_outcome(flights, first_try=[])


def test_what_the_user_does_to_tasks_that_start_holds(airflow: Airflow, fly: Fly, proxy: Proxy) -> None:
    proxy.set("refuse")  # so that they wait for the API server's permission
    flights = {deed: fly(f"starting-{deed}", 1) for deed in DEEDS}
    for flight in flights.values():
        wait_for(lambda flight=flight: [r for r in flight.records() if r.state is RunState.STARTING], "the runner")
    for deed, (do, _) in DEEDS.items():
        do(flights[deed].run)
    proxy.set("pass")
    check_outcome(flights, first_try=[])


def test_what_the_user_does_to_running_tasks_holds(airflow: Airflow, fly: Fly) -> None:
    flights = {deed: fly(f"running-{deed}", 1).begun() for deed in DEEDS}
    for deed, (do, _) in DEEDS.items():
        do(flights[deed].run)
    check_outcome(flights, first_try=["begin 0 1"])


def test_what_is_cleared_and_then_ends_by_itself_begins_again_and_has_not_failed(airflow: Airflow, fly: Fly) -> None:
    flight = fly("cleared-at-its-end", 1).begun()
    flight.run.clear("work")
    flight.release()  # before the executor has seen it
    assert flight.run.wait() == "success"
    assert flight.effects == ["begin 0 1", "end 0 1", "begin 0 2", "end 0 2"]
    (row,) = airflow.query("SELECT max_tries FROM task_instance WHERE run_id = :run_id", run_id=flight.run.run_id)
    assert row["max_tries"] == 2  # a failure would have used its retry
    (first,) = [record for record in flight.records() if record.identity.try_number == 1]
    assert "Airflow did not take the task's end" in (first.reason or "")


def test_what_the_user_does_to_deferred_tasks_holds(airflow: Airflow, fly: Fly) -> None:
    flights = {deed: fly(f"deferred-{deed}", 1, "deferring_flight") for deed in DEEDS}
    for flight in flights.values():
        flight.run.wait_for_state("work", "deferred")
    for deed, (do, _) in DEEDS.items():
        do(flights[deed].run)
    check_outcome(flights, first_try=["begin 0 1"])


def test_what_the_user_does_while_there_is_no_scheduler_holds(airflow: Airflow, fly: Fly) -> None:
    running, dead = (fly(f"no-scheduler-{what}", 1).begun() for what in ("running", "dead"))
    records = [running.record(), dead.record()]
    kill_scheduler(airflow)
    os.kill(dead.record().pid or 0, signal.SIGKILL)
    for flight in (running, dead):
        flight.run.mark("work", "success")
    start_scheduler(airflow)
    for flight in (running, dead):
        assert flight.run.wait() == "success"
    for record in records:
        wait_for(lambda record=record: airflow.store.read(record.id).state.is_end, "the end of the run")
    assert running.effects == dead.effects == ["begin 0 1"]
    # What nobody will ever be told must not be kept for ever.
    wait_for(lambda: not {r.id for r in unfinished(airflow)} & {r.id for r in records}, "the ends to be settled")


def test_tasks_whose_dag_is_paused_run_to_their_end(airflow: Airflow, fly: Fly, proxy: Proxy) -> None:
    running = fly("paused-running", 1).begun()
    deferred = fly("paused-deferred", 1, "deferring_flight")
    deferred.run.wait_for_state("work", "deferred")
    with frozen(launcher(airflow)):
        queued = fly("paused-queued", 1).queued()
        proxy.set("refuse")
    wait_for(lambda: [r for r in queued.records() if r.state is RunState.STARTING], "the runner that starts")
    paths = [f"/dags/{quote(flight.run.dag_id)}" for flight in (running, deferred)]
    for path in paths:
        airflow.api.call("PATCH", path, {"is_paused": True})
    proxy.set("pass")
    for flight in (running, queued):
        flight.release()
        flight.run.wait_for_state("work", "success")
    deferred.release()
    deferred.run.wait_for_state("work", "scheduled")  # its other half has not been queued: that waits for the user
    for path in paths:
        airflow.api.call("PATCH", path, {"is_paused": False})
    for flight in (running, queued, deferred):
        flight.assert_each_ran_once()
