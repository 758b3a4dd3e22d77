"""Values of variables that stand in no file below the state directory."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from air_executor.errors import JobError
from air_executor.jobs import api
from air_executor.jobs.model import JobState
from tests.jobs.conftest import LONG_S, Yard
from tests.support.contents import contents
from tests.support.waiting import wait_for

#: A value that would be found, however it was written.
SECRET = "s3cret-0f-the-bank"

SAY = 'printf "%s" "$T" | tr a-z A-Z'
SAID = SECRET.upper()


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path, data in contents(folder).items() if text.encode() in data]


def sh(task_id: str, script: str = SAY, **fields: Any) -> dict[str, Any]:
    return {"id": task_id, "command": script, "shell": True, **fields}


def test_private_variables_reach_the_tasks_and_no_file_below_the_state_directory(yard: Yard) -> None:
    yard.submit(
        sh("of-job"),
        sh("own", env={"T": "plain"}, private_env={"T": f"{SECRET}-own"}),
        sh("written", env={"T": "plain"}),
        sh("fails", f"{SAY}; exit 1", retries=1, retry_delay=0),
        private_env={"T": SECRET},
    )
    yard.finish()
    said = {task_id: yard.log(task_id) for task_id in ("of-job", "own", "written")}
    assert said == {"of-job": SAID, "own": f"{SAID}-OWN", "written": "PLAIN"}
    assert yard.log("fails").count(SAID) == 2
    assert files_with(yard.state_dir, SECRET) == []
    job = json.loads((yard.store.folder("job") / "state.json").read_bytes())
    tasks = json.loads((yard.store.folder("job") / "tasks.json").read_bytes())
    assert job["env_from"] == tasks[1]["env_from"] == ["T"]
    assert files_with(yard.store.private.root, SECRET)


def test_variables_of_the_command_line_are_kept_apart(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T", SECRET)
    (yard.folder / "job.json").write_text(json.dumps([sh("a"), sh("b", dependencies=["a"])]))
    yard.call("submit", "job.json", "--env-from", "T")
    yard.call("queue", "--job", "job", "--id", "c", "--env-from", "T", "--", "sh", "-c", SAY)
    yard.call("run", "job.json", "--name", "at-once", "--env-from", "T")
    monkeypatch.delenv("T")
    yard.finish()
    assert [yard.log(task_id) for task_id in ("a", "b", "c")] == [SAID] * 3
    assert yard.log("a", "at-once") == SAID
    assert files_with(yard.state_dir, SECRET) == []
    assert "the variable T of --env-from is not set here" in yard.call(
        "submit", "job.json", "--name", "more", "--env-from", "T", code=2
    )
    assert "more" not in yard.store.names()


def test_values_of_any_bytes_arrive(yard: Yard) -> None:
    (yard.folder / "job.json").write_text(json.dumps([sh("a", 'printf "%s" "$T" | od -An -tx1')]))
    command = yard.command("run", "job.json", "--env-from", "T")
    env = {**{name.encode(): value.encode() for name, value in yard.env.items()}, b"T": b"J\xf6rg"}
    done = subprocess.run(command, env=env, cwd=yard.folder, capture_output=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stderr
    assert yard.log("a").split() == ["4a", "f6", "72", "67"]


def test_variables_are_taken_by_name_from_the_manager(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    (yard.folder / "job.json").write_text(json.dumps({"env_from": ["T"], "tasks": [sh("a"), sh("b", env_from=["U"])]}))
    monkeypatch.setenv("T", SECRET)
    monkeypatch.setenv("U", "")
    yard.call("submit", "job.json")
    assert yard.finish().job.state is JobState.COMPLETED
    assert yard.log("a") == yard.log("b") == SAID
    assert files_with(yard.state_dir, SECRET) == files_with(yard.folder / "private", SECRET) == []


def test_a_variable_that_nobody_has_fails_its_task_and_says_so(yard: Yard) -> None:
    yard.submit(sh("a", env_from=["NOT_SET"], retries=1, retry_delay=0), sh("b"))
    files = yard.finish()
    assert "the variable NOT_SET of 'env_from' is not set" in (files.tasks["a"].error or "")
    assert (files.tasks["a"].tries, files.tasks["b"].status.value) == (2, "completed")


def test_tasks_for_items_have_the_private_variables_of_theirs(yard: Yard) -> None:
    yard.submit(sh("a", f"{SAY}; echo ${{item}}", foreach=["x", "y"], private_env={"T": SECRET}))
    assert yard.finish().job.state is JobState.COMPLETED
    assert [yard.log(f"a.{index}") for index in (0, 1)] == [f"{SAID}x\n", f"{SAID}y\n"]
    assert files_with(yard.state_dir, SECRET) == []


def test_tasks_queue_tasks_with_private_variables(yard: Yard) -> None:
    code = "from air_executor.jobs import queue_tasks; import os; queue_tasks([{'id': 'b', 'command': "
    code += f"{SAY!r}, 'shell': True, 'private_env': {{'T': os.environ['T']}}}}])"
    yard.submit({"id": "a", "command": sys.executable, "args": ["-c", code], "private_env": {"T": SECRET}})
    assert yard.finish().job.state is JobState.COMPLETED
    assert yard.log("b") == SAID
    assert files_with(yard.state_dir, SECRET) == []


def test_what_is_kept_is_for_its_owner_alone_and_goes_with_its_job(yard: Yard) -> None:
    before = os.umask(0)
    try:
        yard.submit(sh("a"), private_env={"T": SECRET})
    finally:
        os.umask(before)
    private = yard.store.private.root
    assert {oct(path.stat().st_mode & 0o777) for path in private.rglob("*")} == {"0o700", "0o600"}
    yard.store.private.forget(yard.store.open("job").job)
    assert files_with(private, SECRET) == []


def test_what_is_kept_for_a_job_is_removed_with_it_and_replaced_with_it(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    (yard.folder / "job.json").write_text(json.dumps([sh("a")]))
    for value in ("first", "second"):
        monkeypatch.setenv("T", f"{SECRET}-{value}")
        yard.call("run", "job.json", "--env-from", "T")
    assert yard.log("a").count(f"{SAID}-SECOND") == 1
    private = yard.store.private.root
    assert files_with(private, f"{SECRET}-first") == []
    yard.call("remove", "job")
    assert files_with(private, SECRET) == []
    assert [path for path in private.rglob("*") if path.is_file() and path.name != ".folder"] == []


def test_values_of_a_job_whose_folder_was_removed_are_removed(yard: Yard) -> None:
    for name in ("gone", "there"):
        yard.submit(sh("a"), name=name, private_env={"T": f"{SECRET}-{name}"})
    yard.store.folder("gone").rename(yard.folder / "away")
    private = yard.store.private
    for folder in (private.root / "secrets").glob("*/*"):
        os.utime(folder, (1, 1))
    yard.start_manager()
    wait_for(lambda: not files_with(private.root, f"{SECRET}-gone"), "the value to be removed")
    assert files_with(private.root, f"{SECRET}-there")


def test_a_job_that_is_not_made_leaves_no_value(yard: Yard) -> None:
    yard.submit(sh("a"))
    with pytest.raises(JobError, match="there is a job job already"):
        yard.submit(sh("a"), private_env={"T": SECRET})
    assert files_with(yard.folder, SECRET) == []


@pytest.mark.parametrize("value", [[SECRET], {"T": 5, "U": SECRET}, {"": SECRET}, {"T": f"{SECRET}\0"}, SECRET])
def test_private_variables_that_can_not_be_used_are_refused_without_their_values(yard: Yard, value: Any) -> None:
    for given in ({"private_env": value}, {}):
        task = sh("a") if given else sh("a", private_env=value)
        with pytest.raises(JobError, match="'private_env'") as error:
            yard.submit(task, **given)
        assert SECRET not in str(error.value)


def test_no_value_is_in_what_is_said(yard: Yard, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    yard.submit(sh("a", "true", cwd="/nowhere"), sh("b", "exit 3"), private_env={"T": SECRET})
    yard.finish()
    shown = [yard.call(*command) for command in (("jobs",), ("job", "job"), ("job", "job", "--json"))]
    shown.append(yard.call("results", "job", code=1))
    assert SECRET not in "".join(shown) + caplog.text


def test_the_private_folder_is_where_the_system_keeps_state(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIR_EXECUTOR_PRIVATE_DIR")
    monkeypatch.setenv("HOME", str(yard.folder / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert private_root(yard) == yard.folder / "home/.local/state/air-executor"
    monkeypatch.setenv("XDG_STATE_HOME", str(yard.folder / "xdg"))
    assert private_root(yard) == yard.folder / "xdg/air-executor"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert private_root(yard) == yard.folder / "home/.local/state/air-executor"
    api.submit("job", [sh("a")], state_dir=yard.state_dir, private_env={"T": SECRET})
    assert files_with(yard.folder / "home/.local/state/air-executor", SECRET)
    ran = subprocess.run(yard.command("run", "job"), env=yard.env, cwd=yard.folder, capture_output=True, check=False)
    assert (ran.returncode, yard.log("a")) == (0, SAID)


def private_root(yard: Yard) -> Path:
    return Yard(yard.folder).store.private.root
