"""What is not a task, and what runs as somebody else, on hosts (Airflow 3.3), with LocalExecutor beside."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from air_executor.runs.record import RunState
from tests.conftest import give_postgres
from tests.e2e.test_company import SUDO
from tests.support import airflow_env
from tests.support.airflow_env import REPOSITORY, Airflow
from tests.support.waiting import wait_for
from tests.temporal.conftest import Temporal, Worker

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path, temporal: Temporal) -> Iterator[Airflow]:
    base = tmp_path_factory.mktemp("company")
    tools = base / "bin"
    tools.mkdir()
    (tools / "sudo").write_text(SUDO.format(python=sys.executable))
    (tools / "sudo").chmod(0o755)
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [{"name": "company", "classpath": local, "kwargs": {"path": str(REPOSITORY / "tests" / "company_dags")}}]
    options = {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor,air:air_executor.TemporalExecutor",
        "AIRFLOW__AIR_EXECUTOR__TEMPORAL_ADDRESS": temporal.address,
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CONNECTION_TEST__TIMEOUT": "600",
        "AIRFLOW__CORE__DEFAULT_IMPERSONATION": "",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
    }
    env = airflow_env.make(base / "home", shared_dir, options)
    env.env["PATH"] = f"{tools}:{env.env['PATH']}"
    env.env["LOGNAME"] = "somebody-else"
    give_postgres(env, shared_dir)
    env.start()
    yield env
    env.end()


def test_a_task_chooses_its_executor(airflow: Airflow, worker: Worker) -> None:
    run = airflow.api.trigger("mixed")
    assert run.wait() == "success"
    assert "LocalExecutor" in run.xcom("by_local")
    assert "air-executor runner" in run.xcom("by_air")
    assert [each.identity.task_id for each in worker.store.records() if each.identity.dag_id == "mixed"] == ["by_air"]


def test_a_deadline_calls_back_on_a_host(airflow: Airflow, worker: Worker) -> None:
    run = airflow.api.trigger("late")
    assert run.wait() == "success"
    assert (airflow.out / "deadline").read_text() == "missed"
    callbacks = wait_for(
        lambda: [r for r in worker.store.records() if r.identity.kind == "callback" and r.state.is_end], "its end"
    )
    assert [(each.state, each.identity.dag_id) for each in callbacks] == [(RunState.SUCCEEDED, "late")]


@pytest.mark.parametrize(("path", "state"), [("/", "success"), ("/no/such/folder", "failed")])
def test_a_connection_is_tested_on_a_host(airflow: Airflow, worker: Worker, path: str, state: str) -> None:
    connection = {"connection_id": f"files_{state}", "conn_type": "fs", "extra": json.dumps({"path": path})}
    token = airflow.api.call("POST", "/connections/enqueue-test", {**connection, "executor": "air"})["token"]

    def answer() -> str | None:
        headers = {"Airflow-Connection-Test-Token": token}
        found = airflow.api.call("GET", "/connections/enqueue-test", headers=headers)
        return found["state"] if found["state"] in ("success", "failed") else None

    assert wait_for(answer, "the connection test's end") == state
    assert [r for r in worker.store.records() if r.identity.name == f"connection test files_{state}"]


def test_a_task_runs_as_another_user(airflow: Airflow, worker: Worker) -> None:
    run = airflow.api.trigger("impersonated")
    assert run.wait() == "success"
    assert run.xcom("as_another_user") == {"sudo": "yes", "variable": "default"}
    (record,) = [each for each in worker.store.records() if each.identity.dag_id == "impersonated"]
    wait_for(lambda: worker.store.read(record.id).state is RunState.SUCCEEDED, "its end to be on record")
