"""Folders and files that another user has closed: one line that names them, at once; nothing else is hurt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.as_nobody import NOBODY
from tests.support import machine
from tests.support.airflow_env import REPOSITORY

pytestmark = machine.needs_root

#: A command that takes longer hangs, in seconds.
HANGS_S = 30

#: What is done with the job ``shut``, one that waits.
OF_THE_JOB = (
    "job shut",
    "wait shut --timeout 600",
    "results shut",
    "pause shut",
    "resume shut",
    "cancel shut",
    "retry shut",
    "reset shut",
    "run shut",
    "remove shut",
    "queue --job shut -- true",
    "logs shut",
)
OF_ALL = ("jobs", "status", "trust", "start", "shutdown", "prune")
THAT_MAKE = ("submit job.json --name new", "submit job.json --name shut", "run job.json --name shut", "add -- true")

#: What is closed, and the commands that can't do without it.
CLOSED: dict[str, tuple[str, ...]] = {
    ".air-executor": (*OF_THE_JOB, *OF_ALL, *THAT_MAKE, "trust shut", "runs"),
    ".air-executor/jobs": (*OF_THE_JOB, *OF_ALL, *THAT_MAKE, "trust shut"),
    ".air-executor/jobs/shut": (*OF_THE_JOB, "logs shut a", "trust shut"),
    ".air-executor/jobs/shut/state.json": (*OF_THE_JOB, "logs shut a", "trust shut"),
    ".air-executor/jobs/shut/tasks.json": ("job shut", "results shut", "cancel shut", "run shut", "logs shut"),
    ".air-executor/jobs/shut/inbox": ("cancel shut", "pause shut", "queue --job shut -- true"),
    ".air-executor/jobs/shut/logs": ("logs shut a", "logs shut"),
    ".air-executor/jobs/shut/logs/a.log": ("logs shut a", "logs shut a --json", "logs shut -f"),
    "private": ("submit job.json --name new", "add -- true", "run shut", "queue --job shut -- true", "job shut"),
    "job.json": ("submit job.json --name new", "run job.json"),
}


class Nobody:
    """A folder of nobody's, with a job that waits and one that has ended, and the command line as nobody has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "job.json").write_text('[{"id": "a", "command": "true"}]')
        os.chown(folder, NOBODY, NOBODY)
        made = self.call("init", "submit job.json --name shut", "submit job.json --name ended")
        assert [each["code"] for each in made] == [0, 0, 0], made
        for name in ("shut", "ended"):
            job = folder / ".air-executor" / "jobs" / name
            (job / "inbox").mkdir()
            (job / "logs").mkdir()
            (job / "logs" / "a.log").write_text("said\n")
        for name, field, value in (("state.json", "state", "completed"), ("tasks.json", "status", "completed")):
            path = folder / ".air-executor" / "jobs" / "ended" / name
            document = json.loads(path.read_text())
            (document if isinstance(document, dict) else document[0])[field] = value
            path.write_text(json.dumps(document))
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(folder)], check=True)

    def call(self, *lines: str) -> list[dict[str, Any]]:
        env = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "COLUMNS": "200"}
        env["AIR_EXECUTOR_PRIVATE_DIR"] = str(self.folder / "private")
        asked = {"cwd": str(self.folder), "env": env, "calls": [line.split() for line in lines], "timeout_s": HANGS_S}
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "tests" / "jobs" / "as_nobody.py")],
            input=json.dumps(asked),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))


@pytest.fixture
def nobody() -> Iterator[Callable[[], Nobody]]:
    # pytest's own folders are closed to nobody.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "work").mkdir()
        made: list[Nobody] = []
        yield lambda: made.append(Nobody(Path(folder) / "work")) or made[-1]
        subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
        shutil.rmtree(Path(folder) / "work")


@pytest.mark.parametrize("closed", CLOSED)
def test_each_command_says_in_one_line_what_it_cannot_use(nobody: Callable[[], Nobody], closed: str) -> None:
    user = nobody()
    path = user.folder / closed
    path.chmod(0)
    for done in user.call(*CLOSED[closed]):
        line = " ".join(done["argv"])
        assert done["code"] == 2, (line, done)
        said = json.loads(done["out"])["error"] if "--json" in done["argv"] else done["err"].rstrip("\n")
        *before, last = said.splitlines()
        assert all(each.startswith("state directory ") for each in before), (line, done)
        assert (closed if closed == "job.json" else str(path)) in last, (line, done)
        assert "Permission denied" in last, (line, done)
        if "--json" not in done["argv"]:
            assert done["out"] == "", (line, done)


@pytest.mark.parametrize("closed", [each for each in CLOSED if "/shut" in each])
def test_a_closed_job_hurts_no_other(nobody: Callable[[], Nobody], closed: str) -> None:
    user = nobody()
    path = user.folder / closed
    path.chmod(0)
    lines = ("jobs", "status", "job ended", "results ended", "logs ended", "add -- true", "submit job.json --name new")
    found = user.call(*lines, "remove ended")
    assert [each["code"] for each in found] == [0] * len(found), found
    [row] = [line for line in found[0]["out"].splitlines() if line.startswith("shut")]
    is_needed = not closed.endswith(("/inbox", "/logs", "a.log"))
    assert (str(path) in row and "Permission denied" in row) is is_needed, row
    assert "ended\tcompleted" in found[0]["out"]
    [check] = user.call("doctor")
    assert (str(path) in check["out"]) is is_needed, check
