"""Jobs of the standalone engine, and follow-up work, in dags."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import psutil
import pytest

from air_executor.jobs import api
from air_executor.jobs.model import JobState
from air_executor.jobs.store import JobStore
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun
from tests.support.contents import contents
from tests.support.waiting import wait_for

FOLLOW_UPS = (
    "follow_up_waves",
    "follow_up_nothing",
    "follow_up_left",
    "follow_up_continues",
    "follow_up_retried",
    "follow_up_mapped",
    "follow_up_deferred",
    "follow_up_rescheduled",
    "follow_up_too_many",
    "follow_up_chunks",
    "follow_up_chunks_continue",
)


@pytest.fixture(scope="module")
def dags() -> Sequence[str]:
    return ["air_jobs.py", "follow_ups.py", "follow_up_chunks.py"]


@pytest.fixture(scope="module")
def runs(airflow: Airflow) -> dict[str, DagRun]:
    """All DAGs with follow-up work, run side by side and ended."""
    runs = {dag_id: airflow.api.trigger(dag_id) for dag_id in FOLLOW_UPS}
    for run in runs.values():
        run.wait()
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

    three = wait_for(ended, "three runs")
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


def test_what_is_queued_before_and_after_a_deferral_arrives(runs: dict[str, DagRun]) -> None:
    assert runs["follow_up_deferred"].state == "success"
    assert runs["follow_up_deferred"].xcom("report") == ["0", "1"]


def test_what_is_queued_before_a_reschedule_arrives(runs: dict[str, DagRun]) -> None:
    assert runs["follow_up_rescheduled"].state == "success"
    assert runs["follow_up_rescheduled"].xcom("report") == ["0", "0.0", "1", "1.0"]


def test_what_is_too_much_for_one_wave_waits_for_the_next(runs: dict[str, DagRun]) -> None:
    run = runs["follow_up_chunks"]
    assert run.state == "success"
    assert run.xcom("tell") == [0, 1, 2, 3, 4, 5, 6, 10]
    assert "the other 4 wait" in run.log("follow_up_take.queued")


def test_what_is_too_much_for_all_waves_goes_on_in_another_run(airflow: Airflow, runs: dict[str, DagRun]) -> None:
    def ended() -> list[DagRun] | None:
        found = airflow.api.get("/dags/follow_up_chunks_continue/dagRuns?limit=100")["dag_runs"]
        is_over = len(found) == 2 and all(each["state"] in ("success", "failed") for each in found)
        made = [DagRun(airflow.api, "follow_up_chunks_continue", each["dag_run_id"]) for each in found]
        return made if is_over else None

    two = wait_for(ended, "two runs")
    assert [run.state for run in two] == ["success", "success"]
    assert sorted(number for run in two for number in run.xcom("tell")) == [0, 1, 2, 3, 4, 5, 6, 10]


def test_what_is_too_much_for_all_waves_fails_before_the_work_with_the_limit(runs: dict[str, DagRun]) -> None:
    run = runs["follow_up_too_many"]
    assert run.state == "failed"
    log = run.log("follow_up_dig.queued")
    assert "1100 tasks (" in log
    assert "over 1024 at most ([core] max_map_length)" in log
    assert run.states()["follow_up_dig.dig_1"] == "upstream_failed"


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


def test_what_a_connection_gives_is_in_no_file_below_the_state_directory(airflow: Airflow) -> None:
    secret = "hush-0f-the-bank"
    bank = {"connection_id": "bank", "conn_type": "http", "password": secret}
    airflow.api.call("POST", "/connections", bank)
    try:
        assert airflow.api.trigger("job_with_secrets").wait() == "success"
    finally:
        airflow.api.call("DELETE", "/connections/bank")
    said = secret.upper()
    assert sorted(airflow.effects("job_with_secrets")) == [f"{said} {said}", f"{said} {said}-0", f"{said} {said}-1"]
    files = contents(airflow.store.root)
    assert any(b"job_with_secrets" in data for data in files.values())
    assert [path for path, data in files.items() if secret.encode() in data] == []


def test_a_task_that_is_marked_cancels_its_job(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_killed")
    store = JobStore(airflow.store.root)
    job = wait_for(lambda: job_of(airflow, run), "the job")
    runner_of(airflow, job)
    run.mark("job", "failed")
    wait_for(lambda: store.open(job).job.state.is_end, "the job to be cancelled")
    assert (store.open(job).job.state, store.open(job).job.error) == (JobState.CANCELLED, "it was cancelled")


def job_of(airflow: Airflow, run: DagRun) -> str | None:
    """Return the name of the job that a run's task has made."""
    store = JobStore(airflow.store.root)
    made = ((name, store.open(name).job.made_by) for name in store.names())
    place = (run.dag_id, run.run_id)
    return next((name for name, owner in made if (owner.get("dag_id"), owner.get("run_id")) == place), None)


def runner_of(airflow: Airflow, job: str) -> psutil.Process:
    """Return the process that executes the first task of a job, once there is one."""

    def found() -> psutil.Process | None:
        run_id = api.results(job, state_dir=airflow.store.root).tasks[0].run_id
        if run_id is None or not (airflow.store.folder(run_id) / "state.json").exists():
            return None
        record = airflow.store.read(run_id)
        return psutil.Process(record.pid) if record.pid and record.task_pid else None

    return wait_for(found, f"the runner of {job}")


def wait_for_trigger(run: DagRun, try_number: int = 1) -> None:
    """Wait until a trigger waits for a job whose task runs."""
    wait_for(lambda: "1 running" in run.log("job", try_number), "the trigger")


def test_siblings_that_work_on_their_jobs_themselves_end_nothing_of_each_other(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_siblings")
    assert run.wait() == "success"
    assert sorted(airflow.effects("job_siblings")) == ["b12", "b2", "b7"]
    assert [each["try_number"] for each in run.instances()] == [1, 1, 1]


def test_a_cleared_success_does_its_job_again(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_again")
    assert run.wait() == "success"
    run.clear("job")
    wait_for(lambda: airflow.effects("job_again") == ["again", "again"], "the job to be done again")
    assert run.wait() == "success"


def test_a_cleared_failure_does_what_was_mended(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_mended")
    assert run.wait() == "failed"
    dag_file = airflow.dags / "air_jobs.py"
    dag_file.write_text(dag_file.read_text().replace("IS_MENDED = False", "IS_MENDED = True"))
    run.clear("job")
    wait_for(lambda: airflow.effects("job_mended") == ["once", "mended"], "the mended task to be done")
    assert run.wait() == "success"


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize("what", ["mark", "delete", "clear"])
def test_a_deferred_task_that_nobody_waits_for_cancels_its_job(airflow: Airflow, what: str) -> None:
    run = airflow.api.trigger("job_deferred", run_id=what)
    run.wait_for_state("job", "deferred")
    job = wait_for(lambda: job_of(airflow, run), "the job")
    runner = runner_of(airflow, job)
    wait_for_trigger(run)
    store = JobStore(airflow.store.root)
    former = store.open(job).job.made_by
    if what == "delete":
        airflow.api.call("DELETE", f"{run.path}/taskInstances/job")
    elif what == "clear":
        run.clear("job")
    else:
        run.mark("job", "failed")
    wait_for(lambda: not runner.is_running(), "the job's task to be stopped")
    if what == "mark":
        wait_for(lambda: store.open(job).job.state is JobState.CANCELLED, "the job to be cancelled")
        return

    def is_made_again() -> bool:
        # A scheduler that looked for what a run lacks just before its only task was deleted takes it for done.
        if what == "delete" and run.state == "success":
            run.begin_again()
        return store.open(job).job.made_by != former

    # The next try, or the instance that Airflow makes in place of a deleted one, does it again, and is nobody's who was
    # there before.
    wait_for(is_made_again, "the job to be made again")
    run.wait_for_state("job", "deferred")
    again = runner_of(airflow, job)
    wait_for_trigger(run, 2 if what == "clear" else 1)
    run.mark("job", "success")
    wait_for(lambda: not again.is_running(), "the job's task to be stopped")
    wait_for(lambda: store.open(job).job.state is JobState.CANCELLED, "the job to be cancelled")


@pytest.mark.usefixtures("manager")
def test_a_deferral_that_takes_too_long_cancels_the_job(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_overdue")
    assert run.wait() == "failed"
    job = job_of(airflow, run)
    assert job is not None
    wait_for(lambda: JobStore(airflow.store.root).open(job).job.state is JobState.CANCELLED, "the job to be cancelled")


@pytest.mark.usefixtures("manager")
def test_a_deferred_task_waits_on_when_its_triggerer_is_restarted(airflow: Airflow) -> None:
    run = airflow.api.trigger("job_deferred", run_id="restarted")
    run.wait_for_state("job", "deferred")
    job = wait_for(lambda: job_of(airflow, run), "the job")
    runner = runner_of(airflow, job)
    wait_for_trigger(run)
    airflow.stop("triggerer")
    airflow.start("triggerer")
    assert not JobStore(airflow.store.root).open(job).job.state.is_end
    wait_for(lambda: run.log("job").count(f"job {job} is working") >= 2, "the next trigger")
    run.mark("job", "failed")
    wait_for(lambda: not runner.is_running(), "the job's task to be stopped")


@pytest.mark.usefixtures("manager")
def test_a_deferred_task_that_no_trigger_has_taken_yet_cancels_its_job(airflow: Airflow) -> None:
    airflow.stop("triggerer")
    try:
        run = airflow.api.trigger("job_deferred", run_id="not-taken")
        run.wait_for_state("job", "deferred")
        job = wait_for(lambda: job_of(airflow, run), "the job")
        runner = runner_of(airflow, job)
        run.mark("job", "failed")
        wait_for(lambda: not runner.is_running(), "the job's task to be stopped")
        store = JobStore(airflow.store.root)
        wait_for(lambda: store.open(job).job.state is JobState.CANCELLED, "the job to be cancelled")
    finally:
        airflow.start("triggerer")
