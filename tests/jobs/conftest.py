"""A folder with jobs, and a manager for them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from air_executor.jobs import api
from air_executor.jobs.manager import Manager
from air_executor.jobs.model import Task
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.launcher.address import all_addresses
from air_executor.launcher.client import control
from air_executor.runs.store import RunStore
from tests.support.airflow_env import REPOSITORY, config
from tests.support.waiting import wait_for

#: No job of a test takes longer, in seconds.
LONG_S = 240.0


class Yard:
    """A working directory with a state directory in it."""

    def __init__(self, folder: Path, state_dir: Path | None = None) -> None:
        self.folder = folder
        self.state_dir = state_dir or folder / api.FOLDER
        self.store = JobStore(self.state_dir)
        self.runs = RunStore(self.state_dir)
        self.managers: list[subprocess.Popen[bytes]] = []

    def submit(self, *tasks: dict[str, Any], name: str = "job", **options: Any) -> None:
        api.submit(name, tasks, state_dir=self.state_dir, **{"folder": self.folder, **options})

    def manager(self, **options: Any) -> Manager:
        """A manager for this process, which looks at the files only when it is told to."""
        return Manager(config(self.state_dir), **{"poll_s": 600.0, **options})

    def finish(self, name: str = "job", **options: Any) -> JobFiles:
        """Work on all jobs, in this process, until one has ended."""
        wait_for_end = wait_until(lambda: self.store.open(name).job.state.is_end, f"job {name} to end")
        self.manager(**options).serve(until=wait_for_end)
        return self.store.open(name)

    def tasks(self, name: str = "job") -> dict[str, Task]:
        return self.store.open(name).tasks

    def log(self, task_id: str, name: str = "job") -> str:
        return self.store.open(name).log_file(task_id).read_text()

    def lines(self, file: str) -> list[str]:
        try:
            return (self.folder / file).read_text().splitlines()
        except FileNotFoundError:
            return []

    # Managers as processes of their own

    @property
    def env(self) -> dict[str, str]:
        paths = os.pathsep.join([str(REPOSITORY), str(self.folder)])
        return {**os.environ, "AIR_EXECUTOR_STATE_DIR": str(self.state_dir), "PYTHONPATH": paths}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "air_executor.cli.main", *arguments]

    def call(self, *arguments: str, code: int = 0) -> str:
        """Call the command line and return what it prints."""
        done = subprocess.run(
            self.command(*arguments), env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=LONG_S
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start_manager(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "manager.log").open("ab") as log:
            manager = subprocess.Popen(
                self.command("start", "--poll", "600", *arguments),
                env=self.env,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        self.managers.append(manager)
        wait_for(lambda: self.store.manager() == manager.pid, "the manager")
        return manager

    def has_written(self, task_id: str, status: str, name: str = "job") -> bool:
        """Tell whether ``tasks.json`` itself has this status of a task, and the manager is done with the job's files.

        It closes the journal last. What somebody writes before that may be taken for the manager's own.
        """
        folder = self.store.folder(name)
        tasks = orjson.loads((folder / "tasks.json").read_bytes())
        if status not in [task.get("status") for task in tasks if task["id"] == task_id]:
            return False
        opened = psutil.Process(self.managers[-1].pid).open_files()
        return str(folder / "journal.jsonl") not in [file.path for file in opened]

    def launchers(self) -> list[psutil.Process]:
        answers = [control.status(address) for address in all_addresses(self.runs)]
        return _there(answer["pid"] for answer in answers if answer is not None)

    def runner_of(self, task_id: str, name: str = "job") -> psutil.Process:
        """The process that executes a task, once its command runs."""

        def found() -> psutil.Process | None:
            run_id = self.tasks(name)[task_id].run_id
            record = self.runs.read(run_id) if run_id and (self.runs.folder(run_id) / "state.json").exists() else None
            return psutil.Process(record.pid) if record and record.task_pid and record.pid else None

        return wait_for(found, f"the runner of {task_id}")

    def end(self) -> None:
        for manager in self.managers:
            with contextlib.suppress(ProcessLookupError):
                manager.kill()
            manager.wait()
        for process in [*self.launchers(), *self.orphans()]:
            with contextlib.suppress(psutil.Error):
                children = process.children(recursive=True)
                process.send_signal(signal.SIGTERM)
                for child in children:
                    with contextlib.suppress(psutil.Error):
                        child.kill()
                process.wait(LONG_S)

    def orphans(self) -> list[psutil.Process]:
        """The runners that live, whether their launcher does or not."""
        return _there(each.pid for each in self.runs.records() if each.pid and self.runs.is_runner(each))


def _there(pids: Iterable[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def wait_until(condition: Callable[[], Any], what: str) -> Callable[[], bool]:
    """Return a function that tells whether ``condition`` holds, and fails when it has not for too long."""
    import time

    end_s = time.monotonic() + LONG_S

    def is_so() -> bool:
        if condition():
            return True
        assert time.monotonic() < end_s, f"still waiting for {what}"
        return False

    return is_so


@pytest.fixture
def new_yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Yard]]:
    """Makes yards in a folder of their own, with their state directories there or elsewhere."""
    for name in list(os.environ):
        if name.startswith("AIR_EXECUTOR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AIR_EXECUTOR_PRIVATE_DIR", str(tmp_path / "private"))
    yards: list[Yard] = []

    def make(state_dir: Path | None = None) -> Yard:
        yards.append(Yard(tmp_path, state_dir))
        return yards[-1]

    yield make
    for yard in yards:
        yard.end()


@pytest.fixture
def yard(new_yard: Callable[..., Yard]) -> Yard:
    return new_yard()
