"""The command line over a state directory that is full of runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.config import env_var
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore
from tests.unit.clocks import Time
from tests.unit.documents import identity, kept, of_process

Done = subprocess.CompletedProcess[str]


class Cli:
    """``air-executor`` for one state directory."""

    def __init__(self, store: RunStore, home: Path) -> None:
        kept_names = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        self.env = {
            **kept_names,
            "AIRFLOW_HOME": str(home),
            env_var("state_dir"): str(store.root),
            "COLUMNS": "200",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "air_executor.cli", *arguments]

    def run(self, *arguments: str, code: int = 0, **env: str) -> Done:
        done = subprocess.run(
            self.command(*arguments), env={**self.env, **env}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return orjson.loads(self.run(*arguments, "--json", code=code).stdout)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Put clocks that a test sets in the place of those of this process."""
    clock = Time()
    monkeypatch.setattr(time, "monotonic", lambda: clock.mono_s)
    monkeypatch.setattr(time, "time", lambda: clock.wall_s)
    return clock


@pytest.fixture
def cli(store: RunStore, tmp_path: Path) -> Cli:
    home = tmp_path / "home"
    home.mkdir()
    (home / "airflow.cfg").touch()
    return Cli(store, home)


@pytest.fixture
def filled(store: RunStore) -> dict[RunState, RunRecord]:
    """One run of each state, queued in this order, in two DAGs. The live ones are of a runner that holds no lock."""
    filled = {}
    for number, state in enumerate(RunState):
        filled[state] = kept(
            store,
            state,
            run_id=f"{number}aaaaaaa-0000-4000-8000-00000000000{number}",
            who=identity(dag_id="odd" if number % 2 else "even", task_id=f"task_{state.value}"),
            queued_at=f"2026-01-0{number + 1}T00:00:00.000000+00:00",
            reason=f"because of [{state.value}]" if state.is_end else None,
            reported_at="2026-01-09T00:00:00+00:00" if state.is_end else None,
        )
    return filled


@pytest.fixture
def alive(store: RunStore) -> Iterator[RunRecord]:
    """A run whose runner, for all that can be seen, is this process."""
    who = identity(task_id="alive")
    lock = store.lock(who.workload_id)
    assert lock.acquire(0)
    yield kept(store, RunState.RUNNING, who=who, **of_process())
    lock.release()
