"""Files of jobs that somebody has written by hand, as another tool writes them: also on the oldest Python."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from air_executor.jobs.model import JobState
from tests.jobs.conftest import LONG_S, Yard
from tests.support.airflow_env import REPOSITORY

#: As other languages write moments; ``datetime.fromisoformat`` reads such from Python 3.11 on.
BEGAN, ENDED = "2026-01-31T12:00:00.5Z", "2026-01-31T12:00:05.750000001z"

#: For a Python 3.10 that has nothing installed: enough for modules that are not under test to be imported.
BARE = """
import json, sys, types
for name in ("orjson", "psutil"):
    sys.modules[name] = module = types.ModuleType(name)
    module.__getattr__ = lambda name: json.JSONDecodeError if name == "JSONDecodeError" else 0
package = sys.modules["air_executor.jobs"] = types.ModuleType("air_executor.jobs")
package.__path__ = [sys.argv[1] + "/air_executor/jobs"]
sys.path.insert(0, sys.argv[1])
from air_executor.jobs.fields import moment
began, ended = map(moment, sys.argv[2:])
print((ended - began).total_seconds(), began.utcoffset().total_seconds())
"""


def pythons() -> Iterator[Path]:
    """Every Python 3.10 that may be there: environments of this repository first, as they have our packages."""
    yield from sorted(REPOSITORY.glob(".venv*/bin/python"))
    if found := shutil.which("python3.10"):
        yield Path(found)
    yield from sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python"))


@functools.cache
def python310(*packages: str) -> Path:
    """A Python 3.10 that can import packages."""
    check = f"import sys, {', '.join(packages) or 'json'}; sys.exit(sys.version_info[:2] != (3, 10))"
    for python in pythons():
        if subprocess.run([python, "-c", check], capture_output=True, timeout=LONG_S).returncode == 0:
            return python
    pytest.skip(f"there is no Python 3.10{' with ' if packages else ''}{', '.join(packages)}")


def write_job(yard: Yard) -> None:
    yard.store.prepare()
    folder = yard.store.root / "by-hand"
    folder.mkdir()
    task = {"id": "a", "command": "true", "status": "completed", "started_at": BEGAN, "completed_at": ENDED}
    (folder / "tasks.json").write_text(json.dumps([task, {**task, "id": "b", "status": "failed", "error": "why"}]))
    state = {"id": str(uuid.uuid4()), "state": "failed", "created_at": BEGAN, "updated_at": ENDED}
    (folder / "state.json").write_text(json.dumps(state))


def check_views(yard: Yard, python: str) -> None:
    for command, says in (("job", "5.2s"), ("results", "5.2s"), ("jobs", "2026-01-31 12:00:05")):
        argv = [python, *yard.command(command, *(["by-hand"] if command != "jobs" else []))[1:]]
        done = subprocess.run(argv, env=yard.env, cwd=yard.folder, capture_output=True, text=True, timeout=LONG_S)
        assert done.returncode == (1 if command == "results" else 0), done.stderr
        assert says in done.stdout


def test_moments_with_a_z_are_shown(yard: Yard) -> None:
    write_job(yard)
    assert yard.store.open("by-hand").job.state is JobState.FAILED
    check_views(yard, sys.executable)


def test_moments_with_a_z_are_shown_on_python_3_10(yard: Yard) -> None:
    python = python310("orjson", "psutil", "rich")
    write_job(yard)
    check_views(yard, str(python))


def test_moments_with_a_z_are_read_by_a_bare_python_3_10() -> None:
    argv = [python310(), "-I", "-c", BARE, str(REPOSITORY), BEGAN, ENDED]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LONG_S)
    assert done.stdout == "5.25 0.0\n", done.stderr
