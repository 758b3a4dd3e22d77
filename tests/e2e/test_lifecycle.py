"""AirExecutor in the life of an Airflow: starting, debugging, restarting, hundreds of tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence

import psutil
import pytest

from air_executor.runs.record import RunState
from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.flights import launcher, launchers
from tests.support.titles import busy_children
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def components() -> Sequence[str]:
    return airflow_env.READING


@pytest.fixture(scope="module")
def dags() -> Sequence[str]:
    return ["features.py"]


def test_a_new_scheduler_takes_running_tasks_over(airflow: Airflow) -> None:
    begun = len(airflow.effects("long_running"))
    run = airflow.api.trigger("long_running", run_id="adopted")
    wait_for(lambda: len(airflow.effects("long_running")) > begun, "the task to begin")
    airflow.stop("scheduler")
    (record,) = [r for r in airflow.records("long_running") if not r.state.is_end]
    assert airflow.store.has_runner(record)
    airflow.start("scheduler")
    other = airflow.api.trigger("shell", run_id="after-the-restart")
    assert other.wait() == "success"
    (airflow.out / "release-adopted").touch()
    assert run.wait() == "success"
    assert airflow.effects("long_running")[begun:] == ["begin 1", "end 1"]
    wait_for(lambda: airflow.store.read(record.id).reported_at, "the end to be told")


def test_a_task_whose_runner_is_killed_fails_at_once_with_the_reason(airflow: Airflow) -> None:
    begun = len(airflow.effects("long_running"))
    run = airflow.api.trigger("long_running", run_id="runner-killed")
    wait_for(lambda: len(airflow.effects("long_running")) > begun, "the task to begin")
    (record,) = wait_for(
        lambda: [r for r in airflow.records("long_running") if r.state is RunState.RUNNING], "it to be on record"
    )
    assert record.pid
    assert record.task_pid
    os.kill(record.pid, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(record.task_pid or 0), "the task to die with its runner")
    wait_for(lambda: len(airflow.effects("long_running")) > begun + 1, "the retry")
    assert airflow.effects("long_running")[begun:] == ["begin 1", "begin 2"]
    assert "killed by SIGKILL" in (airflow.store.read(record.id).reason or "")
    assert "killed by SIGKILL" in run.log("wait", try_number=1)
    assert any("killed by SIGKILL" in (event["extra"] or "") for event in run.events("wait"))
    (airflow.out / "release-runner-killed").touch()
    assert run.wait() == "success"


def test_tasks_go_on_when_the_launcher_is_killed(airflow: Airflow) -> None:
    begun = len(airflow.effects("long_running"))
    run = airflow.api.trigger("long_running", run_id="launcher-killed")
    wait_for(lambda: len(airflow.effects("long_running")) > begun, "the task to begin")
    for process in launchers(airflow):  # a former one may still have a run
        process.kill()
    other = airflow.api.trigger("shell", run_id="after-the-launcher")
    assert other.wait() == "success"
    (airflow.out / "release-launcher-killed").touch()
    assert run.wait() == "success"
    assert airflow.effects("long_running")[begun:] == ["begin 1", "end 1"]


def test_dags_test_with_the_executor(airflow: Airflow) -> None:
    done = airflow.run("airflow", "dags", "test", "debugged", "--use-executor")
    assert "state=success" in done.stdout + done.stderr
    wait_for(lambda: any(r.state is RunState.SUCCEEDED for r in airflow.records("debugged")), "the run on record")


def test_tasks_test_runs_in_the_terminal(airflow: Airflow) -> None:
    before = len(airflow.records("debugged"))
    done = airflow.run("airflow", "tasks", "test", "debugged", "bash")
    said = done.stdout + done.stderr
    assert "from bash: rendered" in said, said
    assert len(airflow.records("debugged")) == before


def test_launchers_could_prepare_what_they_do_by_default(airflow: Airflow) -> None:
    assert airflow.api.trigger("shell").wait() == "success"
    said = [log.read_text() for log in airflow.store.launchers.glob("*.log")]
    assert said
    assert not [text for text in said if "tasks are only slower for it" in text]


def test_airflow_knows_the_provider_its_options_and_its_commands(airflow: Airflow) -> None:
    providers = json.loads(airflow.run("airflow", "providers", "list", "-o", "json").stdout)
    assert "air-executor" in {provider["package_name"] for provider in providers}
    executors = airflow.run("airflow", "providers", "executors", "-o", "json").stdout
    assert "air_executor.executor.AirExecutor" in executors
    options = airflow.run("airflow", "config", "list", "--section", "air_executor", "--defaults").stdout
    assert "launcher_idle_seconds" in options
    status = ("airflow", "air", "status", "--json")
    wait_for(lambda: json.loads(airflow.run(*status).stdout)["launchers"], "the launcher to answer")

    def examine() -> subprocess.CompletedProcess[str]:
        return airflow.run("air-executor", "doctor", check=False)

    def is_well() -> bool:
        doctor = examine()
        return doctor.returncode == 0 and "FAIL" not in doctor.stdout

    wait_for(is_well, "nothing to be wrong", seen=lambda: examine().stdout)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("LAUNCH", "teleport", "launch = 'teleport' cannot be used"),
        ("KEEP_DAYS", "many", "keep_days = 'many' cannot be used"),
        ("STATE_DIR", "/proc/nowhere", "Set [air_executor] state_dir to a folder"),
    ],
)
@pytest.mark.parametrize("airflow", ["postgres"], indirect=True)
def test_a_wrong_option_stops_the_scheduler_with_its_name(
    airflow: Airflow, option: str, value: str, message: str
) -> None:
    done = airflow.run("airflow", "scheduler", check=False, **{f"AIRFLOW__AIR_EXECUTOR__{option}": value})
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


# SQLite has one writer at a time: with so many tasks at once some wait too long for it, under any executor.
@pytest.mark.parametrize("airflow", ["postgres"], indirect=True)
def test_nothing_is_left_after_hundreds_of_tasks(airflow: Airflow) -> None:
    process = launcher(airflow)
    scheduler = psutil.Process(airflow.processes["scheduler"].pid)
    descriptors = process.num_fds(), scheduler.num_fds()
    run = airflow.api.trigger("hundreds")
    assert run.wait(timeout_s=800) == "success"
    wait_for(lambda: all(r.reported_at for r in airflow.records("hundreds")), "all ends to be told")
    records = airflow.records("hundreds")
    assert len(records) == 201
    assert {r.state for r in records} == {RunState.SUCCEEDED}
    assert {r.identity.try_number for r in records} == {1}
    assert len({r.identity.workload_id for r in records}) == 201
    assert airflow.effects("hundreds").count("done") == 200
    wait_for(lambda: list(airflow.store.locks.iterdir()) == [], "the locks to be gone")
    # It may have a successor at any time.
    wait_for(lambda: busy_children(launcher(airflow)) == [], "its children to end")
    wait_for(lambda: launcher(airflow).num_fds() <= descriptors[0] + 5, "the launcher to close what it had open")
    # The database's connections come and go.
    wait_for(lambda: scheduler.num_fds() <= descriptors[1] + 5, "the scheduler to close what it had open")
    assert all(not list(airflow.store.folder(r.id).glob(".*")) for r in records)


def test_a_launcher_without_a_scheduler_ends(tmp_path_factory: pytest.TempPathFactory, shared_dir) -> None:  # type: ignore[no-untyped-def]
    env = airflow_env.make(tmp_path_factory.mktemp("short") / "home", shared_dir)
    env.start("scheduler")
    try:
        (socket,) = wait_for(lambda: list(env.store.launchers.glob("*.sock")), "the launcher")
        env.stop("scheduler")
        wait_for(lambda: not socket.exists() and not env.ours(), "the launcher to end")
    finally:
        env.end()
