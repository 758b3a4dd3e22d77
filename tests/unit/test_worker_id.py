"""The name of a worker's state directory: each has its own, also a copy on another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from air_executor.cli import worker


@pytest.mark.parametrize("written", [None, "", "0a1b2c3d"])
@pytest.mark.parametrize("here", ["", "a"])
def test_a_state_directory_keeps_its_name_on_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None, here: str
) -> None:
    if written is not None:
        (tmp_path / "worker.id").write_text(written)
    monkeypatch.setattr(worker, "_machine_id", lambda: here)
    name = worker._place(tmp_path)
    assert name == (written or name)
    assert len(name) == 8
    assert worker._place(tmp_path) == name
    monkeypatch.setattr(worker, "_machine_id", lambda: "")  # a container may have none
    assert worker._place(tmp_path) == name


def test_a_copy_on_another_machine_gets_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for machine in ("a", "b", "a"):
        monkeypatch.setattr(worker, "_machine_id", lambda machine=machine: machine)
        names.append(worker._place(tmp_path))
        assert worker._place(tmp_path) == names[-1]
    assert len(set(names)) == 3
