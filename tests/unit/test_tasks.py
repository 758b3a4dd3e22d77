"""Single tasks, from the order to the end: what the execution API is told, what the log says, what is on record."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from airflow.sdk.execution_time.supervisor import SERVER_TERMINATED

from air_executor.runs.record import UNWANTED, RunState
from tests.support.deaths import DEATHS
from tests.support.quick import Quick, quick
from tests.support.waiting import wait_for
from tests.unit.processes import family


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("rehearsed", marks=pytest.mark.core),
        pytest.param("fresh", marks=(pytest.mark.core, pytest.mark.by_turns)),
        "exec",
    ],
)
def tasks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quick]:
    options: dict[str, Any] = {
        "rehearsed": {"preload": ("auto",)},
        "fresh": {"preload": ("off",)},
        "exec": {"launch": "exec"},
    }[request.param]
    with family(), quick(tmp_path_factory.mktemp("tasks"), gpus=("0", "1"), **options) as made:
        yield made


# Ends that the task tells itself


def test_a_success_is_told_once_with_what_the_task_returns(tasks: Quick) -> None:
    air = {"memory": "1GiB", "cpu_time": 60, "timeout": 60, "nice": 5, "cpus": 1}
    task = tasks.run("trouble.py", "limited", "within_limits", air=air)
    record = task.record
    assert (record.state, record.outcome, record.delivered, record.reason) == (
        RunState.SUCCEEDED,
        "success",
        True,
        None,
    )
    assert task.told.states == ["success"]
    assert len(task.told.started) == 1
    (value,) = [value for names, value in tasks.api.xcoms.items() if "within_limits" in names]
    assert value == {"nice": os.nice(0) + 5, "cpus": 1}


def test_an_exception_is_told_as_airflow_tells_it(tasks: Quick) -> None:
    task = tasks.run("trouble.py", "trouble", "raises")
    record = task.record
    assert (record.state, record.reason, record.exception) == (RunState.FAILED, None, "ValueError: not so")
    assert task.told.states == ["failed"]
    (told,) = [line for line in task.log if line.get("level") == "error"]
    assert (told["event"], told["logger"]) == ("Task failed with exception", "task")
    (detail,) = told["error_detail"]
    assert (detail["exc_type"], detail["exc_value"]) == ("ValueError", "not so")


def test_a_failure_with_tries_left_is_up_for_retry(tasks: Quick) -> None:
    task = tasks.run("features.py", "retries", "third_time_lucky", should_retry=True, max_tries=2)
    assert task.told.states == ["up_for_retry"]
    assert (task.record.state, task.record.outcome) == (RunState.FAILED, "up_for_retry")


# Deaths, which the task can't tell


@pytest.mark.parametrize(("task_id", "state", "reason"), DEATHS)
def test_a_death_is_on_record_and_in_the_log_and_left_to_the_executor_to_tell(
    tasks: Quick, task_id: str, state: RunState, reason: str
) -> None:
    task = tasks.run("trouble.py", "trouble", task_id)
    assert (task.record.state, task.record.delivered) == (state, False)
    assert reason in (task.record.reason or "")
    assert reason in task.log[-1]["reason"]
    assert task.log[-1]["level"] == "error"
    assert task.told.states == []


# Output


def test_output_of_any_kind_is_in_the_log(tasks: Quick) -> None:
    binary = tasks.run("trouble.py", "trouble", "binary_output")
    assert binary.record.state is RunState.SUCCEEDED
    assert any("no newline at the end" in line for line in binary.said())
    much = tasks.run("trouble.py", "trouble", "prints_much")
    assert [line for line in much.said() if line.endswith("x" * 100)] == [f"{n} {'x' * 100}" for n in range(20_000)]
    closed = tasks.run("trouble.py", "trouble", "closes_stdout")
    assert closed.told.states == ["success"]


# What is left of a task


def test_nothing_that_a_task_has_started_outlives_it(tasks: Quick) -> None:
    task = tasks.run("trouble.py", "trouble", "forks_children")
    assert task.told.states == ["success"]
    for name in ("forked-child", "daemon"):
        assert not psutil.pid_exists(int((tasks.out / name).read_text()))


# Limits


@pytest.mark.parametrize(
    ("task_id", "air", "reason"),
    [
        ("too_much_memory", {"memory": "100MiB"}, "memory limit of 100 MiB reached; peak "),
        ("too_much_memory_in_a_child", {"memory": "100MiB"}, "memory limit of 100 MiB reached; peak "),
        ("too_much_cpu", {"cpu_time": 1}, "CPU time limit of 1 s reached; used "),
        ("too_long", {"timeout": 0.5}, "wall time limit of 0.5 s reached after "),
    ],
)
def test_a_task_that_exceeds_a_limit_is_ended_for_it(tasks: Quick, task_id: str, air: Any, reason: str) -> None:
    task = tasks.run("trouble.py", "limited", task_id, air=air)
    assert (task.record.state, task.record.delivered) == (RunState.KILLED, False)
    assert reason in (task.record.reason or "")
    (said,) = [line for line in task.log if line["event"] == "AirExecutor ends the task"]
    assert said["level"] == "error"
    assert reason in said["reason"]
    assert task.told.states == []


@pytest.mark.parametrize(
    ("air", "reason"),
    [
        ({"memoryy": "1GiB"}, "unknown keys: memoryy. Known are: memory, cpu_time"),
        ({"cpus": 4096}, "['cpus'] = 4096 can not be applied"),
        ({"gpus": 64}, "[air_executor] gpus offers 2"),
        ("much", "must be"),
    ],
)
def test_a_limit_that_makes_no_sense_fails_the_task_before_it_begins(tasks: Quick, air: Any, reason: str) -> None:
    task = tasks.run("trouble.py", "limited", "unknown_key", air=air)
    assert task.record.state is RunState.FAILED
    assert reason in (task.record.reason or "")
    assert reason in task.text
    assert task.told.started == []
    assert not (tasks.out / "must-not-run").exists()


def test_a_task_gets_its_environment_and_its_gpus(tasks: Quick) -> None:
    air = {"environment": {"GREETING": "hello-from-the-environment"}}
    tasks.run("trouble.py", "limited", "environment", air=air)
    tasks.run("trouble.py", "limited", "gpu", air={"gpus": 1})
    found = {names[2]: value for names, value in tasks.api.xcoms.items()}
    assert found["environment"] == "hello-from-the-environment"
    assert found["gpu"] in ("0", "1")


# Requests to stop


@pytest.mark.parametrize("unwanted", [False, True])
def test_a_task_is_stopped_with_the_reason(tasks: Quick, unwanted: bool) -> None:
    task = tasks.start("trouble.py", "limited", "too_long")
    task.begun()
    tasks.backend.stop(task.run_id, "the test has seen enough", unwanted=unwanted)
    record = task.wait()
    assert record.state is RunState.KILLED
    assert record.reason == "stopped: the test has seen enough"
    # Then there is nothing to tell Airflow: its supervisor says so, or the runner, if the supervisor had just begun.
    assert (record.delivered or record.outcome == UNWANTED) is unwanted
    assert task.told.states == []


def test_a_task_that_ignores_a_stop_is_killed_after_its_grace(tasks: Quick) -> None:
    with contextlib.suppress(FileNotFoundError):
        (tasks.out / "stubborn").unlink()
    task = tasks.start("trouble.py", "stubborn", "ignores_sigterm")
    wait_for((tasks.out / "stubborn").exists, "the task to begin")
    tasks.backend.stop(task.run_id, "enough")
    record = task.wait()
    assert (record.signal, record.reason) == ("SIGKILL", "stopped: enough")


def test_a_runner_that_is_killed_takes_its_task_with_it(tasks: Quick) -> None:
    task = tasks.start("trouble.py", "limited", "too_long")
    begun = task.begun()
    tasks.backend.kill(task.run_id)
    record = task.wait()
    assert (record.state, record.signal) == (RunState.KILLED, "SIGKILL")
    assert not psutil.pid_exists(begun.task_pid or 0)


# The API server


@pytest.mark.parametrize("status", [404, 409, 410])
def test_a_start_that_airflow_does_not_want_is_left_alone(tasks: Quick, status: int) -> None:
    with tasks.api.refusing(status):
        refused = tasks.run("trouble.py", "limited", "unknown_key")
    assert (refused.record.state, refused.record.outcome) == (RunState.FAILED, UNWANTED)
    assert "Airflow does not want this run any more" in (refused.record.reason or "")
    assert not (tasks.out / "must-not-run").exists()


@pytest.mark.parametrize(("task_id", "ended"), [("closes_stdout", "success"), ("raises", "failed")])
def test_an_end_that_airflow_does_not_take_is_no_failure(tasks: Quick, task_id: str, ended: str) -> None:
    # The instance was cleared, for one: Airflow waits for the end of this run, and begins it again.
    with tasks.api.refusing(404, "state"):
        refused = tasks.run("trouble.py", "trouble", task_id)
    record = refused.record
    assert (record.state, record.outcome, record.delivered) == (RunState.FAILED, SERVER_TERMINATED, True), ended
    assert "Airflow did not take the task's end" in (record.reason or "")
    assert "Airflow did not take the task's end" in refused.text
    assert refused.told.states == []


def test_a_server_that_is_away_is_waited_for_at_the_start_and_at_the_end(tasks: Quick, tmp_path: Path) -> None:
    with tasks.api.away():
        task = tasks.start("trouble.py", "trouble", "closes_stdout")
        began_s = time.monotonic()
        wait_for(lambda: tasks.take_ends() is not None and time.monotonic() - began_s > 1.5, "some attempts")
        assert not task.record.state.is_end
    record = task.wait()
    assert (record.state, record.delivered) == (RunState.SUCCEEDED, True)
    assert task.told.states == ["success"]
    assert len(task.told.started) == 1


@pytest.mark.core
def test_waiting_for_the_server_is_not_the_overtime_of_a_task(tmp_path: Path) -> None:
    settings = {"AIRFLOW__CORE__TASK_SUCCESS_OVERTIME": "1"}
    with family(), quick(tmp_path, settings, preload=("off",)) as own:
        with own.api.refusing(503, "state"):
            task = own.start("trouble.py", "calls_back", "succeeds")
            began_s = wait_for(lambda: time.monotonic() if own.api.refused else None, "the first report of its end")
            wait_for(
                lambda: own.take_ends() is not None and time.monotonic() - began_s > 1.5, "the overtime to be over"
            )
        record = task.wait()
        assert (record.state, record.reason) == (RunState.SUCCEEDED, None)
        assert (own.out / "called-back").exists()


@pytest.mark.core
def test_a_runner_shows_its_life_whatever_airflow_s_interval_of_heartbeats(tmp_path: Path) -> None:
    settings = {"AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "3600"}
    with family(), quick(tmp_path, settings, preload=("off",)) as own:
        task = own.start("trouble.py", "limited", "too_long")
        task.begun()
        first_s = own.store.last_heartbeat_s(task.run_id)
        wait_for(lambda: own.store.last_heartbeat_s(task.run_id) != first_s, "another sign of life", 60)
        own.backend.kill(task.run_id)
        task.wait()


# A log that can't be written


def test_a_disk_without_room_for_its_log_ends_no_task(tasks: Quick, tmp_path: Path) -> None:
    log = tmp_path / "full.log"
    log.symlink_to("/dev/full")
    task = tasks.run("trouble.py", "trouble", "prints_much", log_file=log)
    assert (task.record.state, task.record.reason, task.told.states) == (RunState.SUCCEEDED, None, ["success"])
