"""Whatever is done ahead, users see what LocalExecutor shows: logs, states, XComs, audit entries, listeners."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import airflow_env
from tests.support.airflow_env import REPOSITORY, Airflow
from tests.support.sameness import WARNS_OF_ITSELF, Normaliser, differences, logs_of, rows_of
from tests.support.waiting import wait_for

#: What was executed in one way is kept for all tests.
pytestmark = [pytest.mark.core, pytest.mark.timeout(1800)]

#: Returns what was seen in one of the ways.
Outcome = Callable[[str], dict[str, list[str]]]

AIR = {"AIRFLOW__CORE__EXECUTOR": "air_executor.AirExecutor"}

#: The ways to run a task, by the id of the run that is executed so; the first is what the others are compared with.
WAYS = {
    "local": {"AIRFLOW__CORE__EXECUTOR": "LocalExecutor"},
    "rehearsed": AIR,
    "fresh": {**AIR, "AIRFLOW__AIR_EXECUTOR__PRELOAD": "off"},
    "exec": {**AIR, "AIRFLOW__AIR_EXECUTOR__LAUNCH": "exec"},
}

OPTIONS = {
    "AIRFLOW__LOGGING__NAMESPACE_LEVELS": "chatty=DEBUG",
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW_CONN_SAME_CONNECTION": json.dumps(
        {"conn_type": "http", "host": "x", "login": "me", "password": "sesame-c"}
    ),
    "AIRFLOW_VAR_SAME_PASSWORD": "sesame-v",
    "AIRFLOW_VAR_SAME_OPEN": "wide open",
}

#: Attempts of LocalExecutor, and of the others.
ATTEMPTS, OTHERS_ATTEMPTS = 10, 2

#: What the API server answers to a success that is reported again, because its first answer came too late. That happens
#: on a slow machine with SQLite, whatever the executor.
SENT_TWICE = "'previous_state': 'success'"

TABLES = (
    "task_instance", "task_instance_history", "xcom", "rendered_task_instance_fields", "log", "asset_event", "dag_run",
)  # fmt: skip


def lines(path: Path, run_id: str, normaliser: Normaliser) -> list[str]:
    found = (json.loads(line) for line in path.read_text().splitlines())
    return sorted(normaliser.line(line) for line in found if line.get("run_id") == run_id)


def seen(env: Airflow, run_id: str) -> dict[str, list[str]]:
    """Return all that users can see of a run."""
    normaliser = Normaliser((run_id, "<run>"), (str(env.home), "<home>"))
    return {
        **logs_of(env.home / "logs" / "dag_id=same" / f"run_id={run_id}", normaliser),
        **rows_of(env.home / "airflow.db", run_id, normaliser, TABLES),
        "listener": lines(env.out / "heard", run_id, normaliser),
        "callbacks": lines(env.out / "callbacks", run_id, normaliser),
    }


def is_written(env: Airflow, run_id: str) -> bool:
    """Tell whether nobody writes to a log of the run's tasks any more: that is the last that is done for a task."""
    folder = str(env.home / "logs" / "dag_id=same" / f"run_id={run_id}")
    for process in env.ours():
        with contextlib.suppress(psutil.Error):
            if any(each.path.startswith(folder) and ".trigger." not in each.path for each in process.open_files()):
                return False
    return True


def is_spoiled(found: dict[str, list[str]], way: str) -> bool:
    """Tell whether Airflow's own parts have made a run other than it should be.

    LocalExecutor fails tasks that are rescheduled when they are due again before the scheduler has heard that they had
    ended.
    """
    by_mistake = way == "local" and any("state mismatch" in line for line in found["log"])
    return by_mistake or any(SENT_TWICE in line for lines in found.values() for line in lines)


def first_good_run(env: Airflow, way: str) -> dict[str, list[str]]:
    """Return what was seen of the first run that is not spoiled."""
    for attempt in range(ATTEMPTS if way == "local" else OTHERS_ATTEMPTS):
        run = env.api.trigger("same", run_id=f"run-{way}-{attempt}")
        run.wait(600)
        wait_for(lambda run=run: is_written(env, run.run_id), "its tasks' processes to be done")  # type: ignore[misc]
        found = seen(env, run.run_id)
        if not is_spoiled(found, way):
            break
        print(f"{run.run_id} is spoiled")
    return found


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Iterator[Outcome]:
    """What is seen in a way. One Airflow, whose scheduler has another executor each time."""
    home = tmp_path_factory.mktemp("same") / "home"
    env = airflow_env.make(home, shared_dir, OPTIONS, dags=[], is_quick=False)
    for folder, name in (("dags", "same.py"), ("plugins", "listening.py"), ("config", "airflow_local_settings.py")):
        (home / folder).mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "tests" / "same_dags" / name, home / folder)
    env.split_api_server()
    env.start("api-server", "dag-processor", "triggerer")

    @functools.cache
    def outcome(way: str) -> dict[str, list[str]]:
        shutil.rmtree(env.store.root, ignore_errors=True)
        before = dict(env.env)
        env.env.update(WAYS[way])
        env.start("scheduler")
        found = first_good_run(env, way)
        # LocalExecutor now and then waits for a worker of its own that never ends. All tasks have.
        env.stop("scheduler", signum=signal.SIGKILL if way == "local" else signal.SIGTERM)
        env.env = before
        return found

    try:
        yield outcome
    finally:
        env.end()


@pytest.mark.parametrize(
    "way",
    ["rehearsed", *(pytest.param(way, marks=pytest.mark.by_turns) for way in ("fresh", "exec"))],
)
def test_users_see_what_they_see_with_localexecutor(way: str, outcome: Outcome) -> None:
    found = [
        line
        for line in differences(outcome("local"), outcome(way))
        if not (line[0] == "-" and WARNS_OF_ITSELF.search(line))
    ]
    assert found == [], "\n".join(found)
