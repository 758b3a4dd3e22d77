"""Launchers, runners and tasks die and freeze: each task still runs once, and ends as it should."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from air_executor.launcher import protocol
from air_executor.runs.record import UNWANTED, RunState
from tests.faults.conftest import Fly
from tests.support import machine
from tests.support.airflow_env import REPOSITORY, Airflow
from tests.support.flights import frozen, launcher, launchers, probe, start_scheduler
from tests.support.titles import title
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults


#: For how long a launcher is frozen, in seconds.
FROZEN_S = 5.0

#: Keeps launchers from starting, as long as the file that it names is there.
SABOTAGE = """
import os, sys
if "air_executor.launcher" in ' '.join(sys.orig_argv) and os.path.exists({flag!r}):
    sys.exit("no launcher today")
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that keeps launchers from starting as long as it exists."""
    return tmp_path_factory.mktemp("site") / "broken"


@pytest.fixture(scope="module")
def options(broken: Path) -> dict[str, str]:
    (broken.parent / "sitecustomize.py").write_text(SABOTAGE.format(flag=str(broken)))
    grace = {"AIRFLOW__AIR_EXECUTOR__STOP_GRACE_SECONDS": "15"}  # time for on_kill
    return {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{broken.parent}", **grace}


# The launcher


@pytest.mark.parametrize("which", ["air-executor spare task", "air-executor spare"])
def test_processes_that_were_forked_ahead_and_killed_cost_no_try(airflow: Airflow, fly: Fly, which: str) -> None:
    def waiting() -> list[psutil.Process]:
        return [child for child in launcher(airflow).children(recursive=True) if title(child).strip() == which]

    [process] = wait_for(waiting, f"one {which}")
    process.kill()
    flight = fly(which.replace(" ", "-"))
    flight.begun()
    flight.assert_each_ran_once()
    wait_for(waiting, f"another {which}")


def test_a_launcher_that_is_killed_while_it_forks_loses_no_task_and_runs_none_twice(airflow: Airflow, fly: Fly) -> None:
    process = launcher(airflow)
    flight = fly("launcher-killed", 16)
    wait_for(lambda: any(r.state is not RunState.QUEUED for r in flight.records()), "the first runner")
    process.kill()

    def goes_on() -> bool:
        live = len(flight.live())
        return live == flight.tasks or (live > 8 and any(each != process for each in launchers(airflow)))

    wait_for(goes_on, "the next launcher, unless the first one has begun all")
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
        time.sleep(FROZEN_S)
    flight.begun()
    flight.assert_each_ran_once()
    before.assert_each_ran_once()


def test_a_launcher_that_stays_frozen_is_killed_and_replaced_and_its_tasks_go_on(airflow: Airflow, fly: Fly) -> None:
    before = fly("launcher-hangs-before", 1).begun()
    process = launcher(airflow)
    process.suspend()
    flight = fly("launcher-hangs").begun()
    wait_for(lambda: not process.is_running(), "the frozen launcher to be killed")
    before.assert_each_ran_once()
    flight.assert_each_ran_once()


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


def test_work_waits_while_the_machine_has_no_room_for_another_process(airflow: Airflow, fly: Fly) -> None:
    before = fly("no-processes-before", 1).begun()
    with machine.no_more_processes(launcher(airflow)) as no_room:
        flight = fly("no-processes")

        def are_ordered() -> bool:
            states = {row["state"] for row in flight.rows()}
            return len(flight.records()) == flight.tasks and states <= {"queued", "running"}

        wait_for(are_ordered, "the runs to be ordered", seen=flight.seen)
        wait_for(no_room, "a runner that could not be born")
        before.release()
        assert before.run.wait() == "success"
        # All but the one that found a process forked ahead.
        assert len([record for record in flight.records() if record.state is not RunState.QUEUED]) <= 1
    flight.begun()
    flight.assert_each_ran_once()


def test_work_fails_with_the_reason_when_no_launcher_starts_and_the_rest_goes_on(
    airflow: Airflow, fly: Fly, broken: Path
) -> None:
    flight = fly("no-launcher").begun()
    scheduler = airflow.processes["scheduler"]
    broken.touch()
    try:
        launcher(airflow).kill()
        refused = airflow.api.trigger("shell", run_id="no-launcher-refused")
        assert refused.wait(120) == "failed"
        assert any("the launcher died" in (event["extra"] or "") for event in refused.events("bash"))
        assert len(flight.live()) == flight.tasks
    finally:
        broken.unlink()
    probe(airflow, "launcher-again")
    flight.assert_each_ran_once()
    assert scheduler.poll() is None


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
    wait_for(lambda: "killed by SIGKILL" in (airflow.store.read(record.id).reason or ""), "the reason to be on record")
    flight.release()
    assert flight.run.wait() == "success"
    once = [f"{word} {index} 1" for index in (0, 1, 2, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 3 1", "begin 3 2", "end 3 2", *once])
