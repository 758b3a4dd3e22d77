"""The commands that scripts and programs are made of."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from air_executor.cli.commands import all_commands
from air_executor.errors import JobError, StateDirError
from air_executor.jobs import api, keys
from air_executor.jobs.model import JobState
from air_executor.jobs.store import JobStore
from tests.jobs.conftest import LONG_S, Yard
from tests.support.airflow_env import REPOSITORY
from tests.support.waiting import wait_for


def call(yard: Yard, *arguments: str, code: int = 0, stdin: bytes = b"") -> tuple[bytes, bytes]:
    done = subprocess.run(
        yard.command(*arguments), env=yard.env, cwd=yard.folder, capture_output=True, input=stdin, timeout=LONG_S
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


# add


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["no-such-program"], 127),
        (["/"], 126),
    ],
)
def test_a_command_that_is_waited_for_ends_as_in_a_shell(yard: Yard, command: list[str], code: int) -> None:
    call(yard, "add", "--wait", "--", *command, code=code)


def test_what_a_command_prints_is_passed_on_byte_by_byte_and_nothing_else(yard: Yard) -> None:
    out, err = call(yard, "add", "--wait", "--", "printf", r"Gr\303\274\303\237e \377\000 --json\n%s", "end")
    assert out == "Grüße ".encode() + b"\xff\0 --json\nend"
    assert err == b""


def test_a_command_that_is_waited_for_is_told_as_json(yard: Yard) -> None:
    out, _ = call(yard, "add", "--wait", "--json", "--shell", "--", "echo one; echo two >&2; exit 3", code=3)
    document = json.loads(out)
    assert document["name"].startswith("echo-")
    assert {**document, "name": ""} == {
        "name": "",
        "task": "echo",
        "state": "failed",
        "exit_code": 3,
        "error": "it ended with exit code 3",
        "output": "one\ntwo\n",
    }


def test_a_command_is_done_by_the_manager_if_there_is_one(yard: Yard) -> None:
    yard.start_manager()
    out, _ = call(yard, "add", "--wait", "--", "sh", "-c", "echo $AIR_EXECUTOR_TASK; exit 9", code=9)
    assert out == b"sh\n"
    name = call(yard, "add", "--json", "--", "true")[0]
    assert json.loads(name)["has_manager"] is True
    wait_for(lambda: yard.store.open(json.loads(name)["name"]).job.state is JobState.COMPLETED, "the job")


def test_a_command_that_is_not_waited_for_says_what_it_needs(yard: Yard) -> None:
    out, err = call(yard, "add", "--name", "mine", "--", "true")
    assert out == b"mine\n"
    assert b"air-executor start" in err
    assert "no command" in yard.call("add", code=2)


def test_a_command_has_an_empty_stdin_and_leaves_that_of_its_caller_alone(yard: Yard) -> None:
    out, err = call(yard, "add", "--wait", "--", "cat", stdin=b"not for the command\n")
    assert (out, err) == (b"", b"")
    loop = f'while read -r line; do {shlex.join(yard.command("add", "--wait", "--", "echo"))} "$line"; done'
    done = subprocess.run(
        ["sh", "-c", loop], env=yard.env, cwd=yard.folder, input=b"one\ntwo\n", capture_output=True, timeout=LONG_S
    )
    assert done.stdout == b"one\ntwo\n"
    assert "its stdin is empty" in PAGE


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("has_manager", [False, True])
def test_whatever_ends_who_waits_cancels_what_is_waited_for(yard: Yard, has_manager: bool, signum: int) -> None:
    if has_manager:
        yard.start_manager()
    waiter = subprocess.Popen(
        yard.command("add", "--wait", "--name", "long", "--", "sh", "-c", "touch begun; exec sleep 600"),
        env=yard.env,
        cwd=yard.folder,
    )
    try:
        wait_for((yard.folder / "begun").exists, "the command")
        waiter.send_signal(signum)
        assert waiter.wait(LONG_S) == 130
    finally:
        waiter.kill()
    assert yard.store.open("long").job.state is JobState.CANCELLED


def test_output_that_can_not_be_written_is_said_in_one_line_and_cancels_what_is_waited_for(yard: Yard) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            yard.command("add", "--wait", "--name", "long", "--", "sh", "-c", "echo a; exec sleep 600"),
            env=yard.env,
            cwd=yard.folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LONG_S,
        )
        shown = subprocess.run(
            yard.command("jobs"), env=yard.env, cwd=yard.folder, stdout=full, stderr=subprocess.PIPE, text=True
        )
    for each in (done, shown):
        assert each.returncode == 2
        assert each.stderr.splitlines()[-1].endswith("the output can't be written: No space left on device")
        assert "Traceback" not in each.stderr
    assert yard.store.open("long").job.state is JobState.CANCELLED


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_hurt_no_command(yard: Yard, closed: str) -> None:
    yard.submit({"id": "a", "command": "true"})
    for command in (["run", "job"], ["jobs"], ["jobs", "--json"], ["logs", "job", "a"], ["schema"]):
        line = f"{shlex.join(yard.command(*command))} {closed}"
        done = subprocess.run(line, shell=True, env=yard.env, cwd=yard.folder, capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_what_is_queued_from_outside_is_compared_with_what_still_waits_to_be_taken_in(yard: Yard) -> None:
    yard.submit({"id": "first", "command": "true"})
    yard.call("queue", "--job", "job", "--id", "a", "--", "true")
    yard.call("queue", "--job", "job", "--id", "b", "--after", "a", "--", "true")
    assert "'a'" in yard.call("queue", "--job", "job", "--id", "a", "--", "false", code=2)
    keyed = [yard.call("queue", "--job", "job", "--key", "k", "--", "true") for _ in range(2)]
    assert keyed[0] == keyed[1]
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert len(files.tasks) == 4
    assert keyed[0].split()[-1] in files.tasks


def test_who_waits_for_a_job_that_its_manager_can_not_understand_is_told(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true"}, name="bad")
    (yard.store.root / "bad" / "tasks.json").write_text("[")
    yard.start_manager()
    told = json.loads(call(yard, "wait", "bad", "--timeout", "0.5", "--json", code=124)[0])
    assert "bad/tasks.json" in told["hint"]


def test_a_script_beside_a_job_of_its_name_does_not_hide_the_job(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true"}, name="deploy")
    (yard.folder / "deploy").write_text("#!/bin/sh\n")
    assert "job deploy completed" in yard.call("run", "deploy")
    assert "cannot be understood" in yard.call("run", "./deploy", code=2)


@pytest.mark.parametrize("program", ["./run.sh", "a b", "-x", "é", "..", "x" * 300])
def test_any_program_gives_a_name(yard: Yard, program: str) -> None:
    out, _ = call(yard, "add", "--json", "--", program)
    assert json.loads(out)["name"] in yard.store.names()


# wait


def test_a_job_is_waited_for(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "until [ -e go ]; do sleep 0.02; done; exit 4", "shell": True})
    out, err = call(yard, "wait", "job", "--timeout", "0", "--json", code=124)
    told = json.loads(out)
    assert told["error"] == "job job is waiting after 0 s"
    assert told["retryable"] is True
    assert "air-executor start" in told["hint"]
    assert "no manager works here" in yard.call("wait", "job", "--timeout", "0.3", code=124)
    yard.start_manager()
    waiter = subprocess.Popen(
        yard.command("wait", "job", "--json"), env=yard.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    yard.runner_of("a")
    (yard.folder / "go").touch()
    out, err = waiter.communicate(timeout=LONG_S)
    assert waiter.returncode == 1
    assert json.loads(out)["tasks"][0]["exit_code"] == 4
    assert err == b""
    assert "there is no job nope" in yard.call("wait", "nope", code=2)


def test_who_waits_is_told_what_is_in_the_way(yard: Yard) -> None:
    yard.start_manager()
    (yard.folder / "paused.json").write_text(json.dumps({"paused": True, "tasks": TASKS}))
    yard.call("submit", "paused.json")
    for command in (["wait", "paused", "--timeout", "0.3"], ["run", "paused"]):
        said = yard.call(*command, code=124 if command[0] == "wait" else 1)
        assert "paused; `air-executor resume paused` lets it go on" in said
    foreign = yard.folder / "foreign"
    shutil.copytree(yard.store.folder("paused"), foreign)
    state = json.loads((foreign / "state.json").read_text())
    (foreign / "state.json").write_text(json.dumps({**state, "id": str(uuid.uuid4()), "paused": False}))
    foreign.rename(yard.store.folder("foreign"))  # as of a repository
    assert "if you trust it: `air-executor trust foreign`" in yard.call("wait", "foreign", "--timeout", "0.3", code=124)


def test_whoever_has_seen_enough_of_a_command_ends_it(yard: Yard) -> None:
    adding = shlex.join(yard.command("add", "--wait", "--name", "endless", "--", "yes"))
    shown = subprocess.run(
        f"{adding} | head -n 2", shell=True, env=yard.env, cwd=yard.folder, capture_output=True, timeout=LONG_S
    )
    assert shown.stdout == b"y\ny\n"
    assert shown.stderr == b""
    assert yard.store.open("endless").job.state is JobState.CANCELLED


def test_a_job_that_has_completed_is_not_waited_for(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true"})
    yard.finish()
    assert "completed" in yard.call("wait", "job")


# run -


@pytest.mark.parametrize(
    "text",
    [
        '[{"id": "a", "command": "echo", "args": ["hi"]}]',
        '{"name": "mine", "tasks": [{"id": "a", "command": "echo", "args": ["hi"]}]}',
        "tasks:\n  - {id: a, command: echo, args: [hi]}\n",
        "- {id: a, command: echo, args: [hi]}\n",
        "[{id: a, command: echo, args: [hi]}]",
    ],
)
@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_job_comes_from_stdin(yard: Yard, command: str, text: str) -> None:
    out, _ = call(yard, command, "-", "--json", stdin=text.encode())
    name = json.loads(out)["name"]
    assert name == "mine" or name.startswith("stdin-")
    if command == "run":
        assert yard.log("a", name) == "hi\n"


def test_a_job_from_stdin_is_named(yard: Yard) -> None:
    call(yard, "submit", "-", "--name", "other", stdin=b'[{"id": "a", "command": "true"}]')
    assert yard.store.names() == ["other"]
    for text in (b"", b"{", b"\xff", b"5"):
        _, err = call(yard, "run", "-", code=2, stdin=text)
        assert b"stdin" in err
        assert err.count(b"\n") == 1
    assert yard.store.names() == ["other"]


# pause, resume


@pytest.mark.parametrize("has_manager", [False, True])
def test_a_job_is_paused_and_resumed(yard: Yard, has_manager: bool) -> None:
    wait = "touch begun; until [ -e go ]; do sleep 0.02; done"
    yard.submit({"id": "a", "command": wait, "shell": True}, {"id": "b", "command": "true", "dependencies": ["a"]})
    if has_manager:
        yard.start_manager()
        wait_for((yard.folder / "begun").exists, "the first task")
    assert "job job: paused" in yard.call("pause", "job")
    [shown] = json.loads(yard.call("jobs", "--json"))
    assert shown["paused"] is True
    if not has_manager:
        yard.start_manager()
        (yard.folder / "go").touch()
        assert "completed" not in yard.call("wait", "job", "--timeout", "0.5", code=124)
        assert yard.tasks()["a"].status.value == "pending"
    else:
        (yard.folder / "go").touch()
        wait_for(lambda: yard.tasks()["a"].status.is_end, "what runs to run on")
        assert yard.tasks()["b"].status.value == "pending"
    assert json.loads(yard.call("resume", "job", "--json"))["paused"] is False
    assert "completed" in yard.call("wait", "job")
    for command in ("pause", "resume", "cancel"):
        assert "has ended already: completed" in yard.call(command, "job", code=1)


# Keys

TASKS = [{"id": "a", "command": "true"}]


def test_what_is_submitted_with_a_key_again_is_the_job_that_is_there(yard: Yard) -> None:
    (yard.folder / "job.json").write_text(json.dumps(TASKS))
    first = json.loads(yard.call("submit", "job.json", "--key", "k 1/é", "--json"))
    again = json.loads(yard.call("submit", "job.json", "--key", "k 1/é", "--json", "--name", "other"))
    assert (first["name"], again["name"]) == ("job", "job")
    yard.finish("job")
    assert json.loads(yard.call("submit", "job.json", "--key", "k 1/é", "--json"))["name"] == "job"
    assert yard.store.names() == ["job"]
    assert len(yard.tasks("job")) == 1


def test_another_key_or_another_job_is_another_job(yard: Yard) -> None:
    api.submit("a", TASKS, key="1", state_dir=yard.state_dir)
    api.submit("b", TASKS, key="2", state_dir=yard.state_dir)
    with pytest.raises(JobError, match="there is a job a already"):
        api.submit("a", TASKS, key="3", state_dir=yard.state_dir)
    for changed in ([{**TASKS[0], "command": "false"}], [*TASKS, {"id": "b", "command": "true"}]):
        with pytest.raises(keys.KeyUsedError, match="the key '1' is that of job a"):
            api.submit("c", changed, key="1", state_dir=yard.state_dir)
    # A name that was taken when a key was used first does not spoil the key.
    assert api.submit("c", TASKS, key="3", state_dir=yard.state_dir).name == "c"
    assert yard.store.names() == ["a", "b", "c"]


def test_of_many_who_submit_at_once_with_one_key_one_makes_the_job(yard: Yard) -> None:
    with ThreadPoolExecutor(16) as pool:
        jobs = list(pool.map(lambda n: api.submit(f"job-{n}", TASKS, key="k", state_dir=yard.state_dir), range(64)))
    assert len({job.id for job in jobs}) == 1
    assert yard.store.names() == [jobs[0].name]


def test_whoever_dies_before_the_job_is_made_leaves_its_key_to_the_next(yard: Yard, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "create", lambda *_: (_ for _ in ()).throw(StateDirError("killed here")))
        with pytest.raises(StateDirError):
            api.submit("a", TASKS, key="k", state_dir=yard.state_dir)
    assert yard.store.names() == []
    assert api.submit("b", TASKS, key="k", state_dir=yard.state_dir).name == "b"
    assert api.submit("c", TASKS, key="k", state_dir=yard.state_dir).name == "b"


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\0", b"[]", b"5", b'{"job": 5}', b'{"job": "../x", "id": 1}', b"null"]
)
def test_garbage_in_the_file_of_a_key_makes_the_key_a_new_one(yard: Yard, text: bytes) -> None:
    api.submit("a", TASKS, key="k", state_dir=yard.state_dir)
    [path] = (yard.store.root / ".keys").iterdir()
    path.write_bytes(text)
    assert api.submit("b", TASKS, key="k", state_dir=yard.state_dir).name == "b"


def test_a_file_may_be_submitted_each_day_with_the_day_as_its_key(yard: Yard, monkeypatch: Any) -> None:
    (yard.folder / "nightly.json").write_text(json.dumps(TASKS))
    for day, name in (("1", "nightly"), ("2", "nightly-2"), ("3", "nightly-3"), ("2", "nightly-2"), ("1", "nightly")):
        assert yard.call("submit", "nightly.json", "--new-name", "--key", day).splitlines()[0] == name
    assert yard.store.names() == ["nightly", "nightly-2", "nightly-3"]
    note, notes = keys.Key.note, []

    def dies_before_the_second(key: keys.Key, *args: Any) -> None:
        notes.append(args)
        if len(notes) == 2:
            raise StateDirError("killed here")
        note(key, *args)

    options: Any = {"state_dir": yard.state_dir, "existing": "new_name"}
    with monkeypatch.context() as patch:
        patch.setattr(keys.Key, "note", dies_before_the_second)
        with pytest.raises(StateDirError):
            api.submit("nightly", TASKS, key="4", **options)
    assert api.submit("nightly", TASKS, key="4", **options).name == "nightly-4"
    assert api.submit("nightly", TASKS, key="4", **options).name == "nightly-4"
    assert api.submit("nightly", TASKS, key="5", **{**options, "existing": "replace"}).generation == 2
    assert api.submit("nightly", TASKS, key="5", **{**options, "existing": "replace"}).generation == 2


def test_a_job_of_a_key_that_cannot_be_read_is_not_made_once_more(yard: Yard) -> None:
    api.submit("a", TASKS, key="k", state_dir=yard.state_dir)
    (yard.store.folder("a") / "state.json").write_bytes(b"{")
    with pytest.raises(JobError, match="not JSON"):
        api.submit("b", TASKS, key="k", state_dir=yard.state_dir)
    assert not yard.store.folder("b").exists()


def test_keys_go_with_their_jobs(yard: Yard) -> None:
    for name in ("a", "b"):
        api.submit(name, TASKS, key=name, paused=name == "b", state_dir=yard.state_dir)
    yard.finish("a")
    yard.call("cancel", "b")
    yard.call("remove", "a")
    yard.call("prune")
    [path] = (yard.store.root / ".keys").iterdir()
    assert json.loads(path.read_bytes())["job"] == "b"
    # Whoever waits for a file that is swept meanwhile makes another one, and the next finds that.
    with ThreadPoolExecutor(8) as pool:
        again = [pool.submit(api.submit, f"a{n}", TASKS, key="a", state_dir=yard.state_dir) for n in range(16)]
        for _ in range(20):
            keys.sweep(yard.store)
        assert len({each.result().id for each in again}) == 1


def test_no_value_of_an_environment_is_in_the_file_of_a_key(yard: Yard) -> None:
    api.submit("a", [{**TASKS[0], "env": {"T": "tiny"}}], env={"S": "x"}, key="k", state_dir=yard.state_dir)
    [path] = (yard.store.root / ".keys").iterdir()
    first = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"tiny" not in first


@pytest.mark.parametrize("key", ["", "x" * 1001])
def test_what_is_no_key_is_refused(yard: Yard, key: str) -> None:
    with pytest.raises(JobError, match="cannot be a key"):
        api.submit("a", TASKS, key=key, state_dir=yard.state_dir)


def test_a_key_of_a_command_holds_for_its_repetition(yard: Yard) -> None:
    first = yard.call("add", "--wait", "--key", "k", "--", "sh", "-c", "echo x >> ran; echo said")
    again = yard.call("add", "--wait", "--key", "k", "--", "sh", "-c", "echo x >> ran; echo said")
    assert first == again == "said\n"
    assert yard.lines("ran") == ["x"]


# help

PAGE = (Path(api.__file__).parents[1] / "cli" / "agents.md").read_text()


def test_the_page_for_agents_is_printed_and_names_what_there_is(yard: Yard) -> None:
    assert yard.call("help", "agents") == PAGE
    assert json.loads(yard.call("help", "agents", "--json")) == {"topic": "agents", "text": PAGE}
    assert len(PAGE.splitlines()) <= 100
    known = {command.name: {flag for each in command.arguments for flag in each.flags} for command in all_commands()}
    for line in re.findall(r"^    (air-executor .*)$", PAGE, re.MULTILINE):
        for part in re.sub(r" #.*", "", line).split(";"):
            _, name, *words = part.split(" -- ")[0].split()
            assert name in known, line
            assert {word for word in words if word.startswith("-") and word != "-"} <= known[name], line


def test_help_shows_how_a_command_is_used(yard: Yard) -> None:
    assert "usage: air-executor add" in yard.call("help", "add")
    assert "usage: air-executor" in yard.call("help")
    told = json.loads(yard.call("help", "nonsense", "--json", code=2))
    assert told["hint"].endswith("`air-executor help agents`")


def test_what_the_guide_shows_to_programs_works(yard: Yard) -> None:
    text = (REPOSITORY / "docs" / "guides" / "agents.md").read_text()
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    program = yard.folder / "bin" / "air-executor"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m air_executor.cli.main "$@"\n')
    program.chmod(0o755)
    env = {**yard.env, "PATH": f"{program.parent}:/usr/bin:/bin"}
    try:
        done = subprocess.run(
            ["sh", "-e", "-c", block[1]], env=env, cwd=yard.folder, capture_output=True, text=True, timeout=LONG_S
        )
        assert done.returncode == 0, done.stderr
        assert "\nbuilt\n" in done.stdout
        assert "# air-executor for programs and AI agents" in done.stdout
    finally:
        yard.call("stop", "--wait")
