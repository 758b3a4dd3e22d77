"""TemporalExecutor in a real Airflow with a real Temporal server: what users see, and who may die."""

from __future__ import annotations

import json

import pytest

from air_executor.runs.record import RunRecord
from tests.support.airflow_env import Airflow
from tests.support.waiting import wait_for
from tests.temporal.conftest import Temporal, Worker

pytestmark = pytest.mark.faults


def begun(airflow: Airflow, worker: Worker, run_id: str) -> RunRecord:
    """Return the record of a run of `long_running` that has begun."""

    def found() -> list[RunRecord]:
        records = worker.store.records() if worker.state_dir.exists() else []
        return [r for r in records if r.identity.dag_run_id == run_id and r.state.value == "running"]

    wait_for(found, f"{run_id} to begin", 120)
    return found()[0]


def test_orders_wait_for_a_worker_and_dag_runs_become_workflows(airflow: Airflow, temporal: Temporal) -> None:
    run = airflow.api.trigger("example_dag", run_id="first")
    wait_for(lambda: temporal_has(temporal, "airflow-example_dag-first"), "the workflow", 60)
    worker = Worker(airflow, "one")
    worker.start()
    assert run.wait() == "success"
    wait_for(lambda: temporal.workflow("airflow-example_dag-first")[0] == "COMPLETED", "the workflow's end", 60)
    _, history, memo = temporal.workflow("airflow-example_dag-first")
    assert memo == {"dag": "example_dag", "dag_run": "first"}
    activities = [e for e in json.loads(history)["events"] if e["eventType"] == "EVENT_TYPE_ACTIVITY_TASK_SCHEDULED"]
    assert [a["activityTaskScheduledEventAttributes"]["activityType"]["name"] for a in activities].count("run") == 2
    worker.stop()


def temporal_has(temporal: Temporal, workflow_id: str) -> bool:
    from temporalio.service import RPCError

    try:
        return bool(temporal.workflow(workflow_id))
    except RPCError:
        return False


def test_a_killed_workers_successor_goes_on_with_the_task(airflow: Airflow, worker: Worker) -> None:
    run = airflow.api.trigger("long_running", run_id="worker-killed")
    count = len(airflow.effects("long_running"))
    begun(airflow, worker, "worker-killed")
    worker.stop(__import__("signal").SIGKILL)
    worker.start()
    (airflow.out / "release-worker-killed").touch()
    assert run.wait() == "success"
    assert airflow.effects("long_running")[count:] == ["begin 1", "end 1"]
