"""Schedulers stop, die and freeze: each task still runs once, and ends as it should."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
import sqlalchemy

from air_executor.runs.record import RunState
from tests.faults.conftest import Fly
from tests.support.airflow_env import Airflow, LockedUpError
from tests.support.flights import frozen, is_known, kill_scheduler, last_job, launcher, probe, start_scheduler
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults


#: A scheduler that was not heard of for so long is taken for dead, in seconds; and for how long one is frozen.
HEALTHY_S, FROZEN_S = 2, 5.0

ON_SHUTDOWN = "AIRFLOW__AIR_EXECUTOR__ON_SHUTDOWN"


@pytest.fixture(scope="module")
def has_postgres() -> bool:
    return True


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    return {"AIRFLOW__AIR_EXECUTOR__STOP_GRACE_SECONDS": "15"}  # time for on_kill


def terminate(airflow: Airflow, until: str | None = None) -> int | None:
    """Have a scheduler ended by SIGTERM: the next one, when Airflow locks this one up before its executor hears of it.

    :param until: as of :meth:`Airflow.terminate`, which tells what is returned, too.
    """
    try:
        return airflow.terminate("scheduler", until=until)
    except LockedUpError:
        airflow.stop("scheduler")
    job = start_scheduler(airflow)
    running = "SELECT queued_by_job_id FROM task_instance WHERE state = 'running'"
    wait_for(lambda: {row["queued_by_job_id"] for row in airflow.query(running)} == {job}, "it to take the tasks over")
    return airflow.terminate("scheduler", until=until)


def test_a_scheduler_that_is_stopped_leaves_while_its_tasks_run_on(airflow: Airflow, fly: Fly) -> None:
    flight = fly("scheduler-sigterm").begun()
    assert terminate(airflow) == 0
    assert len(flight.live()) == flight.tasks
    assert all(airflow.store.has_runner(record) for record in flight.live())
    airflow.stop("scheduler")
    start_scheduler(airflow)
    flight.assert_each_ran_once()


def test_the_tasks_of_a_killed_scheduler_are_taken_over_before_anything_else(airflow: Airflow, fly: Fly) -> None:
    flight = fly("scheduler-sigkill").begun()
    kill_scheduler(airflow)
    # Nobody hears of these two now.
    os.kill(flight.record(0).pid or 0, signal.SIGKILL)
    flight.release(1)
    flight.wait_for("end 1 1")
    job = start_scheduler(airflow)
    # With stock settings Airflow looks for orphans at the start and then after 300 s: long after this task.
    probe(airflow, "after-the-sigkill")
    assert {row["queued_by_job_id"] for row in flight.rows() if row["map_index"] != 1} == {job}
    flight.wait_for("begin 0 2")
    os.kill(flight.record(2).pid or 0, signal.SIGKILL)
    flight.wait_for("begin 2 2")
    flight.release()
    assert flight.run.wait() == "success"
    again = ["begin 0 2", "end 0 2", "begin 2 2", "end 2 2"]
    once = [f"{word} {index} 1" for index in (1, 3, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 0 1", "begin 2 1", *again, *once])


@pytest.mark.parametrize("fate", ["goes-on-before", "goes-on-after", "dies"])
def test_what_was_queued_when_the_scheduler_was_killed_runs_once(airflow: Airflow, fly: Fly, fate: str) -> None:
    process = launcher(airflow)
    with frozen(process):
        flight = fly(f"queued-launcher-{fate}").queued()
        kill_scheduler(airflow)
        if fate == "dies":
            process.kill()
        elif fate == "goes-on-before":
            process.resume()
            flight.begun()
        job = start_scheduler(airflow)
        wait_for(lambda: {row["queued_by_job_id"] for row in flight.rows()} == {job}, "the tasks to be taken over")
    flight.begun()
    flight.assert_each_ran_once()


def test_a_scheduler_that_was_frozen_makes_up_for_it(airflow: Airflow, fly: Fly) -> None:
    with scheduler_with(airflow, {"AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": str(HEALTHY_S)}):
        flight = fly("scheduler-frozen").begun()
        with frozen(psutil.Process(airflow.processes["scheduler"].pid)):
            os.kill(flight.record(0).pid or 0, signal.SIGKILL)
            flight.release(1)
            time.sleep(FROZEN_S)
        flight.wait_for("begin 0 2", "end 1 1")
        flight.release()
        assert flight.run.wait() == "success"
    once = [f"{word} {index} 1" for index in (1, 2, 3, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 0 1", "begin 0 2", "end 0 2", *once])


def test_a_death_that_the_scheduler_could_not_take_note_of_is_told_again(airflow: Airflow, fly: Fly) -> None:
    flight = fly("locked-row").begun()
    record = flight.record(0)
    with row_locked(airflow, record.identity.workload_id):
        seen = len(airflow.log_of("scheduler"))
        os.kill(record.pid or 0, signal.SIGKILL)

        def were_told() -> int:
            return airflow.log_of("scheduler")[seen:].count("Received executor event with state failed")

        wait_for(lambda: were_told() >= 2, "the scheduler to be told twice")
        assert airflow.store.read(record.id).reported_at is None
    # Airflow itself would miss the heartbeats after 300 s.
    flight.wait_for("begin 0 2")
    wait_for(lambda: airflow.store.read(record.id).reported_at, "the end to be recorded as told")
    flight.release()
    assert flight.run.wait() == "success"
    once = [f"{word} {index} 1" for index in (1, 2, 3, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 0 1", "begin 0 2", "end 0 2", *once])


@contextlib.contextmanager
def row_locked(airflow: Airflow, ti_id: str) -> Iterator[None]:
    """Within this, somebody else's transaction holds the row of a task instance."""
    engine = sqlalchemy.create_engine(airflow.env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"], poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT id FROM task_instance WHERE id = :id FOR UPDATE"), {"id": ti_id})
        yield
        connection.rollback()


def test_no_row_stays_locked_by_what_a_killed_scheduler_leaves_behind(airflow: Airflow, fly: Fly) -> None:
    # Its first connection is the one that its log server, which is forked from it, has as well.
    first = (
        "SELECT state FROM pg_stat_activity WHERE application_name = 'to be killed' AND state LIKE 'idle in %' AND "
        "backend_start = (SELECT min(backend_start) FROM pg_stat_activity WHERE application_name = 'to be killed')"
    )
    free = "SELECT id FROM dag_run WHERE run_id = :run FOR UPDATE SKIP LOCKED"
    with scheduler_with(airflow, {"PGAPPNAME": "to be killed"}):
        flight = fly("locked-rows").begun()
        scheduler = psutil.Process(airflow.processes["scheduler"].pid)

        def is_caught() -> bool:
            scheduler.suspend()
            if airflow.query(first) and not airflow.query(free, run=flight.run.run_id):
                return True
            scheduler.resume()
            return False

        wait_for(is_caught, "the scheduler to hold the DAG run")
        (log_server,) = [child for child in scheduler.children() if "serve-logs" in " ".join(child.cmdline())]
        airflow.stop("scheduler", signum=signal.SIGKILL, alone=True)
        try:
            start_scheduler(airflow)
            flight.assert_each_ran_once()
            assert log_server.is_running()
        finally:
            log_server.kill()


@pytest.mark.timeout(3600)
def test_tasks_do_not_notice_that_the_scheduler_is_restarted_again_and_again(airflow: Airflow, fly: Fly) -> None:
    flight = fly("scheduler-restarts").begun()
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM) * 2:
        airflow.stop("scheduler", signum=signum)
        start_scheduler(airflow)
    later = fly("scheduler-restarts-later", 1).begun()
    flight.assert_each_ran_once()
    later.assert_each_ran_once()


def test_of_two_schedulers_one_may_be_killed(airflow: Airflow, fly: Fly) -> None:
    flight = fly("two-schedulers").begun()
    job, first = last_job(airflow), airflow.set_aside("scheduler")
    start_scheduler(airflow)
    airflow.stop(first, signum=signal.SIGKILL)

    def first_is_failed() -> bool:
        (row,) = airflow.query("SELECT state FROM job WHERE id = :id", id=job)
        return bool(row["state"] == "failed")

    # Airflow itself would look for it after 300 s.
    wait_for(first_is_failed, "the other scheduler to note its death")
    later = fly("two-schedulers-later", 1).begun()
    os.kill(flight.record(0).pid or 0, signal.SIGKILL)
    second = airflow.set_aside("scheduler")
    start_scheduler(airflow)
    flight.wait_for("begin 0 2")
    flight.release()
    assert flight.run.wait() == "success"
    once = [f"{word} {index} 1" for index in (1, 2, 3, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 0 1", "begin 0 2", "end 0 2", *once])
    later.assert_each_ran_once()
    # A scheduler that ends before it knows that its report was heard leaves the end to the next one that starts.
    wait_for(lambda: all(is_known(record) for record in flight.records()), "all ends to be on record as told")
    airflow.stop(second)


def test_tasks_outlive_scheduler_and_launcher_and_are_followed_without_them(airflow: Airflow, fly: Fly) -> None:
    flight = fly("scheduler-and-launcher").begun()
    kill_scheduler(airflow)
    launcher(airflow).kill()
    killed, later = flight.record(0), flight.record(1)
    os.kill(killed.pid or 0, signal.SIGKILL)  # nobody is there to see it
    start_scheduler(airflow)
    flight.wait_for("begin 0 2")
    assert airflow.store.read(killed.id).state is RunState.LOST
    os.kill(later.pid or 0, signal.SIGKILL)  # no launcher has it as its child
    flight.wait_for("begin 1 2")
    assert airflow.store.read(later.id).state is RunState.LOST
    flight.release()
    assert flight.run.wait() == "success"
    again = [f"{word} {index} 2" for index in (0, 1) for word in ("begin", "end")]
    once = [f"{word} {index} 1" for index in (2, 3, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 0 1", "begin 1 1", *again, *once])


def test_tasks_that_were_taken_over_keep_their_slots(airflow: Airflow, fly: Fly) -> None:
    flight = fly("slots").begun()
    kill_scheduler(airflow)
    airflow.env["AIRFLOW__CORE__PARALLELISM"] = "6"
    try:
        start_scheduler(airflow)
        later = fly("slots-later")
        wait_for(lambda: later.live(), "the last slot to be taken")
        for index, others in ((0, 2), (1, 3)):
            flight.release(index)
            wait_for(lambda others=others: len(later.live()) >= others, "the slot that is free to be taken")
            assert len(later.live()) == others
        later.release()
        flight.assert_each_ran_once()
        later.assert_each_ran_once()
    finally:
        del airflow.env["AIRFLOW__CORE__PARALLELISM"]
        airflow.stop("scheduler")
        start_scheduler(airflow)


@contextlib.contextmanager
def scheduler_with(airflow: Airflow, options: dict[str, str]) -> Iterator[int]:
    """Replace the scheduler by one with other options, for a while; its job's id is what this is entered with."""
    if "scheduler" in airflow.processes:
        airflow.stop("scheduler")
    airflow.env.update(options)
    try:
        yield start_scheduler(airflow)
    finally:
        for name in options:
            del airflow.env[name]
        if "scheduler" in airflow.processes:
            airflow.stop("scheduler")
        start_scheduler(airflow)


def test_what_runs_with_another_state_directory_goes_on_and_keeps_its_slots(airflow: Airflow, fly: Fly) -> None:
    flight = fly("elsewhere").begun()
    kill_scheduler(airflow)
    options = {
        "AIRFLOW__AIR_EXECUTOR__STATE_DIR": str(airflow.home / "other"),
        "AIRFLOW__CORE__PARALLELISM": "6",
        # Nothing in that directory tells that the other scheduler is dead.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "5",
    }
    with scheduler_with(airflow, options) as job:
        wait_for(lambda: {row["queued_by_job_id"] for row in flight.rows()} == {job}, "the tasks to be taken over")
        later = fly("elsewhere-later")
        wait_for(lambda: later.live(), "the last slot to be taken")
        flight.release(0)
        wait_for(lambda: len(later.live()) >= 2, "the slot that is free to be taken")
        assert len(later.live()) == 2
        flight.assert_each_ran_once()
        later.assert_each_ran_once()


def test_a_scheduler_that_takes_itself_for_dead_keeps_what_it_has(airflow: Airflow, fly: Fly) -> None:
    options = {
        # No heartbeat is recent enough: it tries to adopt its own tasks all the time, in whatever state they are.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "0.1",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "0",
        "AIRFLOW__CORE__PARALLELISM": "3",
    }
    with scheduler_with(airflow, options):
        flights = [fly(f"of-the-dead-{number}") for number in range(2)]
        wait_for(lambda: any(flight.live() for flight in flights), "the first tasks to run")
        for flight in flights:
            flight.release()
        for flight in flights:
            flight.assert_each_ran_once()


# Its policy for running tasks


@contextlib.contextmanager
def on_shutdown(airflow: Airflow, policy: str) -> Iterator[None]:
    airflow.stop("scheduler")
    airflow.env["AIRFLOW__AIR_EXECUTOR__ON_SHUTDOWN"] = policy
    try:
        start_scheduler(airflow)
        yield
    finally:
        del airflow.env["AIRFLOW__AIR_EXECUTOR__ON_SHUTDOWN"]
        if "scheduler" in airflow.processes:
            airflow.stop("scheduler")
        start_scheduler(airflow)


def test_a_scheduler_that_drains_leaves_after_its_last_task(airflow: Airflow, fly: Fly) -> None:
    with scheduler_with(airflow, {ON_SHUTDOWN: "drain"}):
        flight = fly("drained").begun()
        terminate(airflow, until="AirExecutor ends; 5 runs: drain")
        scheduler = airflow.processes["scheduler"]
        flight.release(0)
        wait_for(lambda: len(flight.live()) == 4, "the first task to end")
        assert scheduler.poll() is None
        flight.release()
        assert scheduler.wait(120) == 0
        assert {record.state for record in flight.records()} == {RunState.SUCCEEDED}
    flight.assert_each_ran_once()


def test_a_scheduler_that_kills_asks_its_tasks_to_end_before_it_leaves(airflow: Airflow, fly: Fly) -> None:
    with scheduler_with(airflow, {ON_SHUTDOWN: "kill"}):
        run = airflow.api.trigger("endless", run_id="killed-at-shutdown")
        wait_for(lambda: airflow.effects("effects-killed-at-shutdown"), "the task to begin")
        assert terminate(airflow) == 0
        assert airflow.effects("effects-killed-at-shutdown") == ["begin", "on_kill"]
        (record,) = airflow.records("endless")
        assert record.state is RunState.KILLED
        assert record.reason == "stopped: the executor was terminated"
    assert run.wait() == "failed"
