"""Jobs of the standalone engine, and follow-up work, in dags."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from air_executor.jobs import api
from air_executor.jobs.model import JobState
from air_executor.jobs.store import JobStore
from tests.conftest import ONE_DATABASE
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun
from tests.support.waiting import wait_for

pytestmark = ONE_DATABASE

FOLLOW_UPS = (
    "follow_up_waves",
    "follow_up_nothing",
    "follow_up_left",
    "follow_up_continues",
    "follow_up_retried",
    "follow_up_mapped",
)


@pytest.fixture(scope="module")
def runs(airflow: Airflow) -> dict[str, DagRun]:
    """All dags with follow-up work, run side by side and ended."""
    runs = {dag_id: airflow.api.trigger(dag_id) for dag_id in FOLLOW_UPS}
    for run in runs.values():
        run.wait(300)
    return runs


# Follow-up work


def names(*roots: str, depth: int) -> list[str]:
    found = list(roots)
    for root in roots if depth else ():
        found += names(*(f"{root}.{number}" for number in range(2)), depth=depth - 1)
    return found


def test_what_is_queued_runs_wave_after_wave_until_nothing_is(runs: dict[str, DagRun]) -> None:
    run = runs["follow_up_waves"]
    assert run.state == "success"
    assert run.xcom("report") == sorted(names("0", "1", "2", depth=2))
    instances = [each for each in run.instances() if each["task_id"].startswith("follow_up_dig.dig_")]
    done = [each["task_id"] for each in instances if each["state"] == "success"]
    assert [done.count(f"follow_up_dig.dig_{wave}") for wave in range(1, 6)] == [3, 6, 12, 0, 0]
    assert {each["state"] for each in instances} == {"success", "skipped"}


def test_a_run_that_finds_nothing_succeeds(runs: dict[str, DagRun]) -> None:
    assert runs["follow_up_nothing"].state == "success"
    assert runs["follow_up_nothing"].xcom("report") == []


def test_what_is_left_after_the_last_wave_fails_the_run_and_is_named(runs: dict[str, DagRun]) -> None:
    run = runs["follow_up_left"]
    assert run.state == "failed"
    log = run.log("follow_up_dig.nothing_left")
    assert "4 tasks (" in log
    assert "0.0" in log
    assert "still queued after 1 waves" in log
    assert run.states()["report"] == "upstream_failed"


def test_what_is_left_goes_on_in_another_run_if_the_author_wants(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    def ended() -> list[DagRun] | None:
        found = airflow.api.get("/dags/follow_up_continues/dagRuns?limit=100")["dag_runs"]
        is_over = len(found) == 3 and all(each["state"] in ("success", "failed") for each in found)
        return [DagRun(airflow.api, "follow_up_continues", each["dag_run_id"]) for each in found] if is_over else None

    three = wait_for(ended, "three runs", 180)
    assert [run.state for run in three] == ["success"] * 3
    assert sorted(name for run in three for name in run.xcom("report")) == sorted(names("0", "1", depth=2))
    assert sorted(str(run.states()["discover"]) for run in three) == ["skipped", "skipped", "success"]
    assert runs["follow_up_continues"].states()["discover"] == "success"


def test_a_further_try_of_what_queues_does_not_double_the_work(runs: dict[str, DagRun]) -> None:
    run = runs["follow_up_retried"]
    assert run.state == "success"
    assert run.instance("discover")["try_number"] == 2
    assert run.xcom("report") == ["0", "1"]


def test_mapped_tasks_queue_together(runs: dict[str, DagRun]) -> None:
    assert runs["follow_up_mapped"].state == "success"
    assert runs["follow_up_mapped"].xcom("report") == sorted([*names("0", depth=1), *names("0", "1", depth=1)])


# Jobs


@pytest.fixture
def manager(airflow: Airflow) -> Iterator[None]:
    """A manager for the jobs of this Airflow."""
    store = JobStore(airflow.store.root)
    command = [sys.executable, "-m", "air_executor.cli.main", "start"]
    env = {**airflow.env, "AIR_EXECUTOR_STATE_DIR": str(airflow.store.root)}
    with (airflow.home / "manager.log").open("ab") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    wait_for(lambda: store.manager() is not None, "the manager")
    yield
    process.terminate()
    process.wait(120)


def test_a_task_works_on_its_job_itself(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_own")
    assert run.wait() == "success"
    assert run.xcom("job") == {"c": "/"}
    assert "2 completed" in run.log("job")


@pytest.mark.usefixtures("manager")
def test_a_task_waits_for_its_job_without_a_slot_and_so_do_sensors(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_waited_for")
    assert run.wait() == "success"
    assert [run.xcom(task_id) for task_id in ("job", "sensor_1", "sensor_2")] == [{"c": "/"}] * 3


def test_a_job_that_fails_fails_its_task_with_its_errors_and_is_gone_on_with(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_fails")
    assert run.wait() == "failed"
    assert "- bad: it ended with exit code 5" in run.log("job", 2)
    assert airflow.effects("job_fails") == ["good", "bad", "bad"]


def test_a_manager_that_is_missing_is_said(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_without_manager")
    assert run.wait() == "failed"
    assert "no manager works on the jobs below" in run.log("job")


def test_a_task_that_is_marked_cancels_its_job(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_killed")
    store = JobStore(airflow.store.root)
    name = f"job_killed.job.{run.run_id}".replace(" ", "_")

    def runs() -> bool:
        return name in store.names() and api.results(name, state_dir=airflow.store.root).tasks[0].run_id is not None

    wait_for(runs, "the job's task to run")
    run.mark("job", "failed")
    wait_for(lambda: store.open(name).job.state.is_end, "the job to be cancelled")
    assert (store.open(name).job.state, store.open(name).job.error) == (JobState.CANCELLED, "it was cancelled")
