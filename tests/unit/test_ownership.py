"""State directories that are not this user's alone are refused before anything is read or written there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from air_executor.errors import StateDirError
from air_executor.jobs import api
from air_executor.jobs.queue import queue_in_job
from air_executor.jobs.store import JobStore
from air_executor.machine.ownership import check_state_dir
from tests.support import machine

TASKS = [{"id": "a", "command": "true"}]

#: What somebody may do to a state directory so that it is not this user's alone, and what is said of it.
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "another's": (lambda folder: os.chown(folder, 12345, 12345), "belongs to #12345, not to"),
    "another's jobs": (lambda folder: os.chown(folder / "jobs", 12345, 12345), "jobs belongs to #12345, not to"),
    "open to all": (lambda folder: folder.chmod(0o777), "chmod go-w"),
    "open to all in a sticky way": (lambda folder: folder.chmod(0o1777), "chmod go-w"),
    "jobs are open to all": (lambda folder: (folder / "jobs").chmod(0o777), "chmod go-w"),
    "open to a group": (lambda folder: (os.chown(folder, -1, 12345), folder.chmod(0o770)), "chmod go-w"),
    "a link": (lambda folder: (folder.rename(folder.parent / "real"), folder.symlink_to("real")), "a link is not"),
}

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("jobs",),
    ("job", "job"),
    ("results", "job"),
    ("logs", "job", "a"),
    ("status",),
    ("runs",),
    ("submit", "more.json"),
    ("run", "more.json"),
    ("run", "job"),
    ("queue", "--job", "job", "--", "true"),
    ("cancel", "job"),
    ("retry", "job"),
    ("reset", "job"),
    ("start",),
    ("start", "--detach"),
    ("stop",),
    ("trust", "--all"),
    ("prune",),
)


@pytest.fixture(params=SPOILT)
def spoilt(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder with a job whose state directory was spoilt, and what is said of it."""
    if os.geteuid() != 0 and request.param in ("another's", "another's jobs", "open to a group"):
        pytest.skip("only root can give files away")
    folder = tmp_path / "place"
    folder.mkdir()
    api.submit("job", TASKS, state_dir=folder / api.FOLDER)
    spoil, says = SPOILT[request.param]
    spoil(folder / api.FOLDER)
    return folder, says


def listing(folder: Path) -> list[tuple[str, int, int, int]]:
    paths = sorted([folder, *folder.rglob("*")])
    return [(str(path), (status := path.lstat()).st_ino, status.st_mtime_ns, status.st_mode) for path in paths]


def test_the_api_refuses(spoilt: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, says = spoilt
    before = listing(folder)
    state_dir = folder / api.FOLDER
    inside = {f"AIR_EXECUTOR_{name}": "x" for name in ("JOB", "TASK", "RUN")}
    calls: list[Callable[[], object]] = [
        lambda: api.submit("more", TASKS),
        lambda: api.submit("more", TASKS, state_dir=state_dir),
        lambda: api.queue_tasks(TASKS, job="job"),
        lambda: api.results("job"),
        lambda: api.wait("job", timeout_s=0),
        lambda: JobStore(state_dir).prepare(),
        lambda: queue_in_job(TASKS, {"AIR_EXECUTOR_STATE_DIR": str(state_dir), **inside}),
    ]
    monkeypatch.delenv("AIR_EXECUTOR_STATE_DIR", raising=False)
    for call in calls:
        monkeypatch.chdir(folder)
        with pytest.raises(StateDirError, match=says):
            call()
    assert listing(folder) == before


@pytest.mark.parametrize("spoilt", ["another's", "jobs are open to all"], indirect=True)
def test_each_command_refuses(spoilt: tuple[Path, str]) -> None:
    folder, says = spoilt
    (folder / "more.json").write_text('[{"id": "a", "command": "touch", "args": ["ran"]}]')
    below = folder / "below"
    below.mkdir()
    (below / "more.json").write_bytes((folder / "more.json").read_bytes())
    before = listing(folder)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIR_EXECUTOR_S", "AIRFLOW"))}
    for command in COMMANDS:
        argv = [sys.executable, "-m", "air_executor.cli.main", *command]
        done = subprocess.run(argv, env=env, cwd=below, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, (command, done)
        assert says in " ".join(done.stderr.split()), (command, done)
        assert done.stdout == "", command
    assert listing(folder) == before


def test_what_is_ours_and_what_is_not_there_passes(tmp_path: Path) -> None:
    check_state_dir(tmp_path / "nothing")
    check_state_dir(tmp_path / "nothing" / "below")
    for mode in (0o700, 0o755, 0o750):
        tmp_path.chmod(mode)
        check_state_dir(tmp_path)
    tmp_path.chmod(0o700)


@machine.needs_root
def test_root_may_look_at_what_is_anothers(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    check_state_dir(tmp_path, is_looking=True)
    with pytest.raises(StateDirError, match="belongs to #12345"):
        check_state_dir(tmp_path)


def test_a_state_directory_is_closed_to_others_from_its_birth(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "air_executor.cli.main", "init"]
    subprocess.run(["sh", "-c", 'umask 0; exec "$@"', "-", *argv], cwd=tmp_path, check=True, capture_output=True)
    for path in (tmp_path / api.FOLDER, *(tmp_path / api.FOLDER).rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_link_in_the_place_of_gitignore_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / api.FOLDER).mkdir(mode=0o700)
    (tmp_path / api.FOLDER / ".gitignore").symlink_to(tmp_path / "elsewhere")
    argv = [sys.executable, "-m", "air_executor.cli.main", "init"]
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True)
    assert not (tmp_path / "elsewhere").exists()
