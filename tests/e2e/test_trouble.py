"""Tasks that behave badly: a clear error where the user looks, the others untouched, the scheduler alive."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

import orjson
import psutil
import pytest

from air_executor.runs.record import RunRecord, RunState
from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun
from tests.support.contents import contents
from tests.support.deaths import DEATHS
from tests.support.waiting import wait_for

OPTIONS = {
    "AIRFLOW__AIR_EXECUTOR__GPUS": "0,GPU-b",
    "AIRFLOW__AIR_EXECUTOR__STOP_GRACE_SECONDS": "2",
    "AIRFLOW__AIR_EXECUTOR__PRELOAD": "no_such_module,csv",
    "AIRFLOW__WORKERS__MISSING_DAG_RETRIES": "0",
    "AIRFLOW__SCHEDULER__ALLOWED_RUN_ID_PATTERN": ".*",
}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, shared_dir) -> Iterator[Airflow]:  # type: ignore[no-untyped-def]
    # A state directory whose socket path is longer than the kernel takes.
    home = tmp_path_factory.mktemp("trouble") / ("deep" * 30)
    env = airflow_env.make(home, shared_dir, OPTIONS, airflow_env.READING, ["trouble.py", "features.py"])
    env.start()
    yield env
    env.end()


@pytest.fixture(scope="module")
def trouble(env: Airflow) -> DagRun:
    run = env.api.trigger("trouble")
    assert run.wait() == "failed"
    env.ended_records("trouble")
    return run


@pytest.fixture(scope="module")
def limited(env: Airflow, trouble: DagRun) -> DagRun:
    run = env.api.trigger("limited")
    assert run.wait() == "failed"
    env.ended_records("limited")
    return run


def record_of(env: Airflow, dag_id: str, task_id: str) -> RunRecord:
    (record,) = [record for record in env.records(dag_id) if record.identity.task_id == task_id]
    return record


def audit_of(run: DagRun, task_id: str) -> str:
    return "\n".join(f"{event['event']}: {event['extra']}" for event in run.events(task_id))


def test_only_the_tasks_that_die_fail(trouble: DagRun) -> None:
    assert trouble.states() == {
        "binary_output": "success",
        "closes_stdout": "success",
        "forks_children": "success",
        "exits_at_once": "failed",
        "exits_with_a_code": "failed",
        "segfaults": "failed",
        "is_killed": "failed",
        "prints_much": "success",
        "raises": "failed",
        "shows_progress": "success",
    }


@pytest.mark.parametrize(("task_id", "state", "reason"), DEATHS)
def test_the_reason_of_a_death_is_told(
    env: Airflow, trouble: DagRun, task_id: str, state: RunState, reason: str
) -> None:
    record = record_of(env, "trouble", task_id)
    assert record.state is state
    assert reason in (record.reason or "")
    wait_for(lambda: reason in audit_of(trouble, task_id), f"{reason!r} in the audit log")


def test_an_exception_is_told_once_in_the_log_and_in_a_line_in_the_record(env: Airflow, trouble: DagRun) -> None:
    record = record_of(env, "trouble", "raises")
    assert (record.state, record.reason, record.exception) == (RunState.FAILED, None, "ValueError: not so")
    listed = env.run("air-executor", "runs", "--state", "failed", "--dag", "trouble").stdout
    assert [row.split("\t")[-1] for row in listed.splitlines() if "trouble.raises" in row] == ["ValueError: not so"]
    events = [orjson.loads(line) for line in Path(record.log_file or "").read_bytes().splitlines()]
    [told] = [event for event in events if event.get("error_detail") or "Traceback" in str(event.get("event"))]
    assert (told["level"], told["event"]) == ("error", "Task failed with exception")
    assert "ValueError" not in audit_of(trouble, "raises"), "it is nothing unusual"


def test_processes_that_a_task_leaves_are_ended(env: Airflow, trouble: DagRun) -> None:
    for name in ("forked-child", "daemon"):
        pid = int((env.out / name).read_text())
        wait_for(lambda pid=pid: not psutil.pid_exists(pid), f"{name} to be gone")


def test_all_of_a_long_output_is_in_the_log(trouble: DagRun) -> None:
    log = trouble.log("prints_much")
    assert "0 xxx" in log
    assert "19999 xxx" in log


def test_of_a_progress_bar_the_log_has_what_could_be_seen(env: Airflow, trouble: DagRun) -> None:
    log = trouble.log("shows_progress")
    assert "all done" in log
    assert log.count("x" * 9_995) < 300  # of 3,000: as many as seconds have passed
    cpu_time_s = record_of(env, "trouble", "shows_progress").cpu_time_s
    assert cpu_time_s is not None
    assert cpu_time_s < 5


LIMITS = {
    "too_much_memory": "memory limit of 100 MiB reached; peak ",
    "too_much_memory_in_a_child": "memory limit of 100 MiB reached; peak ",
    "too_much_cpu": "CPU time limit of 1 s reached; used ",
    "too_long": "wall time limit of 2 s reached after ",
}
REFUSED = {
    "unknown_key": "unknown keys: memoryy. Known are: memory, cpu_time",
    "too_many_cpus": "['cpus'] = 4096 can not be applied",
    "too_many_gpus": "[air_executor] gpus offers 2",
    "not_plain_data": "['timeout'] = ",
}


def test_limits_end_those_that_exceed_them_and_no_other(limited: DagRun) -> None:
    states = limited.states()
    assert {task_id for task_id, state in states.items() if state == "failed"} == LIMITS.keys() | REFUSED.keys()
    assert set(states.values()) == {"failed", "success"}


@pytest.mark.parametrize("task_id", [*LIMITS, *REFUSED])
def test_the_limit_is_told_in_the_record_the_task_log_and_the_audit_log(
    env: Airflow, limited: DagRun, task_id: str
) -> None:
    reason = {**LIMITS, **REFUSED}[task_id]
    record = record_of(env, "limited", task_id)
    assert record.state is (RunState.KILLED if task_id in LIMITS else RunState.FAILED)
    assert reason in (record.reason or "")
    assert reason in limited.log(task_id)
    wait_for(lambda: reason in audit_of(limited, task_id), f"{reason!r} in the audit log")


def test_a_task_without_on_kill_does_not_wait_for_its_grace(env: Airflow, limited: DagRun) -> None:
    for task_id in ("too_long", "too_much_cpu"):
        assert record_of(env, "limited", task_id).signal == "SIGTERM"


def test_a_refused_task_has_not_run(env: Airflow, limited: DagRun) -> None:
    assert not (env.out / "must-not-run").exists()


def test_limits_are_applied(limited: DagRun) -> None:
    assert limited.xcom("within_limits") == {"nice": 5, "cpus": 1}
    assert limited.xcom("environment") == "hello-from-the-environment"
    assert limited.xcom("gpu") in ("0", "GPU-b")


def test_values_of_the_environment_are_in_no_record(env: Airflow, limited: DagRun) -> None:
    record = record_of(env, "limited", "environment")
    assert record.limits == {"environment": ["GREETING"]}
    files = contents(env.store.root)
    assert [path for path, data in files.items() if b"hello-from-the-environment" in data] == []


def test_a_task_that_ignores_sigterm_is_killed_after_its_grace(env: Airflow) -> None:
    run = env.api.trigger("stubborn")
    wait_for((env.out / "stubborn").exists, "the task to begin")
    record = record_of(env, "stubborn", "ignores_sigterm")
    done = env.run("air-executor", "stop", record.id[:8], "--reason", "enough", "--wait")
    assert "killed" in done.stdout
    assert run.wait() == "failed"
    record = record_of(env, "stubborn", "ignores_sigterm")
    assert record.signal == "SIGKILL"
    assert record.reason == f"stopped: enough, by {getpass.getuser()}"


def test_odd_names_and_run_ids_are_just_names(env: Airflow) -> None:
    dag_id = "ünïcode.d-a_g." + "x" * 230
    run = env.api.trigger(dag_id, run_id='it\'s "odd"; $(touch x) é\N{GRINNING FACE} .')
    assert run.wait() == "success"
    (record,) = env.records(dag_id)
    assert record.identity.dag_run_id == run.run_id
    shown = env.run("air-executor", "show", record.id[:8], "--json")
    assert "GRINNING" not in shown.stdout
    assert dag_id in shown.stdout


def test_a_module_that_cannot_be_preloaded_is_left_out(env: Airflow, trouble: DagRun) -> None:
    (log,) = env.store.launchers.glob("*.log")
    assert "preload: no_such_module cannot be imported" in log.read_text()


def test_a_dag_file_that_breaks_or_vanishes_fails_its_task_clearly(env: Airflow) -> None:
    source = env.dags / "vanishing.py"
    source.write_text(
        "from airflow.sdk import dag, task\n@dag\ndef vanishing():\n  @task\n  def t(): pass\n  t()\nvanishing()\n"
    )
    env.api.unpause("vanishing")
    # Once it is known that the file is broken, Airflow's scheduler looks at none of its runs.
    env.stop("dag-processor")
    try:
        source.write_text("this is not Python\n")
        broken = env.api.trigger("vanishing")
        wait_for(lambda: broken.states() == {"t": "failed"}, "the end of its task")
        assert "SyntaxError" in broken.log("t") or "Dag not found" in broken.log("t")
    finally:
        source.unlink()
        env.start("dag-processor")


def test_the_scheduler_and_the_launcher_have_lived_through_all_this(env: Airflow, limited: DagRun) -> None:
    run = env.api.trigger("shell")
    assert run.wait() == "success"
    assert env.processes["scheduler"].poll() is None
    (launcher,) = env.store.launchers.glob("*.sock")
    assert launcher.is_socket()
