"""AirExecutor beside another executor, for a team, and for what is not a task (Airflow 3.3)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from air_executor.runs.record import RunState
from tests.support import airflow_env
from tests.support.airflow_env import REPOSITORY, Airflow
from tests.support.waiting import wait_for

TEAM_DAG = """
from airflow.sdk import dag, task

@dag(schedule=None)
def of_the_team():
    @task
    def work():
        return "done"
    work()

of_the_team()
"""

VERSIONED_DAG = """
from airflow.sdk import dag, task

@dag(schedule=None)
def versioned():
    @task(executor="air")
    def tell():
        return "VERSION"
    tell()

versioned()
"""

#: What `sudo -E -H -u USER COMMAND` does, for a machine without sudo.
SUDO = """#!{python}
import os, sys
arguments = sys.argv[1:]
assert arguments[:4] == ["-E", "-H", "-u", "root"], arguments
os.environ["CAME_THROUGH_SUDO"] = "yes"
os.closerange(3, 256)
os.execvp(arguments[4], arguments[4:])
"""


def git(repository: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=repository, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(repository: Path, version: str) -> str:
    (repository / "versioned.py").write_text(VERSIONED_DAG.replace("VERSION", version))
    git(repository, "add", ".")
    git(repository, "commit", "-m", version)
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Iterator[Airflow]:
    base = tmp_path_factory.mktemp("company")
    team, repository, tools = base / "team", base / "repository", base / "bin"
    for folder in (team, repository, tools):
        folder.mkdir()
    (team / "of_the_team.py").write_text(TEAM_DAG)
    git(repository, "init", "--initial-branch=main")
    commit(repository, "first")
    (tools / "sudo").write_text(SUDO.format(python=sys.executable))
    (tools / "sudo").chmod(0o755)
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [
        {"name": "company", "classpath": local, "kwargs": {"path": str(REPOSITORY / "tests" / "company_dags")}},
        {"name": "team", "classpath": local, "kwargs": {"path": str(team)}, "team_name": "red"},
        {
            "name": "versioned",
            "classpath": "airflow.providers.git.bundles.git.GitDagBundle",
            "kwargs": {"repo_url": str(repository), "tracking_ref": "main", "refresh_interval": 1},
        },
    ]
    executors = "LocalExecutor,air:air_executor.AirExecutor;red=air_executor.AirExecutor"
    env = airflow_env.make(
        base / "home",
        shared_dir,
        {
            "AIRFLOW__CORE__MULTI_TEAM": "True",
            "AIRFLOW__CORE__PARALLELISM": "8",
            "AIRFLOW__CONNECTION_TEST__TIMEOUT": "600",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__CORE__DEFAULT_IMPERSONATION": "",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "2",
            "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
        },
    )
    env.env["PATH"] = f"{tools}:{env.env['PATH']}"
    env.env["LOGNAME"] = "somebody-else"
    env.run("airflow", "teams", "create", "red")
    env.env["AIRFLOW__CORE__EXECUTOR"] = executors
    env.start()
    yield env
    env.end()


def test_a_task_chooses_its_executor(env: Airflow) -> None:
    run = env.api.trigger("mixed")
    assert run.wait() == "success"
    assert "LocalExecutor" in run.xcom("by_local")
    assert "air-executor runner" in run.xcom("by_air")
    assert [record.identity.task_id for record in env.records("mixed")] == ["by_air"]


def test_a_team_has_an_executor_of_its_own(env: Airflow) -> None:
    run = env.api.trigger("of_the_team")
    assert run.wait() == "success"
    (record,) = env.records("of_the_team")
    assert record.identity.team == "red"


def test_a_deadline_calls_back_through_a_runner(env: Airflow) -> None:
    run = env.api.trigger("late")
    assert run.wait() == "success"
    assert (env.out / "deadline").read_text() == "missed"
    callbacks = wait_for(
        lambda: [r for r in env.records() if r.identity.kind == "callback" and r.reported_at], "the callback's end"
    )
    assert [r.state for r in callbacks] == [RunState.SUCCEEDED]
    assert callbacks[0].identity.dag_id == "late"


@pytest.mark.parametrize(("path", "state"), [("/", "success"), ("/no/such/folder", "failed")])
def test_a_connection_is_tested_in_a_runner(env: Airflow, path: str, state: str) -> None:
    body = {
        "connection_id": f"files_{state}",
        "conn_type": "fs",
        "extra": json.dumps({"path": path}),
        "executor": "air",
    }
    token = env.api.call("POST", "/connections/enqueue-test", body)["token"]

    def answer() -> str | None:
        found = env.api.call("GET", "/connections/enqueue-test", headers={"Airflow-Connection-Test-Token": token})
        return found["state"] if found["state"] in ("success", "failed") else None

    assert wait_for(answer, "the connection test's end") == state
    assert [r for r in env.records() if r.identity.name == f"connection test files_{state}"]


def test_a_task_runs_as_another_user(env: Airflow) -> None:
    run = env.api.trigger("impersonated")
    assert run.wait() == "success"
    assert run.xcom("as_another_user") == {"sudo": "yes", "variable": "default"}


def test_a_git_bundle_runs_at_the_version_of_its_run(env: Airflow, tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = env.home.parent / "repository"
    first = git(repository, "rev-parse", "HEAD")
    run = env.api.trigger("versioned")
    assert run.wait() == "success"
    assert run.xcom("tell") == "first"
    second = commit(repository, "second")

    def at_second() -> bool:
        return env.api.get("/dags/versioned")["bundle_version"] == second

    wait_for(at_second, "the new version to be parsed", 300, every_s=0.5)
    later = env.api.trigger("versioned")
    assert later.wait() == "success"
    assert later.xcom("tell") == "second"
    # Cleared, the first run still runs the first version.
    run.clear("tell")
    run.wait_for_state("tell", "success")
    assert run.wait() == "success"
    assert run.xcom("tell") == "first"
    assert env.api.get(run.path)["bundle_version"] == first
