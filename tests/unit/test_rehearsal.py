"""What a launcher plays before its first fork, and that nobody hears of it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from airflow.sdk.execution_time import task_runner

from air_executor.airflow import rehearsal
from air_executor.airflow.compat import options
from tests.support.airflow_env import REPOSITORY, config
from tests.unit.processes import result_of

pytestmark = pytest.mark.core

#: Says so when it is imported, or told of a task.
PLUGIN = """
from pathlib import Path

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin


def say(what):
    with Path(__file__).with_name("heard").open("a") as file:
        file.write(what + "\\n")


class Listener:
    @hookimpl
    def on_starting(self, component):
        say("starting")

    @hookimpl
    def on_task_instance_running(self, previous_state, task_instance):
        say("running")


class Plugin(AirflowPlugin):
    name = "eavesdropper"
    listeners = [Listener()]


say("imported")
"""

REHEARSE = """
import sys
from pathlib import Path
from air_executor.airflow import rehearsal, warmup
from tests.support.airflow_env import config

warmup.warm_up([])
rehearsal.rehearse()
rehearsal.rehearse_runs(config(Path(sys.argv[1])))
"""


def state() -> dict[str, Any]:
    """Return what of this process runners and task processes change."""
    gc.collect()
    return {
        "environment": dict(os.environ),
        "directory": str(Path.cwd()),
        "path": list(sys.path),
        "descriptors": {
            fd: str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in sorted(os.listdir("/proc/self/fd")) if int(fd) < 3
        },
        "number of descriptors": len(os.listdir("/proc/self/fd")),
        "handlers": {name: str(signal.getsignal(getattr(signal, name))) for name in ("SIGTERM", "SIGINT", "SIGALRM")},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "DAG files": [name for name in sys.modules if name.startswith("unusual_prefix_")],
        "in a task": hasattr(task_runner, "SUPERVISOR_COMMS"),
        "listeners": str(task_runner.get_listener_manager),
        "bundles": str(task_runner.DagBundlesManager),
        "children": len(psutil.Process().children()),
        "threads": threading.active_count(),
    }


def test_runs_are_rehearsed_and_leave_nothing_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def play() -> list[Any]:
        rehearsal.rehearse()
        before = state()
        rehearsal.rehearse_runs(config(tmp_path / "state"))
        return [before, state()]

    before, after = result_of(play)
    printed = "".join(capfd.readouterr())
    assert "cannot be rehearsed" not in printed
    assert "Traceback" not in printed
    assert after == before
    assert list(tmp_path.iterdir()) == []


def test_code_that_runs_have_used_is_gathered(tmp_path: Path) -> None:
    def play() -> list[bool]:
        used = [task_runner.run, task_runner.main, task_runner.finalize]
        before = [each.__code__ for each in used]
        rehearsal.rehearse_runs(config(tmp_path / "state"))
        return [each.__code__ is not code for each, code in zip(used, before, strict=True)]

    assert result_of(play) == [True, True, True]


def test_nobody_hears_of_what_is_rehearsed(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "eavesdropper.py").write_text(PLUGIN)
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(plugins),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(REPOSITORY),
    }

    def run(*code: str) -> str:
        command = [sys.executable, "-c", *code]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=True)
        return done.stdout + done.stderr

    printed = run(REHEARSE, str(tmp_path / "state"))
    assert "cannot be rehearsed" not in printed
    assert not (plugins / "heard").exists()
    assert not (tmp_path / "home" / "logs").is_dir() or not list((tmp_path / "home" / "logs").rglob("*rehears*"))
    # It would have been heard.
    run("from airflow.sdk.execution_time.task_runner import get_listener_manager; get_listener_manager()")
    assert (plugins / "heard").read_text() == "imported\n"


def test_a_rehearsal_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(rehearsal.CONTEXT, "dag_run", {})

    def play() -> list[Any]:
        before = state()
        rehearsal.rehearse_runs(config(tmp_path / "state"))
        return [before, state()]

    before, after = result_of(play)
    assert after == before
    printed = "".join(capfd.readouterr())
    assert "cannot be rehearsed" in printed
    assert "the rehearsed run has failed" in printed


def test_nothing_is_rehearsed_where_tasks_are_another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DEFAULT_IMPERSONATION", "nobody")
    monkeypatch.setattr(rehearsal._Rehearsal, "play", lambda _: pytest.fail("it was played"))
    assert options.impersonation() is not None
    rehearsal.rehearse_runs(config(tmp_path / "state"))


def test_an_option_of_airflow_that_can_not_be_used_ends_no_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def get(*_: Any, **__: Any) -> NoReturn:
        raise ValueError("perhaps")

    monkeypatch.setattr("airflow.configuration.conf.get", get)
    rehearsal.rehearse_runs(config(tmp_path))
    said = capfd.readouterr()
    assert "runs cannot be rehearsed" in said.out
    assert "perhaps" in said.err
