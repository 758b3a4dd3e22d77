"""The state of jobs, seen from outside: from their files and locks. Nothing here writes."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from air_executor import jsontext
from air_executor.errors import AirExecutorError, JobError
from air_executor.jobs import ended as ended_jobs
from air_executor.jobs.model import Job, JobState, TaskStatus
from air_executor.jobs.store import JobFiles, JobStore, is_worked_on
from air_executor.runs.lock import is_held
from air_executor.runs.record import RunRecord
from air_executor.runs.store import RunStore


@dataclass(frozen=True)
class Summary:
    """A job in one line."""

    name: str
    state: JobState
    tasks: int
    completed: int
    failed: int
    running: int
    updated_at: str
    error: str | None
    skipped: int = 0
    cancelled: int = 0
    paused: bool = False
    trusted: bool = True
    """Whether it may be run: it was submitted here, or a user trusts it. True of every job that has ended."""
    has_manager: bool | None = None
    """Whether a manager works on it; ``None`` when it has ended."""


@dataclass(frozen=True)
class Listed:
    """The jobs that were asked for, by name."""

    jobs: list[Summary]
    left_out: int
    """How many more have ended."""


def summaries(state_dir: str | Path, *, ended: bool = True) -> list[Summary]:
    """Return the jobs below a state directory, by name. One that can't be read is ``failed``, with the error.

    :param ended: include the jobs that have ended.
    """
    return listed(state_dir, most_ended=None if ended else 0).jobs


def listed(state_dir: str | Path, *, most_ended: int | None) -> Listed:
    """Return the jobs below a state directory that have not ended, and some of those that have.

    Files are opened for what is returned; for other jobs that are noted as ended, only the folders are looked at.

    :param most_ended: how many of the ended ones, the last to end first; ``None`` for all.
    """
    store = JobStore(state_dir, is_looking=True)
    noted = ended_jobs.noted(store.root)
    found: list[Summary] = []
    over: list[tuple[int, str]] = []
    for name in store.names():
        mark = ended_jobs.mark_of(store.root / name)
        if mark is not None and noted.get(name) == mark:
            over.append((mark[1], name))
            continue
        try:
            files = store.files(name)
            if files.is_ended():
                over.append((0 if mark is None else mark[1], name))
            else:
                found.append(_live_summary(store, store.open(name)))
        except AirExecutorError as error:
            found.append(_unreadable(name, error))
    shown = over if most_ended is None else heapq.nlargest(most_ended, over)
    for _, name in shown:
        try:
            found.append(_summary(*store.files(name).counts()))
        except AirExecutorError as error:
            found.append(_unreadable(name, error))
    return Listed(sorted(found, key=lambda each: each.name), len(over) - len(shown))


def _unreadable(name: str, error: AirExecutorError) -> Summary:
    return Summary(jsontext.shown(name), JobState.FAILED, 0, 0, 0, 0, "", str(error))


def summary(files: JobFiles) -> Summary:
    """Return the summary of a job that was read."""
    found = _summary(files.job, Counter(task.status.value for task in files.tasks.values()))
    return found if found.state.is_end else dataclasses.replace(found, has_manager=is_worked_on(files.path))


def _live_summary(store: JobStore, files: JobFiles) -> Summary:
    why = untrusted(store, files.job)
    return summary(files) if why is None else dataclasses.replace(summary(files), trusted=False, error=why)


def _summary(job: Job, counts: Counter[str]) -> Summary:
    return Summary(
        job.name,
        job.state,
        sum(counts.values()),
        counts[TaskStatus.COMPLETED.value],
        counts[TaskStatus.FAILED.value],
        counts[TaskStatus.RUNNING.value],
        job.updated_at,
        job.error,
        counts[TaskStatus.SKIPPED.value],
        counts[TaskStatus.CANCELLED.value],
        job.paused and not job.state.is_end,
    )


def untrusted(store: JobStore, job: Job) -> str | None:
    """Return what to do about a job that is not run because nobody trusts it; ``None`` for all others.

    Trust does not matter for a job that has ended, nor when somebody else's jobs are looked at.
    """
    if job.state.is_end or store.root.lstat().st_uid != os.geteuid():
        return None
    if (why := store.distrust(job)) is None:
        return None
    why = why.removeprefix("was ").removeprefix("has ")
    return f"{why}, so it is not run; if you trust it: `air-executor trust {job.name}`"


def obstacle(store: JobStore, files: JobFiles) -> str | None:
    """Return why a job that has not ended makes no progress, and what to do about it; ``None`` if nothing is wrong."""
    job = files.read_job()
    if why := untrusted(store, job):
        return why
    if job.paused:
        return f"it is paused; `air-executor resume {job.name}` lets it go on"
    if not is_worked_on(files.path):
        return "no manager works here; begin with `air-executor start`"
    if not is_held(files.path / "lock"):  # the manager of all jobs has not begun with it
        try:
            store.open(job.name)
        except JobError as error:
            return str(error)
    return None


def leftover_runs(files: JobFiles) -> dict[str, RunRecord | None] | None:
    """Return the runs of the ``running`` tasks of a job that has no manager, by task.

    Such a run may have ended since; a task without a record has ``None``. If the files are up to date, because a
    manager works on the job or it has ended, ``None`` is returned.
    """
    if files.job.state.is_end or is_worked_on(files.path):
        return None
    runs = RunStore(files.path.parent.parent)
    found: dict[str, RunRecord | None] = {}
    for task in files.tasks.values():
        if task.status is TaskStatus.RUNNING:
            found[task.id] = None
            with contextlib.suppress(AirExecutorError):
                found[task.id] = runs.settled(runs.read(task.run_id or ""))
    return found
