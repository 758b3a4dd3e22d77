"""Processes and files break while tasks run: each task still runs once, ends as it should, and nothing is left."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from air_executor import system
from air_executor.launcher import protocol
from air_executor.runs import record as runs
from air_executor.runs.record import UNWANTED, Identity, RunRecord, RunState
from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun, quote
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

#: For how long a scheduler and a launcher are frozen, in seconds.
SCHEDULER_FROZEN_S, LAUNCHER_FROZEN_S = 20.0, 5.0

DAGS = {1: "flight_of_one", 5: "flight_of_five", 16: "flight_of_sixteen"}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Iterator[Airflow]:
    options = {"AIRFLOW__AIR_EXECUTOR__STOP_GRACE_SECONDS": "2"}  # what is stopped and can't end is killed sooner
    env = airflow_env.make(tmp_path_factory.mktemp("processes") / "home", shared_dir, options)
    env.start()
    yield env
    env.end()


# What is in flight


@dataclasses.dataclass(frozen=True)
class Flight:
    """A dag run whose tasks wait for :meth:`release`."""

    airflow: Airflow
    run: DagRun
    tasks: int

    @property
    def effects(self) -> list[str]:
        return self.airflow.effects(f"effects-{self.run.run_id}")

    def wait_for(self, *lines: str) -> None:
        wait_for(lambda: set(lines) <= set(self.effects), f"{lines} of {self.run.run_id}")

    def begun(self) -> Flight:
        self.wait_for(*(f"begin {index} 1" for index in range(self.tasks)))
        wait_for(lambda: len(self.live()) == self.tasks, "all to be on record as running")
        return self

    def queued(self) -> Flight:
        """Wait until the scheduler has queued all tasks, and this executor has ordered them."""
        wait_for(lambda: {row["state"] for row in self.rows()} == {"queued"}, "the tasks to be queued")
        wait_for(lambda: len(self.records()) == self.tasks, "the runs to be ordered")
        return self

    def release(self, index: int | None = None) -> None:
        (self.airflow.out / f"release-{self.run.run_id}{'' if index is None else f'-{index}'}").touch()

    def records(self) -> list[RunRecord]:
        return [r for r in self.airflow.records() if r.identity.dag_run_id == self.run.run_id]

    def live(self) -> list[RunRecord]:
        return [r for r in self.records() if r.state is RunState.RUNNING]

    def record(self, index: int = -1) -> RunRecord:
        """Return the live record of a mapped task, or of the only one."""
        (record,) = [r for r in self.live() if r.identity.map_index == index]
        return record

    def rows(self) -> list[dict[str, Any]]:
        return query(
            self.airflow,
            "SELECT state, try_number, map_index, queued_by_job_id FROM task_instance WHERE run_id = ?",
            self.run.run_id,
        )

    def assert_each_ran_once(self) -> None:
        """Let all go, wait for their success, and see that no task was executed twice or lost a try."""
        self.release()
        assert self.run.wait() == "success"
        assert sorted(self.effects) == sorted(f"{w} {i} 1" for w in ("begin", "end") for i in range(self.tasks))
        assert [row["try_number"] for row in self.rows()] == [1] * self.tasks


Fly = Callable[..., Flight]


@pytest.fixture
def fly(airflow: Airflow) -> Iterator[Fly]:
    """Trigger work in flight; at the end it is over, and has left nothing behind."""
    flights: list[Flight] = []
    before = {record.id for record in unfinished(airflow)}  # what a test that failed has left

    def start(name: str, tasks: int = 5) -> Flight:
        flights.append(Flight(airflow, airflow.api.trigger(DAGS[tasks], run_id=name), tasks))
        return flights[-1]

    yield start
    for flight in flights:
        flight.release()
    for process in airflow.ours():
        with contextlib.suppress(psutil.Error):
            process.resume()
    if "scheduler" not in airflow.processes or airflow.processes["scheduler"].poll() is not None:
        airflow.start("scheduler")
    try:
        wait_for(lambda: {r.id for r in unfinished(airflow)} <= before, "all runs to have ended and been told")
        wait_for(lambda: not strays(airflow), "all runners to be gone")
    finally:
        for process in strays(airflow):
            with contextlib.suppress(psutil.Error):
                process.kill()  # the next test begins afresh


def query(airflow: Airflow, statement: str, *values: Any) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(airflow.home / "airflow.db", timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement, values)]


def launchers(airflow: Airflow) -> list[psutil.Process]:
    """Return the launchers, without their forks that prune or are about to become runners."""
    found = {}
    for process in airflow.ours():
        with contextlib.suppress(psutil.Error):
            if is_launcher(process):
                found[process.pid] = process.ppid(), process
    return [process for parent, process in found.values() if parent not in found]


def launcher(airflow: Airflow) -> psutil.Process:
    """Return the one launcher, when it is warm."""
    wait_for(lambda: len(launchers(airflow)) == 1, "there to be one launcher")
    (process,) = launchers(airflow)
    wait_for(lambda: "air-executor launcher" in " ".join(process.cmdline()), "the launcher to be warm")
    return process


def components(airflow: Airflow) -> set[int]:
    """Return the process ids of Airflow's own components, and of what they have started."""
    pids = set()
    for component in airflow.processes.values():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(component.pid)
            pids |= {process.pid, *(child.pid for child in process.children(recursive=True))}
    return pids


def is_launcher(process: psutil.Process) -> bool:
    title = " ".join(process.cmdline())
    return "air-executor launcher" in title or "air_executor.launcher" in title  # warm, or starting


def strays(airflow: Airflow) -> list[psutil.Process]:
    """Return the processes that are neither Airflow's components nor launchers."""
    found = []
    known = components(airflow)
    for process in airflow.ours():
        with contextlib.suppress(psutil.Error):
            if process.pid not in known and not is_launcher(process):
                found.append(process)
    return found


def unfinished(airflow: Airflow) -> list[RunRecord]:
    """Return the runs without an end, and those of whose end somebody should hear, and did not."""
    return [r for r in airflow.records() if not r.state.is_end or not is_known(r)]


def is_known(record: RunRecord) -> bool:
    return bool(record.reported_at or record.delivered or record.outcome == UNWANTED)


def last_job(airflow: Airflow) -> int:
    (row,) = query(airflow, "SELECT max(id) AS id FROM job WHERE job_type = 'SchedulerJob'")
    return int(row["id"])


def kill_scheduler(airflow: Airflow) -> None:
    airflow.stop("scheduler", signum=signal.SIGKILL)


def start_scheduler(airflow: Airflow) -> int:
    """Start a scheduler, and return the id of its job."""
    before = last_job(airflow)
    airflow.start("scheduler")
    wait_for(lambda: last_job(airflow) > before, "the new scheduler")
    return last_job(airflow)


def probe(airflow: Airflow, name: str) -> None:
    """See that tasks run."""
    assert airflow.api.trigger("shell", run_id=name).wait() == "success"


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.Error):
            process.resume()


# The scheduler


def test_a_scheduler_that_is_stopped_leaves_while_its_tasks_run_on(airflow: Airflow, fly: Fly) -> None:
    flight = fly("scheduler-sigterm").begun()
    airflow.processes["scheduler"].terminate()
    assert airflow.processes["scheduler"].wait(60) == 0
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
    flight = fly("scheduler-frozen").begun()
    with frozen(psutil.Process(airflow.processes["scheduler"].pid)):
        os.kill(flight.record(0).pid or 0, signal.SIGKILL)
        flight.release(1)
        time.sleep(SCHEDULER_FROZEN_S)
    flight.wait_for("begin 0 2", "end 1 1")
    flight.release()
    assert flight.run.wait() == "success"
    once = [f"{word} {index} 1" for index in (1, 2, 3, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 0 1", "begin 0 2", "end 0 2", *once])


def test_tasks_do_not_notice_that_the_scheduler_is_restarted_again_and_again(airflow: Airflow, fly: Fly) -> None:
    flight = fly("scheduler-restarts").begun()
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        airflow.stop("scheduler", signum=signum)
        start_scheduler(airflow)
    later = fly("scheduler-restarts-later", 1).begun()
    flight.assert_each_ran_once()
    later.assert_each_ran_once()


def test_of_two_schedulers_one_may_be_killed(airflow: Airflow, fly: Fly) -> None:
    flight = fly("two-schedulers").begun()
    airflow.processes["first"] = airflow.processes.pop("scheduler")
    start_scheduler(airflow)
    airflow.stop("first", signum=signal.SIGKILL)
    later = fly("two-schedulers-later", 1).begun()
    os.kill(flight.record(0).pid or 0, signal.SIGKILL)
    airflow.processes["second"] = airflow.processes.pop("scheduler")
    start_scheduler(airflow)
    flight.wait_for("begin 0 2")
    flight.release()
    assert flight.run.wait() == "success"
    once = [f"{word} {index} 1" for index in (1, 2, 3, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 0 1", "begin 0 2", "end 0 2", *once])
    later.assert_each_ran_once()
    airflow.stop("second")


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
    with on_shutdown(airflow, "drain"):
        flight = fly("drained").begun()
        scheduler = airflow.processes["scheduler"]
        scheduler.terminate()
        wait_for(lambda: "AirExecutor ends; 5 runs: drain" in airflow.log_of("scheduler"), "the scheduler to drain")
        flight.release(0)
        wait_for(lambda: len(flight.live()) == 4, "the first task to end")
        assert scheduler.poll() is None
        flight.release()
        assert scheduler.wait(60) == 0
        assert {record.state for record in flight.records()} == {RunState.SUCCEEDED}
    flight.assert_each_ran_once()


def test_a_scheduler_that_kills_asks_its_tasks_to_end_before_it_leaves(airflow: Airflow, fly: Fly) -> None:
    with on_shutdown(airflow, "kill"):
        run = airflow.api.trigger("endless", run_id="killed-at-shutdown")
        wait_for(lambda: airflow.effects("effects-killed-at-shutdown"), "the task to begin")
        airflow.processes["scheduler"].terminate()
        assert airflow.processes["scheduler"].wait(60) == 0
        assert airflow.effects("effects-killed-at-shutdown") == ["begin", "on_kill"]
        (record,) = airflow.records("endless")
        assert record.state is RunState.KILLED
        assert record.reason == "stopped: the executor was terminated"
    assert run.wait() == "failed"


# The launcher


def test_a_launcher_that_is_killed_while_it_forks_loses_no_task_and_runs_none_twice(airflow: Airflow, fly: Fly) -> None:
    process = launcher(airflow)
    flight = fly("launcher-killed", 16)
    wait_for(lambda: any(r.state is not RunState.QUEUED for r in flight.records()), "the first runner")
    process.kill()
    wait_for(lambda: len(flight.live()) > 8 and [p for p in launchers(airflow) if p != process], "the next launcher")
    for other in launchers(airflow):
        other.kill()
    flight.begun()
    flight.assert_each_ran_once()


def test_a_launcher_that_was_frozen_makes_up_for_it(airflow: Airflow, fly: Fly) -> None:
    before = fly("launcher-frozen-before", 1).begun()
    with frozen(launcher(airflow)):
        flight = fly("launcher-frozen").queued()
        before.release()
        assert before.run.wait() == "success"
        time.sleep(LAUNCHER_FROZEN_S)
    flight.begun()
    flight.assert_each_ran_once()
    before.assert_each_ran_once()


def test_a_launcher_whose_socket_was_deleted_is_replaced_and_leaves_the_new_one_alone(
    airflow: Airflow, fly: Fly
) -> None:
    flight = fly("socket-deleted").begun()
    process = launcher(airflow)
    (socket,) = airflow.store.launchers.glob("*.sock")
    socket.unlink()
    connected = fly("socket-deleted-connected", 1).begun()
    airflow.stop("scheduler")
    start_scheduler(airflow)
    later = fly("socket-deleted-later", 1).begun()
    for each in (flight, connected):
        each.assert_each_ran_once()
    wait_for(lambda: not process.is_running(), "the former launcher to end")
    protocol.connect(socket).close()  # the new one is still there
    later.assert_each_ran_once()


# The runner, and its task


def test_a_runner_that_gets_sigterm_lets_its_task_clean_up_and_tells_why(airflow: Airflow, fly: Fly) -> None:
    run = airflow.api.trigger("endless", run_id="runner-sigterm")
    wait_for(lambda: airflow.effects("effects-runner-sigterm"), "the task to begin")
    (record,) = [r for r in airflow.records("endless") if r.identity.dag_run_id == run.run_id]
    os.kill(record.pid or 0, signal.SIGTERM)
    assert run.wait() == "failed"
    assert airflow.effects("effects-runner-sigterm") == ["begin", "on_kill"]
    wait_for(lambda: airflow.store.read(record.id).state.is_end, "the end to be on record")
    record = airflow.store.read(record.id)
    assert record.state is RunState.KILLED
    assert record.reason == "stopped: SIGTERM was sent to the runner"
    assert record.reason in run.log("work")


def test_a_frozen_runner_whose_task_is_given_up_is_killed_in_the_end(airflow: Airflow, fly: Fly) -> None:
    flight = fly("runner-frozen", 1).begun()
    record = flight.record()
    os.kill(record.pid or 0, signal.SIGSTOP)
    flight.run.mark("work", "failed")
    wait_for(lambda: airflow.store.read(record.id).state.is_end, "the runner to be killed")
    wait_for(lambda: not psutil.pid_exists(record.task_pid or 0), "the task to die with its runner")
    assert flight.effects == ["begin 0 1"]
    ended = airflow.store.read(record.id)
    assert ended.state is RunState.KILLED
    assert ended.signal == "SIGKILL"
    assert ended.outcome == UNWANTED
    assert flight.run.wait() == "failed"


def test_a_task_process_that_is_killed_is_tried_again_and_the_others_run_on(airflow: Airflow, fly: Fly) -> None:
    flight = fly("task-killed").begun()
    record = flight.record(3)
    os.kill(record.task_pid or 0, signal.SIGKILL)
    flight.wait_for("begin 3 2")
    assert "killed by SIGKILL" in (airflow.store.read(record.id).reason or "")
    flight.release()
    assert flight.run.wait() == "success"
    once = [f"{word} {index} 1" for index in (0, 1, 2, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 3 1", "begin 3 2", "end 3 2", *once])


# The user


def delete(run: DagRun) -> None:
    """Delete a dag run. Airflow wants it to be over first."""
    run.api.call("PATCH", run.path, {"state": "failed"})
    run.api.call("DELETE", run.path)


def test_what_the_user_does_to_queued_tasks_holds(airflow: Airflow, fly: Fly) -> None:
    with frozen(launcher(airflow)):
        marked, cleared, deleted = (fly(f"queued-{what}", 1).queued() for what in ("marked", "cleared", "deleted"))
        marked.run.mark("work", "success")
        cleared.run.clear("work")
        delete(deleted.run)
    cleared.wait_for("begin 0 2")
    cleared.release()
    assert cleared.run.wait() == "success"
    assert cleared.effects == ["begin 0 2", "end 0 2"]
    assert marked.run.wait() == "success"
    for flight in (marked, deleted):
        wait_for(lambda flight=flight: [r for r in flight.records() if r.state.is_end], "the end of the run")
        assert flight.effects == []


def test_what_the_user_does_to_running_tasks_holds(airflow: Airflow, fly: Fly) -> None:
    marked, cleared, deleted = (fly(f"running-{what}", 1) for what in ("marked", "cleared", "deleted"))
    records = [flight.begun().record() for flight in (marked, cleared, deleted)]
    marked.run.mark("work", "success")
    cleared.run.clear("work")
    delete(deleted.run)
    cleared.wait_for("begin 0 2")
    for record in records:
        wait_for(lambda record=record: airflow.store.read(record.id).state.is_end, "the end of the run")
    cleared.release()
    assert cleared.run.wait() == "success"
    assert cleared.effects == ["begin 0 1", "begin 0 2", "end 0 2"]
    assert marked.run.wait() == "success"
    assert marked.effects == deleted.effects == ["begin 0 1"]


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
    wait_for(lambda: not {r.id for r in unfinished(airflow)} & {r.id for r in records}, "the ends to be settled", 20)


def test_a_task_whose_dag_is_paused_runs_to_its_end(airflow: Airflow, fly: Fly) -> None:
    flight = fly("paused", 1).begun()
    path = f"/dags/{quote(flight.run.dag_id)}"
    airflow.api.call("PATCH", path, {"is_paused": True})
    flight.release()
    flight.run.wait_for_state("work", "success")
    airflow.api.call("PATCH", path, {"is_paused": False})
    flight.assert_each_ran_once()


# Files


@pytest.mark.parametrize(("damage", "restart"), [("truncated", "never"), ("garbage", "before"), ("truncated", "after")])
def test_a_task_survives_the_loss_of_its_record(airflow: Airflow, fly: Fly, damage: str, restart: str) -> None:
    flight = fly(f"record-{damage}-{restart}", 1).begun()
    record = flight.record()
    path = airflow.store.folder(record.id) / "state.json"
    if restart == "before":
        airflow.stop("scheduler")
        job = start_scheduler(airflow)
        wait_for(lambda: [row["queued_by_job_id"] for row in flight.rows()] == [job], "the task to be taken over")
    path.write_bytes(path.read_bytes()[:100] if damage == "truncated" else b"\x00\xff not a record")
    if restart == "after":
        airflow.stop("scheduler")
        start_scheduler(airflow)
    probe(airflow, f"record-{damage}-{restart}-probe")
    flight.assert_each_ran_once()
    wait_for(lambda: airflow.store.read(record.id).state is RunState.SUCCEEDED, "the end to be on record")


def test_the_scheduler_survives_the_loss_of_the_state_directory(airflow: Airflow, fly: Fly) -> None:
    flight = fly("state-removed", 1).begun()
    scheduler = airflow.processes["scheduler"]
    shutil.rmtree(airflow.store.root)
    later = airflow.api.trigger("shell", run_id="state-removed-later")
    if later.wait() == "failed":
        assert str(airflow.store.root) in later.log("bash")
    flight.assert_each_ran_once()
    assert scheduler.poll() is None
    airflow.stop("scheduler")
    start_scheduler(airflow)
    probe(airflow, "state-made-anew")
    wait_for(lambda: len(launchers(airflow)) == 1, "the former launcher to end")


def running(pid: int, started: float, boot_id: str) -> RunRecord:
    """Return a record that says of a process that it is the runner of a live run."""
    run_id = str(uuid.uuid4())
    record = runs.queued(
        run_id, Identity(kind="task", workload_id=str(uuid.uuid4()), name="by hand"), limits={}, log_file=None
    )
    me = {"pid": pid, "pid_started": started, "host": system.host(), "boot_id": boot_id}
    return record.advance(RunState.STARTING, **me).advance(RunState.RUNNING)


def test_a_run_from_before_a_reboot_is_shown_as_lost(airflow: Airflow) -> None:
    record = running(os.getpid(), psutil.Process().create_time(), "an-earlier-boot")
    airflow.store.create(record)
    shown = airflow.run("air-executor", "show", record.id)
    assert "lost" in shown.stdout
    assert "rebooted" in " ".join(shown.stdout.split())
    airflow.store.mark_reported(airflow.store.read(record.id))


@pytest.mark.parametrize("has_lock", [False, True], ids=["no-runner", "runner-elsewhere"])
def test_a_process_that_got_the_pid_of_a_runner_is_not_stopped(airflow: Airflow, has_lock: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as unrelated:
        started = psutil.Process(unrelated.pid).create_time()
        record = running(unrelated.pid, started - 1000, system.boot_id())
        lock = airflow.store.lock(record.identity.workload_id)
        if has_lock:
            assert lock.acquire(0)
        airflow.store.create(record)
        done = airflow.run("air-executor", "stop", record.id, check=False)
        assert done.returncode == 1
        # It ends by its own will: a signal would have ended it with another code.
        unrelated.communicate(b"\n")
        assert unrelated.returncode == 0
    lock.release()
    record = airflow.store.settle(airflow.store.read(record.id))
    assert record.state is RunState.LOST
    airflow.store.mark_reported(record)


# After all this


def test_nothing_is_left_behind(airflow: Airflow, fly: Fly) -> None:
    probe(airflow, "the-last")
    wait_for(lambda: not unfinished(airflow), "all ends to be told")
    airflow.run("air-executor", "prune")  # the lock files of killed runners; the launcher does this now and then
    assert list(airflow.store.locks.iterdir()) == []
    assert len(list(airflow.store.executors.iterdir())) == 1
    airflow.stop("scheduler")
    wait_for(lambda: not launchers(airflow), "the launcher to end")
    assert not [p for p in airflow.ours() if p.pid not in components(airflow)]
    assert list(airflow.store.launchers.glob("*.sock")) == []
    assert list(airflow.store.executors.iterdir()) == []
