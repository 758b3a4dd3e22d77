"""What becomes of tasks when their runs end: they complete, fail, or are tried again."""

from __future__ import annotations

import logging
import signal
from datetime import datetime, timedelta, timezone
from typing import Any

from air_executor.errors import JobError
from air_executor.jobs.fields import NotPlainError, check_plain
from air_executor.jobs.manager.runs import Runs
from air_executor.jobs.model import Task, TaskStatus
from air_executor.jobs.queue import read_queued
from air_executor.jobs.schedule import ActiveJob
from air_executor.jobs.trust import vouch
from air_executor.runs.record import UNWANTED, RunRecord, RunState, now
from air_executor.runs.results import read_result

log = logging.getLogger(__name__)

#: How often a task is started again because its runner died, which does not count as one of its tries.
_MAX_INTERRUPTIONS = 10


class Outcomes:
    """Records what became of tasks."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def record(self, job: ActiveJob, task: Task, record: RunRecord, *, counts: bool = True) -> None:
        """Record what became of a task whose run has ended.

        :param counts: see :meth:`interrupt`.
        :raises AirExecutorError: the job's files can't be written.
        """
        task.exit_code = record.exit_code
        if record.state is RunState.SUCCEEDED:
            self._complete(job, task, record)
        elif _is_interruption(record):
            # Whoever stops runs that nobody needs any more, as Ctrl-C on `run` does, says nothing of the task.
            counts = counts and record.outcome != UNWANTED
            self.interrupt(job, task, record.reason or "its runner died", counts=counts)
        else:
            self.fail(job, task, record.reason or f"it ended with exit code {record.exit_code}", record)
        self._runs.acknowledge(record)

    def _complete(self, job: ActiveJob, task: Task, record: RunRecord) -> None:
        """Record that a task has completed, with its result and the tasks that it queued."""
        folder = self._runs.folder(record.id)
        where = f"what task {task.id} queued"
        try:
            queued = [
                Task.from_dict({**each, "queued_by": task.id}, job_name=job.name, where=where)
                for each in read_queued(folder)
            ]
            result = _kept(read_result(folder, is_json=task.function is not None))
            new = job.files.add(queued, where) if queued else []
            if new:
                vouch(job.files, new)
        except JobError as error:
            self.fail(job, task, str(error))
            return
        task.status, task.completed_at, task.error = TaskStatus.COMPLETED, record.ended_at or now(), None
        task.result = result
        job.commit(task, *new, *job.enlist(*new), *job.follow_up(task))
        if job.files.job.cancelled:
            self.cancel(job)  # also what it has queued

    def interrupt(self, job: ActiveJob, task: Task, reason: str, *, counts: bool = True) -> None:
        """Start a task again whose run ended before the task could.

        :param counts: whether it counts towards the interruptions that a task may have at most.
        :raises AirExecutorError: the job's files can't be written.
        """
        task.interruptions += counts
        reason = _printable(reason)
        if job.files.job.cancelled:
            self.fail(job, task, reason)
            return
        if task.interruptions > _MAX_INTERRUPTIONS:
            self.fail(job, task, f"interrupted {task.interruptions} times; the last time: {reason}")
            return
        log.warning("Task %s of job %s was interrupted, and is to begin again: %s", task.id, job.name, reason)
        task.tries = max(0, task.tries - 1)
        task.status, task.error, task.run_id = TaskStatus.PENDING, reason, None
        job.files.commit(task)
        job.enlist(task)

    def fail(
        self, job: ActiveJob, task: Task, reason: str, record: RunRecord | None = None, *, is_final: bool = False
    ) -> None:
        """Have a task tried again, or record that it failed.

        :param record: the run that failed, if one did.
        :param is_final: another try would fail as well.
        :raises AirExecutorError: the job's files can't be written.
        """
        task.error, task.completed_at = _printable(reason), now()
        is_cancelled = job.files.job.cancelled
        may_try = not is_cancelled and not is_final and task.tries <= task.retries
        if may_try and _is_retried_after(task, record):
            task.status = TaskStatus.PENDING
            task.retry_at = (datetime.now(tz=timezone.utc) + timedelta(seconds=task.wait_s())).isoformat()
            job.files.commit(task)
            job.enlist(task)
            return
        has_failed = not is_cancelled or (record is not None and record.state is RunState.FAILED)
        task.status = TaskStatus.FAILED if has_failed else TaskStatus.CANCELLED
        job.commit(task, *job.follow_up(task))

    def cancel(self, job: ActiveJob) -> None:
        """Cancel what has not started, and stop what runs.

        :raises AirExecutorError: the job's files can't be written.
        """
        job.files.job.cancelled = True
        for task in job.cancel():
            job.files.forget_text(task)
        self._runs.stop_job(job.name, "the job was cancelled")
        job.files.write()


def _kept(result: Any) -> Any:
    """Return a task's result if it can be written to ``tasks.json``.

    :raises JobError: it can't.
    """
    try:
        return check_plain(result)
    except NotPlainError as error:
        raise JobError(f"its result cannot be kept: {error}") from None


def _printable(reason: str) -> str:
    """Return a reason, which may be what an exception said, as text that a job's files can hold."""
    return reason.replace("\0", "\\x00")


def _is_interruption(record: RunRecord) -> bool:
    """Tell whether a run ended before its task had a chance to end."""
    return record.state is RunState.LOST or (record.state is RunState.KILLED and record.outcome in (None, UNWANTED))


def _is_retried_after(task: Task, record: RunRecord | None) -> bool:
    """Tell whether the task's ``retry_on`` allows another try after this failure."""
    if not task.retry_on:
        return True
    if record is None:
        return False
    is_killed = record.signal in signal.Signals.__members__
    return (128 + signal.Signals[str(record.signal)] if is_killed else record.exit_code) in task.retry_on
