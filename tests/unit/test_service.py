"""The launcher as a service: started by somebody else, found through the state directory, never ended by idleness."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from air_executor.launcher.address import service_address
from air_executor.launcher.client import control
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import RunState, queued
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.documents import identity
from tests.unit.processes import family, is_alive


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: RunStore) -> Iterator[None]:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STATE_DIR", str(store.root))
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__LAUNCHER_IDLE_SECONDS", "0")
    with family():
        yield


def serve() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "air_executor.cli", "launcher"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def order(backend: LocalBackend, log_file: Path) -> str:
    who = identity()
    record = queued(os.urandom(16).hex(), who, limits={}, log_file=str(log_file))
    # Not a workload: the runner refuses it, which is an end like any other.
    backend.order(RunRequest(id=record.id, identity=who, workload={}, log_file=str(log_file)), record)
    return record.id


def test_runs_wait_for_a_service_that_starts_late_and_a_second_one_is_refused(store: RunStore, tmp_path: Path) -> None:
    backend = LocalBackend(config(store.root, launcher="service"))
    run_id = order(backend, tmp_path / "log")
    assert backend.take_ends() == []
    assert store.read(run_id).state is RunState.QUEUED
    service = serve()
    (ended,) = wait_for(backend.take_ends, "the end of the run")
    assert ended.id == run_id
    assert ended.state is RunState.FAILED
    # Idle time over, and no client: it stays all the same.
    backend.close()
    answer = wait_for(lambda: control.status(service_address(store)), "the service to answer")
    assert answer["pid"] == service.pid
    second = serve()
    assert second.wait(120) == 2
    assert "stop that one first" in (second.stdout.read() if second.stdout else "")
    service.send_signal(signal.SIGTERM)
    assert service.wait(120) == 0
    assert not service_address(store).socket.exists()


def test_what_a_script_started_before_it_became_the_launcher_is_not_taken_for_a_run_s(
    store: RunStore, tmp_path: Path
) -> None:
    """A container's entry point does that. Its processes, and what those leave behind, come to the launcher too."""
    (tmp_path / "sidecar.sh").write_text(
        "sh -c 'sleep 600 & echo $! > orphan; echo > left'; echo $$ > sidecar; sleep 600\n"
    )
    script = 'sh sidecar.sh & until [ -s sidecar ]; do sleep 0.02; done; exec "$@"'
    command = [sys.executable, "-m", "air_executor.cli", "launcher"]
    launcher = subprocess.Popen(["sh", "-c", script, "sh", *command], cwd=tmp_path)
    backend = LocalBackend(config(store.root, launcher="service"))
    who = identity(kind="job")
    record = queued(os.urandom(16).hex(), who, limits={}, log_file=str(tmp_path / "log"))
    task = "setsid sleep 601 & echo $! > task; sleep 602"
    workload = {"argv": [task], "shell": True, "cwd": str(tmp_path)}
    backend.order(RunRequest(id=record.id, identity=who, workload=workload, log_file=record.log_file), record)
    begun = tmp_path / "task"
    wait_for(lambda: backend.take_ends() or (begun.exists() and begun.read_text()), "the task to begin")
    own, orphan, sidecar = (int((tmp_path / name).read_text()) for name in ("task", "orphan", "sidecar"))
    os.kill(store.read(record.id).pid or 0, signal.SIGKILL)
    (ended,) = wait_for(backend.take_ends, "the end of the run")
    assert ended.state is RunState.KILLED
    assert not is_alive(own)
    assert is_alive(sidecar)
    os.kill(sidecar, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(sidecar), "the launcher to reap it")
    assert is_alive(orphan)
    assert launcher.poll() is None
    backend.close()


def test_without_the_service_runs_fail_in_the_end_and_say_what_to_start(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("air_executor.launcher.client.restarts._SERVICE_S", (0.0, 0.1))
    with contextlib.closing(LocalBackend(config(store.root, launcher="service"))) as backend:
        order(backend, tmp_path / "log")
        (ended,) = wait_for(backend.take_ends, "the failure")
    assert "air-executor launcher" in (ended.reason or "")
    assert "air-executor launcher" in (tmp_path / "log").read_text()
