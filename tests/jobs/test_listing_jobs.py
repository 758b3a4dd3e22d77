"""What looking at jobs costs: it grows with what is shown, not with all that has ever run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from air_executor.jobs import ended
from air_executor.jobs.model import Job, JobState, Task, TaskStatus
from air_executor.jobs.store import JobStore
from air_executor.observe.jobs import listed, summaries
from tests.jobs.conftest import Yard


def make(store: JobStore, name: str, *, is_ended: bool = True) -> None:
    task = Task.from_dict({"id": "a", "command": "true"}, job_name=name, where="test")
    task.status = TaskStatus.COMPLETED if is_ended else TaskStatus.PENDING
    files = store.create(Job(id=f"id-{name}", name=name), [task])
    if is_ended:
        files.set_state(JobState.COMPLETED)


@pytest.fixture
def opened(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened in the yard."""
    paths: list[str] = []
    really = os.open

    def note(path: Any, *arguments: Any, **options: Any) -> int:
        if yard.folder in Path(os.fsdecode(path)).parents:
            paths.append(os.fsdecode(path))
        return really(path, *arguments, **options)

    monkeypatch.setattr(os, "open", note)
    return paths


def test_as_many_files_are_opened_beside_many_ended_jobs_as_beside_few(yard: Yard, opened: list[str]) -> None:
    make(yard.store, "live", is_ended=False)
    costs = []
    for number in range(60):
        make(yard.store, f"job-{number}")
        if number in (9, 59):
            for most_ended in (0, 5):
                opened.clear()
                found = listed(yard.state_dir, most_ended=most_ended)
                assert len(found.jobs) == 1 + most_ended
                assert found.left_out == number + 1 - most_ended
                costs.append(len(opened))
            # One job's affairs are the business of no other.
            opened.clear()
            yard.store.open("live")
            assert not [path for path in opened if "job-" in path]
    assert costs[:2] == costs[2:]
    assert 0 < costs[0] < 20


def test_the_jobs_that_ended_last_are_shown_with_all_that_live(yard: Yard) -> None:
    for number in range(60):
        make(yard.store, f"job-{number:02}")
        moment_s = time.time() - 3600 + (number * 7) % 60
        os.utime(yard.store.folder(f"job-{number:02}") / "state.json", (moment_s, moment_s))
    make(yard.store, "old-and-live", is_ended=False)
    shown = yard.call("jobs")
    assert "and 10 more that have ended; `air-executor jobs -n 0` lists all" in shown
    rows = [line.split("\t")[0] for line in shown.splitlines() if "\t" in line][1:]
    latest = sorted(range(60), key=lambda number: (number * 7) % 60)[10:]
    assert rows == [*(f"job-{number:02}" for number in sorted(latest)), "old-and-live"]
    assert len(json.loads(yard.call("jobs", "--json"))) == 61
    assert len(json.loads(yard.call("jobs", "--json", "-n", "3"))) == 4
    assert "more that have ended" not in yard.call("jobs", "-n", "0")


def test_a_job_that_was_edited_or_checked_out_since_its_end_is_looked_at_again(yard: Yard) -> None:
    for name in ("edited", "touched", "gone"):
        make(yard.store, name)
    path = yard.store.folder("edited") / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "waiting"}))
    os.utime(yard.store.folder("touched") / "state.json")
    (yard.store.folder("gone") / "state.json").unlink()
    assert [job.name for job in summaries(yard.state_dir, ended=False)] == ["edited"]
    assert {job.name: job.state for job in summaries(yard.state_dir)} == {
        "edited": JobState.WAITING,
        "touched": JobState.COMPLETED,
    }


@pytest.mark.parametrize("text", [b"", b"\xff\0\n", b'["job", null]\n', b"[1, [1, 2, 3]]\n", b"{}\n[[]]\n"])
def test_garbage_in_the_index_costs_a_look_and_nothing_else(yard: Yard, text: bytes) -> None:
    make(yard.store, "job")
    path = yard.store.root / ".ended" / "index"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(text)
    assert [job.state for job in summaries(yard.state_dir)] == [JobState.COMPLETED]
    path.unlink()
    path.symlink_to(yard.folder / "elsewhere")
    make(yard.store, "other")
    assert not (yard.folder / "elsewhere").exists()
    assert len(summaries(yard.state_dir)) == 2


def test_the_index_stays_short(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "_COMPACT_BYTES", 1000)
    for number in range(3):
        make(yard.store, f"job-{number}")
    path: Path = yard.store.root / ".ended" / "index"
    for _ in range(200):  # a job that is begun anew again and again
        ended.note(yard.store.folder("job-0"))
        assert path.stat().st_size < 1100
    assert set(ended.noted(yard.store.root)) == {"job-0", "job-1", "job-2"}
