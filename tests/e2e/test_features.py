"""Everything that tasks do in Airflow, through AirExecutor, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import pytest

from air_executor.runs.record import RunState
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun
from tests.support.waiting import wait_for

DAGS = (
    "retries",
    "deferral",
    "reschedule",
    "impatient",
    "mapped",
    "branching",
    "cleanup",
    "asset_producer",
    "callbacks",
    "timeouts",
    "shell",
    "xcoms",
    "held",
)


@pytest.fixture(scope="module")
def dags() -> Sequence[str]:
    return ["features.py"]


@pytest.fixture(scope="module")
def runs(airflow: Airflow) -> dict[str, DagRun]:
    """All feature dags, run side by side and ended."""
    airflow.api.unpause("asset_consumer")
    runs = {dag_id: airflow.api.trigger(dag_id) for dag_id in DAGS}
    for run in runs.values():
        run.wait()
    return runs


def test_a_task_is_retried_until_it_succeeds(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["retries"].states() == {"third_time_lucky": "success"}
    assert airflow.effects("retries") == ["1", "2", "3"]
    records = sorted(airflow.ended_records("retries"), key=lambda record: record.identity.try_number or 0)
    assert [record.state for record in records] == [RunState.FAILED, RunState.FAILED, RunState.SUCCEEDED]
    assert airflow.effects("callbacks").count("task retry") == 2


def test_a_deferred_task_is_resumed_in_a_new_run(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["deferral"].states() == {"defer_once": "success"}
    assert runs["deferral"].xcom("defer_once") == "resumed"
    before, after = airflow.effects("deferral")
    assert before.startswith("before ")
    assert after.startswith("after ")
    assert before.split()[1] != after.split()[1]
    assert sorted(record.outcome or "" for record in airflow.ended_records("deferral")) == ["deferred", "success"]


def test_a_sensor_in_reschedule_mode_gets_a_run_for_each_poke(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["reschedule"].states() == {"third_poke": "success"}
    assert len(airflow.effects("reschedule")) == 3
    outcomes = sorted(record.outcome or "" for record in airflow.ended_records("reschedule"))
    assert outcomes == ["success", "up_for_reschedule", "up_for_reschedule"]


def test_sensors_that_are_due_again_before_the_scheduler_hears_that_they_left_go_on(
    airflow: Airflow, runs: dict[str, DagRun]
) -> None:
    assert runs["impatient"].states() == {"third_look": ["success"] * 8}
    assert [len(airflow.effects(f"impatient-{number}")) for number in range(8)] == [3] * 8


def test_mapped_tasks_run_once_each(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    states = runs["mapped"].states()
    assert states["square"] == ["success"] * 5 + ["skipped"]
    assert sorted(airflow.effects("mapped")) == ["0", "1", "2", "3", "4", "5"]
    assert runs["mapped"].xcom("total") == 0 + 1 + 4 + 9 + 16


def test_branches_and_short_circuits_skip(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["branching"].states() == {
        "choose": "success",
        "left": "success",
        "right": "skipped",
        "stop_here": "success",
        "never": "skipped",
    }
    assert airflow.effects("branching") == ["left"]


def test_teardown_runs_after_a_failure(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["cleanup"].states() == {"build": "success", "work": "failed", "tear_down": "success"}
    assert airflow.effects("cleanup") == ["setup", "work", "teardown"]


def test_an_asset_starts_its_consumer(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["asset_producer"].states() == {"produce": "success"}
    assert wait_for(lambda: airflow.effects("assets")[1:], "the consumer of the asset") == ["consumed 1"]


def test_callbacks_of_tasks_and_dags_are_called(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["callbacks"].states() == {"fail": "failed", "succeed": "success"}
    told = {"dag success", "task failure", "task success"}
    wait_for(lambda: told <= set(airflow.effects("callbacks")), "the callbacks")


def test_execution_timeout_fails_the_task(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["timeouts"].states() == {"too_slow": "failed"}
    assert "AirflowTaskTimeout" in runs["timeouts"].log("too_slow")
    assert airflow.effects("timeouts") == ["once"]


def test_templates_and_logs_of_a_shell_command(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["shell"].xcom("bash") == "from bash: rendered"
    assert "from bash: rendered" in runs["shell"].log("bash")


def test_xcom_carries_values_unchanged(runs: dict[str, DagRun]) -> None:
    value = {"text": "grüße \N{GRINNING FACE}", "number": 7, "nested": {"list": [1, 2.5, None]}}
    assert runs["xcoms"].xcom("pull") == value


#: Prints the ids of task instances and what the database says about their runs.
EXTERNAL_IDS = """
import json, sys
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
with create_session() as session:
    found = session.query(TaskInstance.id, TaskInstance.external_executor_id).filter_by(dag_id=sys.argv[1])
    print(json.dumps({str(ti_id): external for ti_id, external in found}))
"""


def test_the_database_names_the_run(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    found = json.loads(airflow.run(sys.executable, "-c", EXTERNAL_IDS, "mapped").stdout.splitlines()[-1])
    assert found == {record.identity.workload_id: record.id for record in airflow.records("mapped")}
    assert len(found) == 8


def test_every_record_of_the_features_has_ended_and_is_told(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    for dag_id in DAGS:
        wait_for(lambda dag_id=dag_id: all(r.reported_at for r in airflow.records(dag_id)), f"{dag_id} to be told")
        for record in airflow.records(dag_id):
            assert record.state in (RunState.SUCCEEDED, RunState.FAILED), record
            assert record.delivered
            assert record.peak_memory_bytes is not None
            assert record.cpu_time_s
            assert record.ended_at
            assert not airflow.store.has_runner(record)


def test_what_a_task_uses_is_measured_and_shared_memory_counts_once(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    assert runs["held"].states() == {"shares": "success"}
    (record,) = airflow.ended_records("held")
    found = json.loads(airflow.run("air-executor", "usage", record.id, "--json").stdout)
    held = [point["memory_bytes"] for point in found["points"]]
    assert 150 << 20 < max(held) == record.peak_memory_bytes < 250 << 20
    assert 150 << 20 < (record.p95_memory_bytes or 0) <= max(held)
    assert max(point["processes"] for point in found["points"]) == 3
    assert "processes: 3 at most" in airflow.run("air-executor", "usage", "--dag", "held").stdout
    advice = json.loads(airflow.run("air-executor", "advise", "--dag", "held", "--json").stdout)
    assert [(each["task"], each["max_bytes"]) for each in advice] == [("held.shares", max(held))]


# While it runs


def test_marking_a_running_task_ends_its_runner(airflow: Airflow) -> None:
    run = airflow.api.trigger("on_kill")
    wait_for(lambda: airflow.effects("on_kill"), "the task to begin")
    run.mark("wait", "failed")
    assert run.wait() == "failed"
    wait_for(lambda: "on_kill" in airflow.effects("on_kill"), "on_kill to be called")
    record = wait_for(lambda: [r for r in airflow.records("on_kill") if r.state.is_end], "the end of the run")[0]
    assert record.state is RunState.KILLED
    assert "its task instance was set to failed" in (record.reason or "")


def test_clearing_a_running_task_runs_it_again(airflow: Airflow) -> None:
    before = len(airflow.effects("long_running"))  # of other tests

    def effects() -> list[str]:
        return airflow.effects("long_running")[before:]

    run = airflow.api.trigger("long_running", run_id="cleared")
    wait_for(lambda: effects() == ["begin 1"], "the task to begin")
    run.clear("wait")
    wait_for(lambda: effects() == ["begin 1", "begin 2"], "the task to begin again")
    (airflow.out / "release-cleared").touch()
    assert run.wait() == "success"
    assert effects() == ["begin 1", "begin 2", "end 2"]
