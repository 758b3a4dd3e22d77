"""Fixtures for tests of single DAG runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.waiting import wait_for

DAGS = Path(__file__).parent / "dags"


@dataclass
class Place:
    """A folder in which somebody runs DAGs, whose own Airflow is elsewhere."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("AIR", "PYTEST"))}
        return env | {
            "AIRFLOW_HOME": str(self.folder / "users-airflow"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////nowhere/at.all",
            "AIRFLOW__CORE__EXECUTOR": "NoSuchExecutor",
            "DAG_OUT": str(self.folder),
        }

    @property
    def dags(self) -> Path:
        return self.folder / ".air-executor" / "dags"

    def start(
        self, *arguments: str, python: Sequence[str] = ("-m", "air_executor.cli"), **kwargs: Any
    ) -> subprocess.Popen[str]:
        """Start ``air-executor dag``.

        :param python: what Python is given to execute it.
        """
        return subprocess.Popen(
            [sys.executable, *python, "dag", *arguments],
            cwd=self.folder,
            env=self.env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **kwargs,
        )

    def call(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Return what a command prints on stdout and stderr."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=1500)
        finally:
            process.kill()
        if process.returncode != code:
            pytest.fail(f"it ended with {process.returncode}\n{out}\n{err}\n{self.logs()}")
        return out, err

    def events(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        out, _ = self.call("run", *arguments, "--json", code=code)
        return [json.loads(line) for line in out.splitlines()]

    def logs(self) -> str:
        found = sorted(self.dags.glob("*/parts/*.log"))
        return "\n".join(f"== {path}\n{path.read_text()[-2000:]}" for path in found)

    def effects(self) -> list[str]:
        path = self.folder / "effects"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_effect(self, line: str) -> None:
        wait_for(lambda: line in self.effects(), f"the effect {line}: {self.logs()}")

    def processes(self) -> list[psutil.Process]:
        """Return what lives of runs that were started here: it works where the command was called."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() == str(self.folder):
                    found.append(process)
        return found

    def parts(self, name: str = "") -> list[psutil.Process]:
        """Return the processes of a run's Airflow, or its part of that name."""
        title = f"air-executor dag {name}"
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).rstrip().startswith(title.rstrip()):
                    found.append(process)
        return found

    def check_nothing_runs(self) -> None:
        wait_for(lambda: not self.processes(), "all processes of the run to end")


@pytest.fixture
def place(tmp_path: Path) -> Any:
    (tmp_path / ".air-executor").mkdir(mode=0o700)
    place = Place(tmp_path)
    yield place
    for process in place.processes():
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
