"""What begins again when somebody asks for it, and what does not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.errors import JobError
from air_executor.jobs import api, restart
from air_executor.jobs.model import JobState, Task, TaskStatus
from air_executor.jobs.schedule import ActiveJob
from air_executor.jobs.store import JobFiles
from tests.jobs.conftest import Yard
from tests.jobs.test_scheduling import active, sh, statuses
from tests.support.waiting import wait_for


@pytest.mark.parametrize("ids", [(), ("bad",)])
def test_what_was_skipped_without_a_failure_and_what_followed_is_not_repeated(
    tmp_path: Path, ids: tuple[str, ...]
) -> None:
    job = active(
        tmp_path,
        {"id": "good", "status": "completed"},
        {"id": "mail", "dependencies": ["good"], "when": "failed", "status": "skipped"},
        {"id": "clean", "dependencies": ["mail"], "when": "always", "status": "completed"},
        {"id": "bad", "status": "failed"},
    )
    restart.retry(job.files, ids)
    assert [task.id for task in job.tasks.values() if task.status is TaskStatus.PENDING] == ["bad"]


@pytest.mark.parametrize("again", [restart.retry, restart.reset])
def test_a_task_that_begins_again_is_as_new(tmp_path: Path, again: Callable[[JobFiles], None]) -> None:
    moment = "2026-01-01T00:00:00Z"
    progress: dict[str, Any] = {"status": "failed", "tries": 3, "interruptions": 11, "error": "it", "exit_code": 3}
    progress |= {"result": 1, "cause": "b", "run_id": "r"}
    progress |= dict.fromkeys(("started_at", "completed_at", "retry_at"), moment)
    given = {"id": "a", "command": "true", "created_at": moment, "x-mine": 1, "retries": 2}
    job = active(tmp_path, {**given, **progress})
    again(job.files)
    new = Task.from_dict(given, job_name="job", where="job")
    assert job.tasks["a"] == new
    assert set(restart.PROGRESS) == {*progress, "hook"}


def test_what_was_cancelled_goes_on_whichever_task_is_retried(tmp_path: Path) -> None:
    job = active(
        tmp_path,
        {"id": "bad", "status": "failed"},
        {"id": "other", "status": "failed"},
        {"id": "left", "status": "cancelled"},
        {"id": "former", "status": "failed", "error": "not run: the job was cancelled"},
        {"id": "late", "dependencies": ["left"], "status": "skipped"},
    )
    restart.retry(job.files, ["bad"])
    assert [task.id for task in job.tasks.values() if task.status is not TaskStatus.PENDING] == ["other"]


def queueing(folder: Path, *more: dict[str, Any], **job: Any) -> ActiveJob:
    """A job in which a task that ran after a failure has queued others."""
    return active(
        folder,
        {"id": "bad", "status": "failed"},
        {"id": "after", "dependencies": ["bad"], "when": "always", "status": "completed"},
        {"id": "report", "key": "r", "queued_by": "after", "status": "completed"},
        {"id": "mail", "queued_by": "report", "dependencies": ["report"], "status": "failed"},
        {"id": "each", "foreach": [1], "dependencies": ["bad"], "when": "always", "status": "completed"},
        {"id": "each.0", "index": 0, "queued_by": "each", "status": "completed"},
        {"id": "of-item", "queued_by": "each.0", "status": "completed"},
        {"id": "on_failure", "hook": "on_failure", "status": "completed"},
        {"id": "of-hook", "queued_by": "on_failure", "status": "completed"},
        *more,
        **job,
    )


def test_what_a_task_has_queued_that_begins_again_is_removed_as_it_is_queued_anew(tmp_path: Path) -> None:
    stays = {"id": "stays", "queued_by": "(outside)", "dependencies": ["after"], "status": "completed"}
    job = queueing(tmp_path, stays)
    restart.retry(job.files)
    assert {name: task.status.value for name, task in job.tasks.items()} == dict.fromkeys(
        ("bad", "after", "each", "stays"), "pending"
    )
    assert job.files.keys == {}


@pytest.mark.parametrize("again", [restart.retry, restart.reset])
def test_nothing_changes_when_a_task_stays_that_depends_on_what_would_be_removed(
    tmp_path: Path, again: Callable[[JobFiles], None]
) -> None:
    job = queueing(tmp_path, {"id": "stays", "queued_by": "(outside)", "dependencies": ["report"]})
    before = {task.id: task.to_dict() for task in job.tasks.values()}
    with pytest.raises(JobError, match="task stays depends on report, which would be removed"):
        again(job.files)
    assert {task.id: task.to_dict() for task in job.tasks.values()} == before
    assert job.files.keys == {"r": "report"}


# With real runners


def test_a_retry_begins_what_was_skipped_and_what_followed_from_the_failure_anew(yard: Yard) -> None:
    yard.submit(
        sh("good", "echo good >> ran"),
        sh("bad", "[ -e mended ]"),
        sh("next", "echo next >> ran", dependencies=["bad"]),
        sh("mail", "echo mail >> ran", dependencies=["bad"], when="failed"),
        sh("clean", "echo clean >> ran", dependencies=["next"], when="always"),
    )
    assert yard.finish().job.state is JobState.FAILED
    (yard.folder / "mended").touch()
    yard.call("retry", "job")
    assert {status for name, status in statuses(yard).items() if name != "good"} == {"pending"}
    assert yard.finish().job.state is JobState.COMPLETED
    assert yard.lines("ran") == ["good", "mail", "clean", "next", "clean"]
    assert statuses(yard)["mail"] == "skipped"


def test_what_a_completed_task_queues_is_queued_once_when_it_begins_again(yard: Yard) -> None:
    queue = f"{sys.executable} -m air_executor.cli queue --id report -- sh -c 'echo report >> ran'"
    yard.submit(sh("bad", "[ -e mended ]"), sh("after", queue, dependencies=["bad"], when="always"))
    yard.finish()
    (yard.folder / "mended").touch()
    yard.call("retry", "job")
    assert statuses(yard) == {"bad": "pending", "after": "pending"}
    assert yard.finish().job.state is JobState.COMPLETED
    assert statuses(yard) == dict.fromkeys(("bad", "after", "report"), "completed")
    assert yard.lines("ran") == ["report"] * 2


def test_a_request_to_queue_that_is_refused_calls_no_hook_again(yard: Yard) -> None:
    yard.submit(sh("a", "true"), on_success="echo good >> hooks")
    yard.finish()
    yard.store.ask("job", "queue", [{"id": "b", "command": "true", "dependencies": ["on_success"]}])
    yard.manager(only=frozenset({"job"})).apply()
    assert statuses(yard) == {"a": "completed", "on_success": "completed"}


def test_one_of_two_failed_tasks_is_retried_and_what_needs_both_is_skipped_again(yard: Yard) -> None:
    yard.submit(sh("a", "[ -e mended ]"), sh("b", "false"), sh("c", "true", dependencies=["a", "b"]))
    yard.finish()
    (yard.folder / "mended").touch()
    yard.call("retry", "job", "a")
    assert yard.finish().job.state is JobState.FAILED
    assert statuses(yard) == {"a": "completed", "b": "failed", "c": "skipped"}


def test_a_job_of_a_former_version_with_tasks_that_were_not_run_is_retried_whole(yard: Yard) -> None:
    yard.submit(
        sh("a", "true", status="failed"),
        sh("b", "true", dependencies=["a"], status="failed", error="not run: it depends on a, which failed"),
    )
    path = yard.store.folder("job") / "state.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "state": "failed"}))
    yard.call("retry", "job", "a")
    assert yard.finish().job.state is JobState.COMPLETED


def test_tasks_that_are_queued_into_a_cancelled_job_all_run(yard: Yard) -> None:
    yard.submit(sh("a", "true"))
    yard.call("cancel", "job")
    yard.call("queue", "--job", "job", "--id", "x", "--", "true")
    yard.call("queue", "--job", "job", "--id", "y", "--after", "x", "--", "true")
    yard.call("run", "job")
    assert statuses(yard) == {"a": "cancelled", "x": "completed", "y": "completed"}


def test_what_is_queued_while_a_job_is_being_cancelled_runs_when_that_is_done(yard: Yard) -> None:
    yard.submit(sh("a", "trap '' TERM; touch began; until [ -e go ]; do sleep 0.02; done"))
    yard.start_manager()
    wait_for((yard.folder / "began").exists, "the task")
    yard.store.ask("job", "cancel")
    wait_for(lambda: yard.store.open("job").job.cancelled, "the cancellation")
    yard.call("queue", "--job", "job", "--id", "x", "--", "sh", "-c", "[ -e go ]")
    (yard.folder / "go").touch()
    wait_for(lambda: yard.tasks().get("x"), "the task that was queued")
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    assert statuses(yard) == {"a": "cancelled", "x": "completed"}
