"""The name of a worker's state directory: each has its own, also a copy on another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from air_executor.cli import worker
from air_executor.machine import system


def on(monkeypatch: pytest.MonkeyPatch, machine: str, host: str) -> None:
    monkeypatch.setattr(worker, "_machine_id", lambda: machine)
    monkeypatch.setattr(system, "host", lambda: host)


def test_a_state_directory_keeps_its_name_on_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "a", "one")
    name = worker._place(tmp_path)
    assert len(name) == 8 and worker._place(tmp_path) == name
    for machine, host in (("b", "one"), ("b", "two"), ("", "two")):
        on(monkeypatch, machine, host)
        other = worker._place(tmp_path)
        assert other != name and worker._place(tmp_path) == other
        name = other


def test_a_worker_keeps_the_name_that_a_former_version_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker.id").write_text("0a1b2c3d")
    on(monkeypatch, "", "one")
    assert [worker._place(tmp_path) for _ in range(2)] == ["0a1b2c3d"] * 2
    on(monkeypatch, "", "two")
    assert worker._place(tmp_path) != "0a1b2c3d"
