"""The commands of the engine, as people call them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.jobs.conftest import LONG_S, Yard
from tests.support.airflow_env import REPOSITORY
from tests.support.waiting import wait_for

JOB = """
name: built
max_runners: 2
tasks:
  - {id: a, command: echo, args: [one]}
  - {id: b, command: echo two; exit 3, shell: true, dependencies: [a]}
  - {id: c, function: "math:hypot", arguments: {}, dependencies: [b]}
"""


@pytest.fixture
def failed(yard: Yard) -> Yard:
    (yard.folder / "job.yaml").write_text(JOB)
    yard.call("run", "job.yaml", code=1)
    return yard


def test_run_ends_with_the_result_as_its_exit_code(yard: Yard) -> None:
    (yard.folder / "good.json").write_text(json.dumps([{"id": "a", "command": "true"}]))
    assert "job good completed: 1 of 1 tasks completed" in yard.call("run", "good.json")
    assert "there is a job good already" in yard.call("submit", "good.json", code=2)
    assert "job good completed" in yard.call("run", "good")
    again = json.loads(yard.call("run", "good.json", "--name", "other", "--json"))
    assert (again["name"], again["state"], again["tasks"][0]["status"]) == ("other", "completed", "completed")


def test_what_became_of_a_job_is_shown(failed: Yard) -> None:
    shown = failed.call("results", "built", code=1)
    assert "job built failed: 1 of 3 tasks failed: b" in shown
    assert "it ended with exit code 3" in shown
    assert "not run: it depends on b" in failed.call("job", "built")
    assert "built" in failed.call("jobs")
    [summary] = json.loads(failed.call("jobs", "--json"))
    counts = [summary[name] for name in ("tasks", "completed", "failed", "skipped")]
    assert counts == [3, 1, 1, 1]
    assert [task["id"] for task in json.loads(failed.call("job", "built", "--json"))["tasks"]] == ["a", "b", "c"]


def test_the_log_of_a_task_is_printed_and_followed(failed: Yard) -> None:
    assert failed.call("logs", "built", "b") == "two\n-- task b failed: it ended with exit code 3\n"
    assert failed.call("logs", "built", "a", "-f") == "one\n"
    assert "there is no task 'x' in job built" in failed.call("logs", "built", "x", code=2)


def test_a_log_is_followed_to_the_end_of_its_task(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "echo first; until [ -e go ]; do sleep 0.02; done; echo last", "shell": True})
    yard.start_manager()
    yard.runner_of("a")
    follower = subprocess.Popen(yard.command("logs", "job", "a", "-f"), env=yard.env, stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    with follower.stdout:
        assert follower.stdout.readline() == "first\n"
        (yard.folder / "go").touch()
        assert follower.stdout.read() == "last\n"
    assert follower.wait(LONG_S) == 0


def test_a_manager_in_the_background_works_and_is_stopped(yard: Yard) -> None:
    assert "the manager works" in yard.call("start", "--detach")
    assert "a manager works here already" in yard.call("start", "--detach", code=1)
    (yard.folder / "later.json").write_text(json.dumps({"tasks": [{"id": "a", "command": "true"}]}))
    assert yard.call("submit", "later.json") == "later\n"
    wait_for(lambda: yard.store.open("later").job.state.is_end, "the job to end")
    assert "has ended" in yard.call("stop", "--wait")
    assert "no manager works here" in yard.call("stop", code=1)
    assert "begin with `air-executor start`" in yard.call("submit", "later.json", "--name", "more")


def test_status_shows_jobs_beside_runs(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "sleep", "args": ["600"]}, name="long")
    yard.start_manager()
    yard.runner_of("a", "long")
    status = yard.call("status")
    assert "long/a" in status
    assert "working" in status
    assert json.loads(yard.call("status", "--json"))["jobs"][0]["name"] == "long"
    yard.call("cancel", "long")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("no.json", None, "no.json cannot be read: No such file or directory"),
        ("bad.json", "[{", "bad.json cannot be understood"),
        ("bad.yaml", "a: [", "bad.yaml cannot be understood"),
        ("bad.json", "5", "must be a list of tasks, or an object with a list 'tasks'"),
        ("bad.json", '{"tasks": [], "taskz": []}', "bad.json: there is no field 'taskz'; did you mean 'tasks'?"),
        ("bad.json", '[{"id": "a"}]', "job bad, task 'a': it needs a command or a function"),
        ("bad.json", '{"name": "../x", "tasks": []}', "'../x' cannot be a job's name"),
        ("bad.json", '{"tasks": [], "max_runners": "2"}', "field 'max_runners': it must be a whole number"),
        ("bad.yaml", "[{id: a, command: x, priority: 99999999999999999999}]", "'priority': it must be a whole number"),
        ("bad.yaml", "[{id: a, command: x, retries: 99999999999999999999}]", "'retries': it must be a whole number"),
        ("bad.yaml", "[{id: a, command: x, env: {PORT: 8080}}]", "and 'PORT' or its value is not"),
        ("my job.yaml", "[{id: a, command: x}]", "give it one with --name NAME"),
    ],
)
def test_a_job_that_can_not_be_used_is_refused_in_one_line(yard: Yard, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (yard.folder / name).write_text(text)
    said = yard.call("submit", name, code=2)
    assert says in said
    assert len(said.splitlines()) == 1
    assert yard.store.names() == []


def test_jobs_are_found_from_below_their_folder(yard: Yard) -> None:
    yard.call("init")
    yard.submit({"id": "a", "command": "true"})
    below = yard.folder / "x" / "y"
    below.mkdir(parents=True)
    env = {name: value for name, value in yard.env.items() if name != "AIR_EXECUTOR_STATE_DIR"}
    shown = subprocess.run(yard.command("jobs"), env=env, cwd=below, capture_output=True, text=True, check=True)
    assert "job" in shown.stdout


def test_the_engine_works_where_nothing_of_airflow_is_installed(yard: Yard) -> None:
    bare = yard.folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", str(bare)], check=True)
    pip = [str(bare / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", str(REPOSITORY)], check=True)
    installed = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True)
    assert "airflow" not in installed.stdout
    (yard.folder / "job.json").write_text(
        json.dumps(
            [
                {"id": "a", "command": "air-executor queue --id c -- echo queued", "shell": True},
                {"id": "b", "function": "math:factorial", "arguments": {}},
            ]
        )
    )
    env = {"PATH": f"{bare / 'bin'}:/usr/bin:/bin", "HOME": str(yard.folder)}
    done = subprocess.run(
        ["air-executor", "run", "job.json"], env=env, cwd=yard.folder, capture_output=True, text=True, timeout=LONG_S
    )
    assert done.returncode == 1, done.stderr
    assert "job job failed: 1 of 3 tasks failed: b" in done.stdout
    assert yard.log("c") == "queued\n"


def test_every_command_prints_json_when_asked_to(yard: Yard) -> None:
    assert json.loads(yard.call("init", "--json")) == {"jobs": str(yard.folder / ".air-executor" / "jobs")}
    started = json.loads(yard.call("start", "--detach", "--json"))
    assert yard.store.manager() is not None
    yard.submit({"id": "a", "command": "echo", "args": ["said"]})
    wait_for(lambda: yard.store.open("job").job.state.is_end, "the job to end")
    assert json.loads(yard.call("logs", "job", "a", "--json")) == {"job": "job", "task": "a", "log": "said\n"}
    assert [json.loads(line) for line in yard.call("logs", "job", "a", "-f", "--json").splitlines()] == [
        {"job": "job", "task": "a", "line": "said"},
        {"job": "job", "task": "a", "status": "completed", "exit_code": 0, "error": None},
    ]
    assert json.loads(yard.call("stop", "--wait", "--json")) == {"pid": started["pid"], "has_ended": True}


@pytest.mark.parametrize("step_s", [-1.5, 1.5])
def test_a_manager_is_stopped_after_a_step_of_the_clock(yard: Yard, step_s: float) -> None:
    yard.call("start", "--detach")
    path = yard.store.root / "manager.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "pid_started": document["pid_started"] + step_s}))
    yard.call("stop", "--wait")
    assert yard.store.manager() is None


def test_a_process_that_has_the_pid_of_a_manager_is_not_stopped_in_its_place(yard: Yard) -> None:
    yard.store.root.mkdir(parents=True)
    lock = yard.store.lock()
    assert lock.acquire(0)
    yard.store.note_manager()
    path = yard.store.root / "manager.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ticks": 5}))
    assert "no manager works here" in yard.call("stop", code=1)
    lock.release()
