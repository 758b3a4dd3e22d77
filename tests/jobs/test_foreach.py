"""Tasks for each of several items, a job's hooks, and variables from files."""

from __future__ import annotations

import os
from typing import Any

import orjson
import pytest

from air_executor.errors import JobError
from air_executor.jobs import api
from air_executor.jobs.model import JobState, TaskStatus
from tests.jobs.conftest import Yard
from tests.support.contents import contents
from tests.support.waiting import wait_for


def sh(task_id: str, script: str, **fields: Any) -> dict[str, Any]:
    return {"id": task_id, "command": script, "shell": True, **fields}


def statuses(yard: Yard) -> dict[str, str]:
    return {task.id: task.status.value for task in yard.tasks().values()}


# foreach


def test_a_task_runs_for_each_item_and_who_depends_on_it_waits_for_all(yard: Yard) -> None:
    yard.submit(
        sh("sizes", "echo '[3, 1, 2]' > $AIR_EXECUTOR_RESULT"),
        sh("work", "echo ${item} >> ran; echo ${item}0 > $AIR_EXECUTOR_RESULT", foreach="${tasks.sizes.result}"),
        sh("sum", "echo sum ${tasks.work.result} >> ran"),
        max_runners=3,
    )
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert sorted(yard.lines("ran")[:3]) == ["1", "2", "3"]
    assert yard.lines("ran")[3:] == ["sum [30,10,20]"]
    assert [(each.index, each.item, each.queued_by) for each in files.tasks.values() if each.index is not None] == [
        (0, 3, "work"),
        (1, 1, "work"),
        (2, 2, "work"),
    ]
    assert api.results("job", state_dir=yard.state_dir).values["work"] == [30, 10, 20]


def test_a_list_without_items_is_completed_at_once(yard: Yard) -> None:
    yard.submit(sh("work", "echo ${item} >> ran", foreach=[]), sh("next", "echo ${tasks.work.result} >> ran"))
    assert yard.finish().job.state is JobState.COMPLETED
    assert yard.lines("ran") == ["[]"]


def test_the_other_items_are_run_when_one_fails_and_only_it_is_retried(yard: Yard) -> None:
    yard.submit(
        sh(
            "work",
            "echo ${item} >> ran; [ ${item} != b ] || [ -e mended ]",
            foreach=["a", "b", "c"],
            retries=1,
            retry_delay=0,
        ),
        sh("next", "echo next >> ran", dependencies=["work"]),
    )
    files = yard.finish()
    assert files.tasks["work"].error == "1 of 3 items failed: work.1"
    assert statuses(yard)["next"] == "skipped"
    assert sorted(yard.lines("ran")) == ["a", "b", "b", "c"]
    (yard.folder / "mended").touch()
    yard.call("retry", "job", "work")
    assert yard.finish().job.state is JobState.COMPLETED
    assert yard.lines("ran")[4:] == ["b", "next"]


def test_a_reset_makes_the_items_anew(yard: Yard) -> None:
    yard.submit(sh("work", "echo ${item} >> ran", foreach=["a", "b"]))
    yard.finish()
    yard.call("reset", "job")
    assert statuses(yard) == {"work": "pending"}
    yard.finish()
    assert yard.lines("ran") == ["a", "b"] * 2


def test_what_is_no_list_fails_the_task_and_says_so(yard: Yard) -> None:
    yard.submit(sh("a", "echo 5 > $AIR_EXECUTOR_RESULT"), sh("work", "true", foreach="${tasks.a.result}"))
    assert yard.finish().tasks["work"].error == "foreach needs a list, and ${tasks.a.result} is 5"


def test_an_id_that_an_item_needs_and_another_task_has_is_said(yard: Yard) -> None:
    yard.submit(sh("work.0", "true"), sh("work", "true", foreach=[1]))
    assert yard.finish().tasks["work"].error == "foreach needs the id work.0, which another task has"


def test_cancelling_ends_a_task_with_its_items(yard: Yard) -> None:
    yard.submit(sh("work", "sleep 600", foreach=[1, 2]), sh("next", "true", dependencies=["work"], when="always"))
    yard.start_manager()
    wait_for(lambda: "work.0" in yard.tasks(), "the items")
    yard.runner_of("work.0")
    yard.call("cancel", "job")
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.CANCELLED
    assert set(statuses(yard).values()) == {"cancelled"}


def test_a_killed_manager_forgets_no_item_and_repeats_none(yard: Yard) -> None:
    yard.submit(sh("work", "echo ${item} >> ran; until [ -e go ]; do sleep 0.02; done", foreach=[1, 2, 3]))
    manager = yard.start_manager()
    wait_for(lambda: "work.0" in yard.tasks(), "the items")
    yard.runner_of("work.0")
    manager.kill()
    manager.wait()
    (yard.folder / "go").touch()
    yard.start_manager()
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    assert yard.lines("ran") == ["1", "2", "3"]


# Hooks


@pytest.mark.parametrize(
    ("command", "hook", "state"), [("true", "on_success", "completed"), ("exit 3", "on_failure", "failed")]
)
def test_a_hook_runs_when_the_job_has_ended_and_knows_how(yard: Yard, command: str, hook: str, state: str) -> None:
    script = "echo {0} $AIR_EXECUTOR_JOB_STATE: $AIR_EXECUTOR_JOB_ERROR >> hooks"
    hooks = {"on_success": script.format("good"), "on_failure": sh("x", script.format("bad"))}
    yard.submit(sh("a", command), name="job", **hooks)
    files = yard.finish()
    assert files.job.state.value == state
    assert yard.lines("hooks") == ["good completed:" if hook == "on_success" else "bad failed: 1 of 1 tasks failed: a"]
    assert statuses(yard)[hook] == "completed"


def test_a_hook_that_fails_is_told_and_changes_no_outcome(yard: Yard) -> None:
    yard.submit(sh("a", "true"), on_success="exit 4")
    files = yard.finish()
    assert (files.job.state, files.job.error) == (
        JobState.COMPLETED,
        "its on_success failed: it ended with exit code 4",
    )


def test_hooks_run_again_when_the_job_has_gone_on(yard: Yard) -> None:
    yard.submit(sh("a", "[ -e mended ]"), on_success="echo good >> hooks", on_failure="echo bad >> hooks")
    yard.finish()
    yard.call("retry", "job")
    yard.finish()
    (yard.folder / "mended").touch()
    yard.call("retry", "job")
    yard.finish()
    api.queue_tasks([sh("b", "true")], job="job", state_dir=yard.state_dir)
    yard.manager().serve(until=lambda: len(yard.lines("hooks")) == 4)
    assert yard.lines("hooks") == ["bad", "bad", "good", "good"]


def test_a_cancelled_job_calls_no_hook(yard: Yard) -> None:
    yard.submit(sh("a", "sleep 600"), on_success="echo good >> hooks", on_failure="echo bad >> hooks")
    yard.start_manager()
    yard.runner_of("a")
    yard.call("cancel", "job")
    wait_for(lambda: yard.store.open("job").job.state.is_end, "the end")
    assert yard.lines("hooks") == []


def test_a_hook_may_use_results_and_its_id_may_be_taken(yard: Yard) -> None:
    yard.submit(
        sh("a", "echo 7 > $AIR_EXECUTOR_RESULT"), sh("on_success", "true"), on_success="echo ${tasks.a.result} >> hooks"
    )
    assert yard.finish().job.state is JobState.COMPLETED
    assert yard.lines("hooks") == ["7"]
    assert list(yard.tasks()) == ["a", "on_success", "on_success_"]


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ({"comand": "x"}, "field 'on_failure', task 'on_failure': there is no field 'comand'; did you mean 'command'"),
        ({"command": "x", "dependencies": ["a"]}, "field 'on_failure': it runs alone when the job has ended"),
        ("echo ${tasks.nobody.result}", "depends on 'nobody', which is not a task of the job"),
        ("", "field 'on_failure': it must be a command line, or an object with the fields of a task"),
    ],
)
def test_a_hook_that_can_not_be_used_is_refused_at_submit(yard: Yard, hook: Any, says: str) -> None:
    with pytest.raises(JobError, match=says):
        yard.submit(sh("a", "true"), on_failure=hook)
    assert yard.store.names() == []


def test_a_hook_that_was_spoilt_by_hand_keeps_no_job_from_its_end(yard: Yard) -> None:
    yard.submit(sh("a", "true"))
    path = yard.store.folder("job") / "state.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "on_success": "echo ${tasks.nobody.result}"}))
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert "depends on 'nobody'" in (files.job.error or "")


# env_file


def test_variables_come_from_files_and_what_is_written_out_goes_before(yard: Yard) -> None:
    (yard.folder / "job.env").write_text("A=job\nB=job\nC=job\nD=job\n")
    (yard.folder / "task.env").write_text("# a comment\nexport B=\"task file\"\nC=task\nD=task\nE='$X'\n")
    script = 'echo "$A|$B|$C|$D|$E"'
    yard.submit(
        sh("a", script, env_file="task.env", env={"D": "task env"}),
        {"id": "f", "function": "os:getenv", "arguments": {"key": "B"}, "env_file": "task.env"},
        env={"C": "job env"},
        env_file="job.env",
    )
    files = yard.finish()
    assert yard.log("a") == "job|task file|job env|task env|$X\n"
    assert files.tasks["f"].result == "task file"


def test_values_from_a_file_stand_in_no_file_of_ours(yard: Yard) -> None:
    (yard.folder / ".env").write_text("TOKEN=s3cret-value\n")
    yard.submit(sh("a", "[ ${TOKEN#s3cret} = -value ]", env_file=".env"))
    assert yard.finish().job.state is JobState.COMPLETED
    assert [path for path, data in contents(yard.state_dir).items() if b"s3cret-value" in data] == []


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
        (lambda path: path.write_bytes(b"A=\xff"), "is not UTF-8 text"),
        (lambda path: path.write_bytes(b"A=x\0y"), "zero byte"),
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"#"), "is larger than"),
    ],
)
def test_a_file_that_can_not_be_used_fails_the_task_and_is_named(yard: Yard, make: Any, says: str) -> None:
    make(yard.folder / "bad.env")
    yard.submit(sh("a", "true", env_file="bad.env"), sh("b", "true"))
    files = yard.finish()
    assert files.tasks["b"].status is TaskStatus.COMPLETED
    assert files.tasks["a"].status is TaskStatus.FAILED
    assert f"the env_file {yard.folder / 'bad.env'}" in (files.tasks["a"].error or "")
    assert says in (files.tasks["a"].error or "")
    assert says in yard.log("a")
