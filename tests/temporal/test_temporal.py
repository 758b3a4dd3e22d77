"""TemporalExecutor in a real Airflow with a real Temporal server: what users see, and who may die."""

from __future__ import annotations

import base64
import json
import re
import signal

import pytest

from air_executor.airflow.admission import WAITS_EVENT
from air_executor.runs.record import RunRecord
from air_executor.temporal.workflow import MOST_EVENTS
from tests.support.airflow_env import Airflow
from tests.support.waiting import wait_for
from tests.temporal.conftest import Temporal, Worker

#: One process runs them all, so that there is one Airflow for them.
pytestmark = pytest.mark.faults


#: A token as Airflow signs it: two parts that are JSON in base64, then the signature.
TOKEN = re.compile(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")


def begun(airflow: Airflow, worker: Worker, run_id: str) -> RunRecord:
    """Return the record of a run of `long_running` that has begun."""

    def found() -> list[RunRecord]:
        records = worker.store.records() if worker.state_dir.exists() else []
        return [r for r in records if r.identity.dag_run_id == run_id and r.state.value == "running"]

    wait_for(found, f"{run_id} to begin")
    return found()[0]


@pytest.mark.core
def test_orders_wait_for_a_worker_and_dag_runs_become_workflows(airflow: Airflow, temporal: Temporal) -> None:
    run = airflow.api.trigger("example_dag", run_id="first")
    wait_for(lambda: temporal.has("airflow-example_dag-first"), "the workflow")
    wait_for(lambda: "No worker serves queue airflow-tasks.default" in airflow.log_of("scheduler"), "a warning")
    why = "no worker serves queue default: air-executor worker --queues default"
    (first,) = [ti["task_id"] for ti in run.instances() if ti["state"] == "queued"]

    def told() -> list[str]:
        return [event["extra"] for event in run.events(first) if event["event"] == WAITS_EVENT]

    assert why in wait_for(told, "the audit log to say why it waits")[0]
    shown = airflow.run("air-executor", "show", "--dag", "example_dag", "--task", first, "--run", "first").stdout
    assert f"it waits: {why}" in " ".join(shown.split())
    worker = Worker(airflow, "one")
    worker.start()
    assert run.wait() == "success"
    wait_for(lambda: temporal.workflow("airflow-example_dag-first")[0] == "COMPLETED", "the workflow's end")
    _, history, memo = temporal.workflow("airflow-example_dag-first")
    link = f"{airflow.url}/dags/example_dag/runs/first"
    assert memo == {"dag": "example_dag", "dag_run": "first", "airflow": link}
    began = json.loads(history)["events"][0]["workflowExecutionStartedEventAttributes"]
    header = json.loads(base64.b64decode(began["input"]["payloads"][0]["data"]))
    assert header["most_events"] == MOST_EVENTS

    def doctor() -> str:
        return " ".join(airflow.run("air-executor", "doctor", check=False).stdout.split())

    wait_for(lambda: "1 workers: one (default)" in doctor(), "the doctor to know the worker", every_s=2.0)
    activities = [e for e in json.loads(history)["events"] if e["eventType"] == "EVENT_TYPE_ACTIVITY_TASK_SCHEDULED"]
    assert [a["activityTaskScheduledEventAttributes"]["activityType"]["name"] for a in activities].count("run") == 2
    worker.stop()


@pytest.mark.core
def test_a_killed_workers_successor_goes_on_with_the_task(airflow: Airflow, worker: Worker) -> None:
    count = len(airflow.effects("long_running"))
    run = airflow.api.trigger("long_running", run_id="worker-killed")
    begun(airflow, worker, "worker-killed")
    worker.stop(signal.SIGKILL)
    worker.start()
    (airflow.out / "release-worker-killed").touch()
    assert run.wait() == "success"
    assert airflow.effects("long_running")[count:] == ["begin 1", "end 1"]


def test_a_worker_that_comes_back_late_finds_its_task_running(airflow: Airflow, worker: Worker) -> None:
    count = len(airflow.effects("long_running"))
    run = airflow.api.trigger("long_running", run_id="worker-late")
    begun(airflow, worker, "worker-late")
    worker.stop()
    # Its host does not answer, but the task shows life: it is neither lost nor ordered again.
    scheduled = "EVENT_TYPE_ACTIVITY_TASK_COMPLETED"
    before = temporal_of(airflow).events("airflow-long_running-worker-late", scheduled)
    wait_for(lambda: temporal_of(airflow).events("airflow-long_running-worker-late", scheduled) > before, "a verdict")
    worker.start()
    (airflow.out / "release-worker-late").touch()
    assert run.wait() == "success"
    assert airflow.effects("long_running")[count:] == ["begin 1", "end 1"]


def test_a_new_scheduler_follows_what_runs_on_hosts(airflow: Airflow, worker: Worker) -> None:
    count = len(airflow.effects("long_running"))
    run = airflow.api.trigger("long_running", run_id="scheduler-restarted")
    begun(airflow, worker, "scheduler-restarted")
    airflow.stop("scheduler", signum=signal.SIGKILL)
    airflow.start("scheduler")
    (airflow.out / "release-scheduler-restarted").touch()
    assert run.wait() == "success"
    assert airflow.effects("long_running")[count:] == ["begin 1", "end 1"]


def test_a_task_that_is_marked_is_stopped_on_its_host(airflow: Airflow, worker: Worker) -> None:
    run = airflow.api.trigger("long_running", run_id="marked")
    record = begun(airflow, worker, "marked")
    run.mark("wait", "failed")
    wait_for(lambda: worker.store.read(record.id).state.is_end, "the end of the run")
    assert worker.store.read(record.id).state.value == "killed"
    assert run.wait() == "failed"
    wait_for(lambda: temporal_of(airflow).workflow("airflow-long_running-marked")[0] == "FAILED", "its workflow")


@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_a_workflow_ended_in_temporals_ui_stops_its_tasks(airflow: Airflow, worker: Worker, how: str) -> None:
    count = len(airflow.effects("long_running"))
    run = airflow.api.trigger("long_running", run_id=f"by-{how}")
    record = begun(airflow, worker, f"by-{how}")
    wait_for(lambda: airflow.effects("long_running")[count:], "the task's first line")
    temporal_of(airflow).end_workflow(f"airflow-long_running-by-{how}", how)
    wait_for(lambda: worker.store.read(record.id).state.is_end, "the end of the run")
    assert "in Temporal" in (worker.store.read(record.id).reason or "")
    (airflow.out / f"release-by-{how}").touch()
    assert run.wait() == "success"  # by its retry, in another execution of the workflow
    assert airflow.effects("long_running")[count:] == ["begin 1", "begin 2", "end 2"]


def test_tasks_outlive_a_temporal_that_is_away(airflow: Airflow, worker: Worker, temporal: Temporal) -> None:
    count = len(airflow.effects("long_running"))
    run = airflow.api.trigger("long_running", run_id="temporal-away")
    begun(airflow, worker, "temporal-away")
    temporal.kill()
    other = airflow.api.trigger("shell", run_id="ordered-meanwhile")
    (airflow.out / "release-temporal-away").touch()
    wait_for(lambda: airflow.effects("long_running")[count:] == ["begin 1", "end 1"], "the task to end")
    temporal.start()
    assert run.wait() == "success"
    assert other.wait() == "success"


def test_a_lost_hosts_task_is_retried_elsewhere(airflow: Airflow, worker: Worker) -> None:
    worker.stop()
    other = Worker(airflow, "two")
    other.start()
    count = len(airflow.effects("long_running"))
    run = airflow.api.trigger("long_running", run_id="host-lost")
    begun(airflow, other, "host-lost")
    wait_for(lambda: airflow.effects("long_running")[count:], "the task's first line")
    other.kill_host()
    worker.start()
    (airflow.out / "release-host-lost").touch()
    assert run.wait() == "success"
    assert airflow.effects("long_running")[count:] == ["begin 1", "begin 2", "end 2"]
    assert "its host was lost" in str(run.events("wait"))


def test_no_secret_is_in_temporals_database(airflow: Airflow, worker: Worker, temporal: Temporal) -> None:
    assert worker.process is not None
    assert airflow.api.trigger("example_dag", run_id="secret").wait() == "success"
    assert TOKEN.search(b"eyJhbGciOiJIUzUxMiJ9.eyJzdWIiOiIwMTkifQ.c2lnbmF0dXJl"), "this test would not know one"
    data = b"".join(path.read_bytes() for path in temporal.folder.glob("temporal.db*"))
    assert b"airflow-example_dag-secret" in data
    assert not TOKEN.search(data), "a token stands there"
    assert b"only-for-tests" not in data


def temporal_of(airflow: Airflow) -> Temporal:
    """Return the server that an Airflow uses."""
    address = airflow.env["AIRFLOW__AIR_EXECUTOR__TEMPORAL_ADDRESS"]
    return Temporal(airflow.home, int(address.rpartition(":")[2]))
