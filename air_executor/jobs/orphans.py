"""Runs of jobs' tasks that no job waits for, as its folder was removed while no manager worked on it.

A manager reports the end of each run that it has started. One that dies before that leaves the run to the next manager,
which finds it in the job's files. Where those are gone, or say something else by then, nobody ever reports the run, and
its record would be kept for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from air_executor.errors import AirExecutorError, WrongStateError
from air_executor.jobs.model import TaskStatus
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.machine.safe_files import is_fresh, modified_s
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore

#: A runner has begun this many seconds after its run was queued, at the latest.
_BIRTH_S = 60.0


def release(store: JobStore, runs: RunStore) -> None:
    """Let go of the ended runs that no job waits for, so that they can be pruned. The cost grows with the open runs."""
    by_job: dict[str, list[RunRecord]] = {}
    for record in runs.open_records():
        if record.identity.kind == "job":
            by_job.setdefault(record.identity.job_name or "", []).append(record)
    for name, records in by_job.items():
        with contextlib.suppress(AirExecutorError, OSError):  # of what can't be looked at nobody knows who waits
            _release(store, runs, name, records)


def check_none(store: JobStore, name: str) -> None:
    """Check that no run of a job lives, which would go on without the job.

    :raises WrongStateError: one does.
    """
    runs = RunStore(store.root.parent)
    for record in runs.open_records():
        if record.identity.job_name == name and not runs.settled(record).state.is_end:
            raise WrongStateError(f"a task of job {name} runs; `air-executor stop {record.id}` ends it")


def _release(store: JobStore, runs: RunStore, name: str, records: Iterable[RunRecord]) -> None:
    if not store.has(name):
        records = [_end(runs, record) for record in records]
        awaited: set[str | None] = set()
    else:
        files = store.files(name)
        awaited = set() if files.is_over() else _awaited(files)
    for record in records:
        if record.state.is_end and record.id not in awaited:
            runs.mark_reported(record)


def _awaited(files: JobFiles) -> set[str | None]:
    files.load()
    return {task.run_id for task in files.tasks.values() if task.status is TaskStatus.RUNNING}


def _end(runs: RunStore, record: RunRecord) -> RunRecord:
    """Return the record of a run whose job is gone; without a runner it ends as ``lost``."""
    if record.state is not RunState.QUEUED:
        return runs.settle(record)
    if is_fresh(modified_s(runs.path(record.id)), _BIRTH_S):
        return record  # its runner may be about to begin
    return runs.withdraw(record, "its job was removed before it began")
