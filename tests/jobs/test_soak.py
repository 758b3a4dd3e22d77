"""A week of a manager's life in small: full disks, many jobs, many ended jobs. Descriptors and memory stay flat."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import tracemalloc
from pathlib import Path

import pytest

from air_executor.errors import StateDirError
from air_executor.jobs import files as files_module
from air_executor.jobs.manager import Manager
from air_executor.jobs.model import Job, JobState
from air_executor.jobs.retention import Retention, prune
from air_executor.jobs.store import JobFiles, JobStore
from tests.jobs.test_garbage import TWO, Pretended, _pretended, pretended
from tests.support.airflow_env import config

__all__ = ["_pretended", "pretended"]


def descriptors(folder: Path) -> int:
    """How many descriptors this process has of files in a folder, and of inotify."""
    gc.collect()
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            target = os.readlink(f"/proc/self/fd/{fd}")
            count += target == "anon_inode:inotify" or folder in Path(target).parents
    return count


def test_a_full_disk_costs_no_descriptors(pretended: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("air_executor.jobs.manager.active_jobs._BLOCKED_S", 0.0)
    for number in range(3):
        pretended.submit(f"job-{number}", *TWO)
    pretended.held = {f"job-{number}/a" for number in range(3)}
    counts: list[int] = []
    is_full = False

    def fail(*_: object, **__: object) -> None:
        raise StateDirError("No space left on device")

    commit = JobFiles.commit

    def commit_unless_full(files: JobFiles, *tasks: object) -> None:
        if is_full:
            raise StateDirError("No space left on device")
        commit(files, *tasks)  # type: ignore[arg-type]

    monkeypatch.setattr(JobFiles, "commit", commit_unless_full)

    def at(step: int) -> None:
        nonlocal is_full
        if step == 20:
            is_full = True
            pretended.backend.finish_all()
            pretended.held = set()
            monkeypatch.setattr(files_module, "replace_file", fail)
        if 30 <= step < 130:
            counts.append(descriptors(pretended.folder))
        if step == 130:
            monkeypatch.undo()

    pretended.work(at, steps=190)
    assert max(counts) - min(counts) <= 4
    assert [pretended.state(f"job-{number}") for number in range(3)] == [JobState.COMPLETED] * 3


def test_jobs_that_come_and_end_and_go_leave_nothing_in_the_manager(
    pretended: Pretended, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "air_executor")  # what is captured would stay in memory
    sizes: list[tuple[int, int]] = []

    def at(step: int) -> None:
        pretended.submit(f"job-{step}", *TWO)
        if step % 10 == 9:
            prune(pretended.store, Retention(keep_days=1, keep_jobs=0))
        if step in (100, 300):
            sizes.append((descriptors(pretended.folder), tracemalloc.get_traced_memory()[0]))

    tracemalloc.start()
    try:
        manager = pretended.work(at, steps=310)
    finally:
        tracemalloc.stop()
    (before, early), (after, late) = sizes
    assert after - before <= 12  # a few more of the last jobs may be open at that moment
    assert late - early < 1_500_000
    assert len(manager._jobs.complaints) <= 12
    assert len(manager._lookout._turns) <= 30


def test_an_idle_manager_costs_next_to_nothing_beside_ten_thousand_ended_jobs(tmp_path: Path) -> None:
    """Its share of a CPU is that of what it does at one look, every five seconds."""
    store = JobStore(tmp_path)
    first = store.create(Job(id="1", name="job-0", state=JobState.COMPLETED), []).path
    for number in range(1, 10_000):
        folder = store.root / f"job-{number}"
        folder.mkdir()
        for name in ("state.json", "tasks.json"):
            os.link(first / name, folder / name)
    manager = Manager(config(tmp_path), poll_s=5.0, heeds_signals=False)
    manager._jobs.look()  # the first one looks at all
    used_s = []
    for _ in range(5):
        manager._lookout._listed_s = float("-inf")
        began = resource.getrusage(resource.RUSAGE_SELF)
        manager._jobs.look()
        ended = resource.getrusage(resource.RUSAGE_SELF)
        used_s.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
    manager._lookout.close()
    assert min(used_s) < 0.02 * 5.0, used_s  # CPU time; twice the aim of 1 %, as machines differ
