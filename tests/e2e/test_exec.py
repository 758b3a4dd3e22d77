"""Another way to launch: ``exec``, every runner a fresh Python, as on macOS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from air_executor.runs.record import RunState
from tests.conftest import give_postgres
from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Iterator[Airflow]:
    env = airflow_env.make(
        tmp_path_factory.mktemp("exec") / "home",
        shared_dir,
        {"AIRFLOW__AIR_EXECUTOR__LAUNCH": "exec"},
        (*airflow_env.FEW, "triggerer"),
    )
    give_postgres(env, shared_dir)
    env.start()
    yield env
    env.end()


def test_tasks_run_defer_and_retry(env: Airflow) -> None:
    runs = {dag_id: env.api.trigger(dag_id) for dag_id in ("retries", "deferral", "branching", "example_dag")}
    assert {dag_id: run.wait() for dag_id, run in runs.items()} == dict.fromkeys(runs, "success")
    assert env.effects("retries") == ["1", "2", "3"]
    (launcher,) = env.store.launchers.glob("*.log")
    assert launcher.read_text() == ""


def test_a_run_is_stopped_with_time_for_on_kill(env: Airflow) -> None:
    run = env.api.trigger("on_kill")
    wait_for(lambda: env.effects("on_kill"), "the task to begin")
    (record,) = env.records("on_kill")
    env.run("air-executor", "stop", record.id, "--wait")
    assert run.wait() == "failed"
    assert env.effects("on_kill") == ["begin", "on_kill"]
    assert env.store.read(record.id).state is RunState.KILLED
