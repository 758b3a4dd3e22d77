"""What is remembered of a task's memory: by try and by run, short, and never in the way."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from air_executor.errors import StateDirError
from air_executor.runs import learned
from air_executor.runs.learned import Learned
from tests.unit.documents import identity


def test_ends_are_of_one_piece_of_work_and_peaks_of_a_task(tmp_path: Path) -> None:
    notes, who = Learned(tmp_path / "learned"), identity()
    assert (notes.memory_ends(who), notes.peaks(who)) == (0, [])
    next_try = dataclasses.replace(who, workload_id=identity().workload_id, try_number=2)
    notes.note_memory_end(who, 5)
    notes.note_peak(who, 5)
    assert (notes.memory_ends(next_try), notes.peaks(next_try)) == (1, [5])
    sibling = dataclasses.replace(who, map_index=3, dag_run_id="another")
    assert (notes.memory_ends(sibling), notes.peaks(sibling)) == (0, [5])
    other = dataclasses.replace(who, task_id="other")
    assert (notes.memory_ends(other), notes.peaks(other)) == (0, [])


def test_only_the_last_runs_count_and_files_stay_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "_LONG_BYTES", 200)
    notes, who = Learned(tmp_path / "learned"), identity()
    for peak in range(300):
        notes.note_peak(who, peak)
    assert notes.peaks(who) == list(range(250, 300))
    (path,) = (tmp_path / "learned").iterdir()
    assert path.stat().st_size <= 51 * 4 and path.stat().st_mode & 0o777 == 0o600


def test_what_is_no_number_is_left_out_and_what_is_old_goes(tmp_path: Path) -> None:
    notes, who = Learned(tmp_path / "learned"), identity()
    notes.prune()  # there is nothing yet
    notes.note_peak(who, 7)
    (path,) = (tmp_path / "learned").iterdir()
    path.write_bytes(b"\xff\n-3\n8\nx\n" + b"9" * 4301 + b"\n9")
    assert notes.peaks(who) == [8, 9]
    month_s = 31 * 86400
    os.utime(path, (time.time() - month_s,) * 2)
    notes.prune()
    assert path.exists()
    os.utime(path, (time.time() - 14 * month_s,) * 2)
    notes.prune()
    assert not path.exists()


def test_a_first_try_begins_anew(tmp_path: Path) -> None:
    notes = Learned(tmp_path / "learned")
    second, first = identity(try_number=2), identity(try_number=1)
    notes.note_memory_end(second, 5)
    notes.note_memory_end(second, 6)
    assert notes.memory_ends(second) == 2
    assert notes.memory_ends(first) == 0  # of the same task of a job that was started again
    assert notes.memory_ends(second) == 0


def test_a_folder_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "learned").write_text("")
    notes = Learned(tmp_path / "learned")
    assert notes.peaks(identity()) == []
    with pytest.raises(StateDirError):
        notes.note_peak(identity(), 1)


def test_what_one_host_knows_is_known_to_the_next(tmp_path: Path) -> None:
    executor, first, second = (Learned(tmp_path / name) for name in ("executor", "first", "second"))
    one = identity()
    two = dataclasses.replace(one, try_number=2)
    first.take(one, executor.document(one))
    first.note_memory_end(one, 5)
    executor.take(one, {"ends": first.ends(one), "peaks": []})
    executor.note_peak(one, 5)
    second.take(two, executor.document(two))
    assert (second.memory_ends(two), second.peaks(two)) == (1, [5])
    second.take(two, {"ends": [], "peaks": []})  # of an executor that knows less
    assert (second.memory_ends(two), second.peaks(two)) == (1, [5])


def test_what_came_with_an_order_replaces_nothing_that_is_newer(tmp_path: Path) -> None:
    executor, host, who = Learned(tmp_path / "executor"), Learned(tmp_path / "host"), identity()
    for _ in range(learned.RUNS):
        executor.note_peak(who, 1)
    document = executor.document(who)
    host.take(who, document)
    for _ in range(3):  # of tasks that were ordered at once
        host.note_peak(who, 500)
        host.take(who, document)
    assert host.peaks(who).count(500) == 3
