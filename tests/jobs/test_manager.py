"""Jobs from their files to their end: with a real launcher, real runners and real commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from air_executor.errors import JobError, ManagedError, StateDirError
from air_executor.jobs import api
from air_executor.jobs.model import JobState, TaskStatus
from air_executor.machine.sizes import mebibytes
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.jobs.conftest import Yard
from tests.support import machine
from tests.support.waiting import wait_for

#: What the functions of these tests' tasks are.
WORK = """
import os, sys, time
from pathlib import Path
from air_executor.jobs import queue_tasks

def square(n):
    print("squaring", n)
    return {"square": n * n}

def fail(why):
    raise ValueError(why)

def odd():
    return object()

def leave(code):
    sys.exit(code)

def long_text():
    return "x" * 100_000

def split(n, fails=False):
    ids = queue_tasks([{"id": f"part-{i}", "command": "true"} for i in range(n)])
    queue_tasks([{"id": "join", "command": "true", "dependencies": ids}])
    tries = int(os.environ["AIR_EXECUTOR_TRY"])
    if fails and tries == 1:
        raise RuntimeError("after queueing")
"""


def sh(task_id: str, script: str, **fields: Any) -> dict[str, Any]:
    return {"id": task_id, "command": script, "shell": True, **fields}


def statuses(yard: Yard, name: str = "job") -> dict[str, str]:
    return {task.id: task.status.value for task in yard.tasks(name).values()}


@pytest.fixture(autouse=True)
def _work(yard: Yard) -> None:
    (yard.folder / "work.py").write_text(WORK)


# Commands and functions


def test_tasks_run_in_the_order_of_their_dependencies(yard: Yard) -> None:
    yard.submit(
        sh("complete", "echo complete >> order", dependencies=["process"]),
        sh("process", "echo process >> order; echo said", dependencies=["greet"]),
        sh("greet", "echo greet >> order"),
    )
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert yard.lines("order") == ["greet", "process", "complete"]
    assert yard.log("process") == "said\n"
    task = files.tasks["process"]
    assert (task.status, task.exit_code, task.tries, task.error) == (TaskStatus.COMPLETED, 0, 1, None)
    assert (task.created_at or "") < (task.started_at or "") < (task.completed_at or "")


def test_a_job_without_tasks_is_completed_at_once(yard: Yard) -> None:
    yard.submit()
    assert yard.finish().job.state is JobState.COMPLETED


def test_one_runner_at_a_time_unless_a_job_may_have_more(yard: Yard) -> None:
    script = "echo begin >> {0}; {1}; echo end >> {0}"
    yard.submit(*(sh(f"t{n}", script.format("alone", "sleep 0.02")) for n in range(6)), name="alone")
    # Each of three waits for the others to have begun.
    meet = "until [ $(grep -c begin together) = 3 ]; do sleep 0.02; done"
    yard.submit(*(sh(f"t{n}", script.format("together", meet)) for n in range(3)), name="together", max_runners=3)
    yard.finish("alone")
    yard.finish("together")
    assert yard.lines("alone") == ["begin", "end"] * 6
    assert yard.lines("together") == ["begin"] * 3 + ["end"] * 3


def test_a_global_limit_holds_for_all_jobs_together(yard: Yard) -> None:
    for name in ("one", "two", "three"):
        yard.submit(*(sh(f"t{n}", "echo begin >> all; sleep 0.02; echo end >> all") for n in range(3)), name=name)
    yard.manager(max_runners=1).serve(
        until=lambda: all(yard.store.open(name).job.state.is_end for name in ("one", "two", "three"))
    )
    assert yard.lines("all") == ["begin", "end"] * 9


def test_a_task_has_its_variables_and_its_working_directory(yard: Yard) -> None:
    (yard.folder / "sub").mkdir()
    yard.submit(
        sh("a", "echo $A $B $AIR_EXECUTOR_JOB $AIR_EXECUTOR_TASK $AIR_EXECUTOR_TRY; pwd", env={"B": "task"}, cwd="sub"),
        env={"A": "job", "B": "job"},
    )
    yard.finish()
    assert yard.log("a").splitlines() == ["job task job a 1", str(yard.folder / "sub")]


@pytest.mark.parametrize(
    ("task", "code", "says"),
    [
        (sh("a", "exit 3"), 3, "it ended with exit code 3"),
        ({"command": "nosuch"}, 127, "the command 'nosuch' cannot be executed: No such file or directory"),
        ({"command": "/etc/passwd"}, 126, "the command '/etc/passwd' cannot be executed: Permission denied"),
        ({"command": "true", "cwd": "nowhere"}, 127, "nowhere cannot be used: No such file or directory"),
        ({"command": "/tmp", "cwd": "/tmp"}, 126, "the command '/tmp' cannot be executed: Permission denied"),
        ({"command": "nowhere", "cwd": "nowhere"}, 127, "nowhere cannot be used: No such file or directory"),
        ({"function": "work:fail", "cwd": "nowhere"}, 127, "nowhere cannot be used: No such directory"),
        (sh("a", "kill -9 $$"), None, "it was killed by SIGKILL (signal 9)"),
        (sh("a", "sleep 600", timeout=0.1), None, "wall time limit of 0.1 s reached"),
        ({"function": "work:fail", "arguments": {"why": "no reason"}}, 1, "ValueError: no reason"),
        ({"function": "work:odd"}, 1, "work:odd returned what is not JSON"),
        ({"function": "work:long_text"}, 1, "write what is larger than 64 KiB to a file"),
        ({"function": "work:leave", "arguments": {"code": 7}}, 7, "it ended with exit code 7"),
        ({"function": "work:nothing"}, 1, "AttributeError: module 'work' has no attribute 'nothing'"),
        ({"function": "nomodule:f"}, 1, "ModuleNotFoundError: No module named 'nomodule'"),
        ({"command": "true", "limits": {"cpus": 100_000}}, None, "executor_config['air']['cpus']"),
    ],
)
def test_a_task_that_fails_says_why(yard: Yard, task: dict[str, Any], code: int | None, says: str) -> None:
    yard.submit({"id": "a", **task})
    files = yard.finish()
    assert (files.job.state, files.job.error) == (JobState.FAILED, "1 of 1 tasks failed: a")
    assert files.tasks["a"].exit_code == code
    assert says in (files.tasks["a"].error or "")


def test_a_function_with_a_segmentation_fault_says_where(yard: Yard) -> None:
    yard.submit({"id": "a", "function": "tests.support.deaths:segmentation_fault"})
    task = yard.finish().tasks["a"]
    assert "it was killed by SIGSEGV (signal 11)" in (task.error or "")
    assert "Fatal Python error: Segmentation fault" in yard.log("a")
    assert " in segmentation_fault" in yard.log("a")


def test_a_task_is_killed_for_what_its_processes_hold_together_and_the_peak_is_on_record(yard: Yard) -> None:
    code = "import os, signal; [os.fork() for _ in range(2)]; held = b'x' * (50 << 20); signal.pause()"
    yard.submit({"id": "a", "command": sys.executable, "args": ["-c", code], "limits": {"memory": "120MiB"}})
    error = yard.finish().tasks["a"].error or ""
    assert "memory limit of 120 MiB reached; peak " in error
    [record] = RunStore(yard.state_dir).records()
    assert record.state is RunState.KILLED
    assert 120 << 20 < (record.peak_memory_bytes or 0) < 260 << 20
    assert f"peak {mebibytes(record.peak_memory_bytes or 0)}" in error


def test_a_function_gets_its_arguments_and_its_result_is_kept(yard: Yard) -> None:
    yard.submit({"id": "a", "function": "work:square", "arguments": {"n": 7}})
    assert yard.finish().tasks["a"].result == {"square": 49}
    assert yard.log("a") == "squaring 7\n"


def test_a_failed_task_is_tried_again_and_each_try_is_logged(yard: Yard) -> None:
    script = "echo try >> tries; echo try; [ $(wc -l < tries) = 3 ]"
    yard.submit(sh("a", script, retries=5, retry_delay=0.01), sh("b", "true", dependencies=["a"]))
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert (files.tasks["a"].tries, files.tasks["a"].error) == (3, None)
    lines = yard.log("a").splitlines()
    assert lines[::2] == ["try"] * 3
    assert [line.partition(" begins at ")[0] for line in lines[1::2]] == ["-- try 2", "-- try 3"]


def test_what_depends_on_a_failed_task_is_not_run_and_the_rest_is(yard: Yard) -> None:
    yard.submit(
        sh("bad", "exit 1", retries=1, retry_delay=0.01),
        sh("after", "echo after >> ran", dependencies=["bad"]),
        sh("later", "echo later >> ran", dependencies=["after"]),
        sh("other", "echo other >> ran"),
    )
    files = yard.finish()
    assert yard.lines("ran") == ["other"]
    assert files.tasks["bad"].tries == 2
    assert statuses(yard) == {"bad": "failed", "after": "skipped", "later": "skipped", "other": "completed"}
    assert files.tasks["after"].error == "not run: it depends on bad, which failed"
    assert files.tasks["later"].error == "not run: it depends on after, which was skipped as bad failed"
    assert (files.job.state, files.job.error) == (JobState.FAILED, "1 of 4 tasks failed: bad")


def test_what_a_task_leaves_behind_ends_with_it(yard: Yard) -> None:
    yard.submit(sh("a", "sleep 600 & echo $!"))
    yard.finish()
    assert not psutil.pid_exists(int(yard.log("a")))


# More tasks


def test_a_task_queues_more_and_they_run(yard: Yard) -> None:
    yard.submit({"id": "split", "function": "work:split", "arguments": {"n": 5}}, max_runners=2)
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert list(files.tasks) == ["split", *(f"part-{n}" for n in range(5)), "join"]
    assert {task.queued_by for task in list(files.tasks.values())[1:]} == {"split"}


def test_what_a_failed_task_queued_goes_and_its_next_try_queues_it_once(yard: Yard) -> None:
    arguments = {"n": 3, "fails": True}
    yard.submit({"id": "split", "function": "work:split", "arguments": arguments, "retries": 1, "retry_delay": 0.01})
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert list(files.tasks) == ["split", "part-0", "part-1", "part-2", "join"]
    assert files.tasks["split"].tries == 2


def queue(*arguments: str) -> str:
    return f"{sys.executable} -m air_executor.cli.main queue {' '.join(arguments)}"


def test_a_shell_task_queues_more(yard: Yard) -> None:
    last = queue("--after", "b", "--after", "a", "--key", "k", "--", "true")
    script = f"{queue('--id', 'b', '--', 'echo', '--x')} && {last}"
    yard.submit(sh("a", f"{script}; {queue('--key', 'k', '--', 'false')}", env=yard.env))
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED, files.tasks
    assert len(files.tasks) == 3
    assert yard.log("b") == "--x\n"


def test_tasks_that_queue_at_the_same_time_lose_nothing(yard: Yard) -> None:
    one = "from air_executor.jobs import queue_tasks; import os; me = os.environ['AIR_EXECUTOR_TASK'];"
    one += (
        "[queue_tasks([{'id': f'{me}.{n}', 'command': 'true', 'key': f'{n}'}, {'command': 'true'}]) for n in range(5)]"
    )
    yard.submit(
        *({"id": f"t{n}", "command": sys.executable, "args": ["-c", one], "env": yard.env} for n in range(6)),
        max_runners=4,
    )
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert len(files.tasks) == 6 + 5 + 6 * 5
    assert len(files.keys) == 5


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ([{"id": "a", "command": "true"}], "there are two tasks 'a'"),
        ([{"id": "b", "command": "true", "dependencies": ["nobody"]}], "depends on 'nobody', which is not a task"),
        (
            [
                {"id": "b", "command": "true", "dependencies": ["c"]},
                {"id": "c", "command": "true", "dependencies": ["b"]},
            ],
            "b → c → b",
        ),
        ([{"id": "../b", "command": "true"}], "cannot be a task's id"),
        ([{"id": "b"}], "it needs a command or a function"),
    ],
)
def test_what_can_not_be_queued_is_refused_at_once_and_the_task_goes_on(
    yard: Yard, tasks: list[dict[str, Any]], says: str
) -> None:
    code = f"""
from air_executor.errors import JobError
from air_executor.jobs import queue_tasks
queue_tasks([{{"id": "first", "command": "true"}}])
try:
    queue_tasks({tasks!r})
except JobError as error:
    print(error)
"""
    yard.submit({"id": "a", "command": sys.executable, "args": ["-c", code], "env": yard.env})
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert says in yard.log("a")
    assert list(files.tasks) == ["a", "first"]


def test_queueing_outside_of_a_task_needs_the_name_of_a_job(yard: Yard) -> None:
    with pytest.raises(JobError, match="this process is not a task of a job"):
        api.queue_tasks([{"command": "true"}])
    with pytest.raises(JobError, match="there is no job nobody below"):
        api.queue_tasks([{"command": "true"}], job="nobody", state_dir=yard.state_dir)


def test_tasks_from_outside_reach_a_job_that_runs_and_one_that_has_ended(yard: Yard) -> None:
    yard.submit(sh("a", "until [ -e go ]; do sleep 0.02; done"))
    yard.start_manager()
    yard.runner_of("a")
    api.queue_tasks([sh("b", "true", dependencies=["a"])], job="job", state_dir=yard.state_dir)
    wait_for(lambda: "b" in yard.tasks(), "the task to be taken in")
    (yard.folder / "go").touch()
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    api.queue_tasks([sh("c", "true")], job="job", state_dir=yard.state_dir)
    wait_for(lambda: statuses(yard).get("c") == "completed", "the later task")


# What people ask


def test_a_job_that_is_cancelled_ends_what_runs_and_does_not_begin_the_rest(yard: Yard) -> None:
    yard.submit(sh("a", "sleep 600"), sh("b", "echo b >> ran"), sh("c", "true", dependencies=["a"]))
    yard.start_manager()
    runner = yard.runner_of("a")
    assert "cancelled" in yard.call("cancel", "job")
    done = api.wait("job", timeout_s=120, state_dir=yard.state_dir)
    assert (done.job.state, done.job.error) == (JobState.CANCELLED, "it was cancelled")
    assert {task.status for task in done.tasks} == {TaskStatus.CANCELLED}
    assert [task.error for task in done.tasks] == [
        "stopped: the job was cancelled",
        "not run: the job was cancelled",
        "not run: the job was cancelled",
    ]
    assert yard.lines("ran") == []
    wait_for(lambda: not runner.is_running(), "the runner to end")


def test_failed_tasks_are_retried_when_somebody_asks(yard: Yard) -> None:
    yard.submit(sh("good", "echo good >> ran"), sh("bad", "[ -e mended ]"), sh("after", "true", dependencies=["bad"]))
    assert yard.finish().job.state is JobState.FAILED
    (yard.folder / "mended").touch()
    assert yard.call("retry", "job") == "job job: waiting\n"
    assert statuses(yard) == {"good": "completed", "bad": "pending", "after": "pending"}
    assert yard.finish().job.state is JobState.COMPLETED
    assert yard.lines("ran") == ["good"]


def test_a_job_that_is_reset_begins_anew_without_what_was_queued(yard: Yard) -> None:
    yard.submit({"id": "split", "function": "work:split", "arguments": {"n": 2}})
    yard.finish()
    yard.call("reset", "job")
    assert statuses(yard) == {"split": "pending"}
    assert yard.finish().job.state is JobState.COMPLETED
    assert len(yard.tasks()) == 4


# Deaths


def test_two_managers_never_work_on_the_same_jobs(yard: Yard) -> None:
    yard.start_manager()
    with pytest.raises(ManagedError, match="another manager works on the jobs"):
        yard.manager().serve()
    assert "a manager works here already" in yard.call("start", code=1)


def test_jobs_that_are_run_side_by_side_have_a_manager_each(yard: Yard) -> None:
    for name, other in (("one", "two"), ("two", "one")):  # each waits for the other to have begun
        yard.submit(sh("a", f"touch {name}; until [ -e {other} ]; do sleep 0.02; done"), name=name)
    runs = [subprocess.Popen(yard.command("run", name), env=yard.env, cwd=yard.folder) for name in ("one", "two")]
    assert [run.wait(120) for run in runs] == [0, 0]


def test_a_job_that_its_manager_leaves_is_taken_by_who_waits_for_it(yard: Yard) -> None:
    yard.submit(sh("a", "echo a >> began; until [ -e go ]; do sleep 0.02; done"), sh("b", "echo b >> began"))
    first = subprocess.Popen(yard.command("run", "job"), env=yard.env, cwd=yard.folder)
    yard.runner_of("a")
    with pytest.raises(ManagedError, match="another manager works on job job"):
        yard.manager(only=frozenset({"job"})).serve()
    second = subprocess.Popen(yard.command("run", "job"), env=yard.env, cwd=yard.folder)
    manager = yard.start_manager()
    first.kill()
    first.wait()
    (yard.folder / "go").touch()
    assert second.wait(120) == 0
    assert yard.lines("began") == ["a", "b"]
    assert manager.poll() is None


def test_what_runs_when_the_manager_is_killed_goes_on_and_is_taken_over(yard: Yard) -> None:
    yard.submit(
        sh("a", "echo a >> began"),
        sh("b", "echo b >> began; until [ -e go ]; do sleep 0.02; done; echo done"),
        sh("c", "echo c >> began"),
    )
    manager = yard.start_manager()
    runner = yard.runner_of("b")
    manager.kill()
    manager.wait()
    assert runner.is_running()
    yard.start_manager()
    (yard.folder / "go").touch()
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    assert yard.lines("began") == ["a", "b", "c"]
    assert yard.tasks()["b"].tries == 1


def test_what_ended_while_no_manager_was_there_is_not_repeated(yard: Yard) -> None:
    yard.submit(sh("a", "echo a >> began; until [ -e go ]; do sleep 0.02; done"), sh("b", "echo b >> began"))
    manager = yard.start_manager()
    runner = yard.runner_of("a")
    manager.kill()
    manager.wait()
    (yard.folder / "go").touch()
    wait_for(lambda: not runner.is_running(), "the runner to end")
    assert statuses(yard) == {"a": "running", "b": "pending"}
    yard.start_manager()
    api.wait("job", timeout_s=120, state_dir=yard.state_dir)
    assert yard.lines("began") == ["a", "b"]


def test_a_task_whose_runner_is_killed_dies_with_it_and_is_begun_again(yard: Yard) -> None:
    yard.submit(sh("a", "echo $$ >> pids; [ $(wc -l < pids) = 2 ] || sleep 600"))
    yard.start_manager()
    runner = yard.runner_of("a")
    wait_for(lambda: yard.lines("pids"), "the task to note its pid")
    runner.kill()
    done = api.wait("job", timeout_s=120, state_dir=yard.state_dir)
    assert done.job.state is JobState.COMPLETED
    assert (done.tasks[0].tries, done.tasks[0].interruptions) == (1, 1)
    assert not psutil.pid_exists(int(yard.lines("pids")[0]))


def test_a_launcher_that_is_killed_takes_no_task_with_it(yard: Yard) -> None:
    yard.submit(sh("a", "echo a >> began; until [ -e go ]; do sleep 0.02; done"), sh("b", "echo b >> began"))
    yard.start_manager()
    yard.runner_of("a")
    [launcher] = wait_for(yard.launchers, "the launcher to answer")
    launcher.kill()
    (yard.folder / "go").touch()
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    assert yard.lines("began") == ["a", "b"]


def test_a_manager_that_is_told_to_stop_leaves_what_runs(yard: Yard) -> None:
    yard.submit(sh("a", "until [ -e go ]; do sleep 0.02; done"))
    manager = yard.start_manager()
    runner = yard.runner_of("a")
    yard.call("stop", "--wait")
    assert manager.wait(120) == 0
    assert runner.is_running()
    (yard.folder / "go").touch()
    assert yard.finish().job.state is JobState.COMPLETED


# What people do to files


def git(yard: Yard, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=yard.folder, check=True, capture_output=True)


def test_an_earlier_state_from_git_is_resumed_from(yard: Yard) -> None:
    yard.call("init")
    yard.submit(sh("a", "echo a >> ran"), sh("b", "[ -e go ] && echo b >> ran", dependencies=["a"]))
    yard.finish()
    git(yard, "init", "-q")
    git(yard, "add", ".air-executor")
    git(yard, "commit", "-qm", "b failed")
    assert sorted(os.listdir(yard.state_dir / "jobs" / "job")) != ["state.json", "tasks.json"]
    listed = subprocess.run(["git", "ls-files"], cwd=yard.folder, check=True, capture_output=True, text=True).stdout
    assert sorted(Path(line).name for line in listed.split()) == [
        ".gitignore",
        ".gitignore",
        "state.json",
        "tasks.json",
    ]
    (yard.folder / "go").touch()
    yard.call("retry", "job")
    assert yard.finish().job.state is JobState.COMPLETED
    git(yard, "checkout", ".air-executor")
    assert statuses(yard) == {"a": "completed", "b": "failed"}
    yard.call("retry", "job")
    assert yard.finish().job.state is JobState.COMPLETED
    assert yard.lines("ran") == ["a", "b", "b"]


def test_a_task_that_is_written_into_the_file_by_hand_runs(yard: Yard) -> None:
    yard.submit(sh("a", "until [ -e go ]; do sleep 0.02; done"))
    yard.start_manager()
    yard.runner_of("a")
    wait_for(lambda: yard.has_written("a", "running"), "the file to be written")
    path = yard.store.folder("job") / "tasks.json"
    document = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps([*document, sh("b", "true")]))
    wait_for(lambda: "b" in yard.tasks() and yard.tasks()["b"].created_at, "the task to be taken in")
    (yard.folder / "go").touch()
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    assert yard.tasks()["a"].tries == 1


def test_a_file_that_is_spoilt_by_hand_is_set_aside_and_the_job_goes_on(yard: Yard) -> None:
    yard.submit(sh("a", "until [ -e go ]; do sleep 0.02; done"), sh("b", "true"))
    yard.start_manager()
    yard.runner_of("a")
    wait_for(lambda: yard.has_written("a", "running"), "the file to be written")
    folder = yard.store.folder("job")
    (folder / "tasks.json").write_text("[{")
    wait_for(lambda: list(folder.glob("tasks.json.unreadable-*")), "the spoilt file to be set aside")
    (yard.folder / "go").touch()
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    assert "is not JSON" in "".join(yard.lines("manager.log"))


def test_a_job_that_can_not_be_understood_keeps_no_other_from_running(yard: Yard) -> None:
    yard.submit(sh("a", "true"), name="bad")
    yard.submit(sh("a", "true"), name="good")
    (yard.store.folder("bad") / "tasks.json").write_text("[{")
    yard.start_manager()
    assert api.wait("good", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    (yard.store.folder("bad") / "tasks.json").write_text('[{"id": "a", "command": "true"}]')
    assert api.wait("bad", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED


def test_a_job_whose_folder_is_removed_ends(yard: Yard) -> None:
    yard.submit(sh("a", "sleep 600"))
    yard.start_manager()
    runner = yard.runner_of("a")
    yard.store.folder("job").rename(yard.folder / "away")
    wait_for(lambda: not runner.is_running(), "the task to be stopped")
    yard.submit(sh("a", "true"), name="next")
    assert api.wait("next", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED


def test_a_runner_whose_state_directory_is_removed_ends(yard: Yard) -> None:
    yard.submit(sh("a", "until [ -e go ]; do sleep 0.02; done"))
    manager = yard.start_manager()
    runner = yard.runner_of("a")
    manager.kill()
    yard.state_dir.rename(yard.folder / "away")
    (yard.folder / "go").touch()
    try:
        wait_for(lambda: not runner.is_running(), "the runner to end")
    finally:
        (yard.folder / "away").rename(yard.state_dir)


def test_a_job_whose_files_can_not_be_written_waits_until_they_can(yard: Yard) -> None:
    yard.submit(sh("a", "true"), sh("b", "true"))
    obstacle = yard.store.folder("job") / "journal.jsonl"
    obstacle.mkdir()
    yard.start_manager()
    wait_for(lambda: "can't be worked on" in "".join(yard.lines("manager.log")), "the complaint")
    obstacle.rmdir()
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    assert [task.tries for task in yard.tasks().values()] == [1, 1]


@machine.needs_root
@pytest.mark.parametrize("fault", ["full", "read_only"])
def test_on_a_disk_that_takes_nothing_more_a_job_waits_until_it_does(
    new_yard: Callable[..., Yard], tmp_path: Path, fault: str
) -> None:
    disk = machine.SmallDisk(tmp_path / "disk")
    disk.folder.mkdir()
    with disk.mounted():
        yard = new_yard(disk.folder / api.FOLDER)
        yard.submit(
            sh("a", "echo a >> began; until [ -e go ]; do sleep 0.02; done"),
            sh("b", "echo b >> began", dependencies=["a"]),
            sh("c", "echo c >> began"),
            max_runners=2,
        )
        yard.start_manager()
        runner = yard.runner_of("a")
        # Once the manager has written that, nothing of the job is due.
        wait_for(lambda: yard.has_written("c", "completed"), "the task beside it")
        with getattr(disk, fault)():
            (yard.folder / "go").touch()
            wait_for(lambda: not runner.children(), "the task to end")
            assert runner.is_running()
            assert statuses(yard) == {"a": "running", "b": "pending", "c": "completed"}
            with pytest.raises(StateDirError):
                yard.submit(sh("a", "true"), name="refused")
            with pytest.raises(StateDirError):
                api.queue_tasks([sh("d", "true")], job="job", state_dir=yard.state_dir)
        assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
        assert sorted(yard.lines("began")) == ["a", "b", "c"]
        assert yard.store.names() == ["job"]
        yard.end()


def test_a_wait_before_a_further_try_does_not_grow_when_the_clock_is_set_back(yard: Yard) -> None:
    later = datetime.now(tz=timezone.utc) + timedelta(hours=1)
    yard.submit(sh("a", "true", tries=1, retries=1, retry_delay=0.01, retry_at=later.isoformat()))
    assert yard.finish().tasks["a"].tries == 2


def test_output_of_gigabytes_goes_to_the_log_and_through_nobody(yard: Yard) -> None:
    # A hole of 3 GB needs no room on the disk.
    hole = "import os; os.ftruncate(1, 3 * 2**30); os.write(1, b'the end')"
    yard.submit(
        sh("real", "head -c 200000000 /dev/zero"), {"id": "hole", "command": sys.executable, "args": ["-c", hole]}
    )
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert files.log_file("real").stat().st_size == 200_000_000
    assert files.log_file("hole").stat().st_size == 3 * 2**30 + len("the end")
    command = yard.command("logs", "job", "hole")
    with subprocess.Popen(command, env=yard.env, cwd=yard.folder, stdout=subprocess.PIPE) as logs:
        assert logs.stdout
        assert logs.stdout.read(10) == bytes(10)
        logs.stdout.close()
        assert logs.wait(120) == 0


def test_a_job_goes_on_where_its_folder_was_moved_to(yard: Yard, new_yard: Callable[..., Yard]) -> None:
    (yard.folder / "here").mkdir()
    yard.submit(sh("a", "pwd"), folder=yard.folder / "here")
    assert orjson.loads((yard.store.folder("job") / "state.json").read_bytes())["folder"] == "here"
    moved = yard.folder / "moved"
    moved.mkdir()
    for name in ("here", api.FOLDER):
        (yard.folder / name).rename(moved / name)
    yard = new_yard(moved / api.FOLDER)
    yard.finish()
    assert yard.log("a").strip() == str(moved / "here")


def test_waiting_for_a_job_that_does_not_end_gives_up(yard: Yard) -> None:
    yard.submit(sh("a", "true"))
    with pytest.raises(JobError, match="job job is waiting after 0 s"):
        api.wait("job", timeout_s=0, state_dir=yard.state_dir)


def test_signals_end_a_foreground_run_and_the_job_goes_on_later(yard: Yard) -> None:
    yard.submit(sh("a", "echo a >> began; [ $(wc -l < began) = 2 ] || sleep 600"))
    run = subprocess.Popen(yard.command("run", "job"), env=yard.env, cwd=yard.folder, stderr=subprocess.PIPE, text=True)
    runner = yard.runner_of("a")
    wait_for(lambda: yard.lines("began"), "the task to begin")
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 130
    assert "job job was interrupted; `air-executor run job` goes on with it" in said
    assert "begun again" not in said
    assert not runner.is_running()
    assert statuses(yard) == {"a": "pending"}
    assert yard.tasks()["a"].interruptions == 0  # its user's, not the task's
    assert yard.finish().job.state is JobState.COMPLETED


def test_a_launcher_of_jobs_has_practised_and_left_no_trace(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("_AIRFLOW_PROCESS_CONTEXT", raising=False)  # an Airflow that another test imported has set it
    yard.submit({"id": "a", "command": "umask; ulimit -a; pwd; env", "shell": True})
    yard.finish()
    [log] = (yard.store.root.parent / "launchers").glob("*.log")
    assert log.read_text() == ""
    here = {**os.environ, "PWD": str(yard.folder)}
    said = yard.log("a").splitlines()
    plain = subprocess.run(
        ["/bin/sh", "-c", "umask; ulimit -a; pwd; env"], env=here, cwd=yard.folder, capture_output=True, text=True
    ).stdout.splitlines()
    ours = [line for line in said if not line.startswith(("AIR_EXECUTOR_", "NOTIFY_SOCKET", "real-time"))]
    theirs = [line for line in plain if not line.startswith(("AIR_EXECUTOR_", "NOTIFY_SOCKET", "real-time"))]
    assert sorted(ours) == sorted(theirs)
