"""Continuing a job from its files: finding the runs of the tasks that are running there."""

from __future__ import annotations

import logging

from air_executor.errors import RecordError
from air_executor.jobs.manager.outcomes import Outcomes
from air_executor.jobs.manager.runs import Owner, Runs
from air_executor.jobs.model import Task, TaskStatus
from air_executor.jobs.schedule import ActiveJob

log = logging.getLogger(__name__)

#: Places of runners are looked for below this number, whatever ``max_runners`` is.
_MAX_PLACES = 10_000


def resume(job: ActiveJob, runs: Runs, outcomes: Outcomes) -> None:
    """Follow the runs of tasks that are ``running`` in the files, and stop the job's other runs.

    :raises AirExecutorError: the job's files can't be written, or a record can't be read now.
    """
    spoilt = ", ".join(map(str, job.files.spoilt_lines[:20]))
    if (aside := job.files.mend_journal()) is not None:
        log.error("Job %s: its journal can't be understood in line %s, and is %s now", job.name, spoilt, aside)
    job.commit()
    for task in list(job.tasks.values()):  # a copy: one whose run has ended may have queued more
        if task.status is TaskStatus.RUNNING and not task.is_for_items:
            _find_run(job, task, runs, outcomes)
    known = {task.run_id for task in job.tasks.values() if task.status is TaskStatus.RUNNING}
    runs.stop_others(job.name, known, "the job's files say something else now")


def _find_run(job: ActiveJob, task: Task, runs: Runs, outcomes: Outcomes) -> None:
    run_id = task.run_id or ""
    try:
        record = runs.record(run_id)
    except RecordError:
        # If nothing of the run exists, the disk may have been full. That may last, and is not the task's fault.
        outcomes.interrupt(job, task, "its run is not on record", counts=runs.was_begun(run_id))
        return
    if record.state.is_end:
        runs.forget(record.id)
        # One that was never born may meet the same again and again while managers come and go.
        outcomes.record(job, task, record, counts=record.pid is not None)
    else:
        limit = min(job.files.job.max_runners, _MAX_PLACES)
        job.places.take(task.id, job.places.find(record.identity.workload_id, limit))
        runs.follow(record, Owner(job.name, task.id))
