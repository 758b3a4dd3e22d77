"""File names and arguments hold any bytes; they come back as they were."""

from __future__ import annotations

import os
import subprocess
import sys

from air_executor.jobs.model import TaskStatus
from tests.jobs.conftest import LONG_S, Yard


def test_any_bytes_in_names_and_arguments_come_back_as_they_were(yard: Yard) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (yard.folder / name).write_bytes(b"12345")
    (yard.folder / "each.py").write_text(
        "import os\nfrom air_executor.jobs import queue_tasks\n"
        "def each():\n"
        "    found = [name for name in os.listdir() if name.endswith('.txt')]\n"
        "    queue_tasks([{'id': 'count', 'command': 'wc', 'args': ['-c', *found]}])\n"
        "    return found\n"
    )
    yard.submit({"id": "list", "function": "each:each"}, {"id": "odd", "command": name, "env": {"ODD": name}})
    files = yard.finish()
    assert files.tasks["list"].result == [name]
    assert files.tasks["count"].status is TaskStatus.COMPLETED
    assert os.fsencode(files.log_file("count").read_bytes().decode(errors="surrogateescape")) == b"5 caf\xe9.txt\n"
    assert "caf" in (files.tasks["odd"].error or "")
    assert "caf" in yard.call("job", "job")
    assert "caf" in yard.call("job", "job", "--json")
    assert "caf" in yard.call("results", "job", code=1)


def test_a_job_in_a_folder_of_any_name_with_any_variables_is_worked_on(yard: Yard) -> None:
    odd = os.fsdecode(b"caf\xe9")
    here = yard.folder / odd
    here.mkdir()

    def call(*arguments: str) -> bytes:
        done = subprocess.run(yard.command(*arguments), env=yard.env, cwd=here, capture_output=True, timeout=LONG_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call("add", "--wait", "--name", "said", "--", "pwd") == os.fsencode(here) + b"\n"
    yard.submit(
        {"id": "a", "command": 'test "$ODD" = "$(basename "$PWD")"', "shell": True}, folder=here, env={"ODD": odd}
    )
    call("run", "job", "--json")
    for shown in (call("job", "job", "--json"), call("results", "said", "--json")):
        assert b"caf" in shown
    for asked in (
        ("job", "job"),
        ("jobs", "--json"),
        ("wait", "job", "--json"),
        ("reset", "job", "--json"),
        ("trust", "--json"),
    ):
        call(*asked)


def test_a_working_directory_that_was_removed_is_said_in_one_line(yard: Yard) -> None:
    inside = "from air_executor.cli.main import main; import os; os.mkdir('d'); os.chdir('d'); os.rmdir('../d'); main()"
    (yard.folder / "job.json").write_text('[{"id": "a", "command": "true"}]')
    (yard.folder / "placed.json").write_text('{"folder": "/", "tasks": [{"id": "a", "command": "true"}]}')

    def call(*arguments: str, code: int = 0, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", inside, *arguments],
            env={**{name: value for name, value in yard.env.items() if name != "AIR_EXECUTOR_STATE_DIR"}, **env},
            cwd=yard.folder,
            capture_output=True,
            text=True,
            timeout=LONG_S,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    job, placed, named = str(yard.folder / "job.json"), str(yard.folder / "placed.json"), str(yard.state_dir)
    for command in (("init",), ("jobs",), ("add", "--", "true"), ("run", job), ("jobs", "--state-dir", "here")):
        assert "the working directory was removed: go to another one" in call(*command, code=2)
    # Where the state directory is named, only who needs the working directory misses it.
    assert "give the job a folder" in call("run", job, AIR_EXECUTOR_STATE_DIR=named, code=2)
    call("run", placed, AIR_EXECUTOR_STATE_DIR=named)
    call("run", placed, "--state-dir", named)
    assert "placed" in call("jobs", "--state-dir", named)
