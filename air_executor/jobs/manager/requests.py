"""Doing what others ask of a job: the requests in its inbox."""

from __future__ import annotations

import logging

from air_executor.errors import AirExecutorError, JobChangedError, JobError
from air_executor.jobs import inbox, restart
from air_executor.jobs.inbox import Ask
from air_executor.jobs.logs import separate_logs
from air_executor.jobs.manager.outcomes import Outcomes
from air_executor.jobs.model import OUTSIDE, JobState, Task
from air_executor.jobs.owner import is_of
from air_executor.jobs.schedule import ActiveJob
from air_executor.jobs.trust import check_ask

log = logging.getLogger(__name__)


class Requests:
    """Does what is asked, and refuses what is not possible."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes

    def do_all(self, job: ActiveJob) -> None:
        """Do what is asked of a job, in order, and empty its inbox. A job that is being cancelled takes no more tasks.

        :raises AirExecutorError: its files can't be read or written now; what was not done stays in the inbox.
        """
        for ask in job.files.asks():
            if ask.action == "queue" and job.files.job.cancelled and not job.files.job.state.is_end:
                return  # nothing more may begin; it and all later ones are done when the job has ended
            try:
                if ask.fault is not None:
                    raise JobError(ask.fault)
                check_ask(job.files, ask)
                self._do(job, ask)
            except JobChangedError:
                raise
            except JobError as error:
                log.error("Job %s: a request is refused: %s", job.name, error)
                inbox.refuse(ask, str(error))
            except (AirExecutorError, OSError):
                raise
            except Exception as error:
                inbox.refuse(ask, f"the manager met an error: {type(error).__name__}: {error}")
                raise
            else:
                ask.path.unlink(missing_ok=True)

    def _do(self, job: ActiveJob, ask: Ask) -> None:
        if ask.action in ("cancel", "pause", "resume") and job.files.job.state.is_end:
            raise JobError(f"it is not possible to {ask.action} a job that has ended")
        if ask.action == "queue":
            self._queue(job, ask)
        elif ask.action == "cancel":
            self._cancel(job, ask)
        elif ask.action in ("pause", "resume"):
            job.files.job.paused = ask.action == "pause"
            job.files.write()
        elif ask.action in ("retry", "reset"):
            self._restart(job, ask)
        else:
            raise JobError(f"unknown request {ask.action!r}")

    def _queue(self, job: ActiveJob, ask: Ask) -> None:
        where = "a request to queue"
        documents = [{"queued_by": OUTSIDE, **each} for each in ask.tasks]
        tasks = [Task.from_dict(each, job_name=job.name, where=where) for each in documents]
        before = dict(job.tasks), dict(job.files.keys)
        try:
            if job.files.job.state.is_end:
                job.drop_hooks()
            # If a manager died after it had done the request, the tasks are there already.
            fresh = [
                task for task in tasks if task.id not in job.tasks or job.tasks[task.id].created_at != task.created_at
            ]
            new = job.files.add(fresh, where)
        except JobError:
            job.files.tasks, job.files.keys = before
            raise
        for task in job.enlist(*new):
            job.files.forget_text(task)
        job.files.job.cancelled = False  # it goes on
        job.files.set_state(JobState.WORKING)

    def _cancel(self, job: ActiveJob, ask: Ask) -> None:
        if all(task.status.is_end for task in job.tasks.values()):
            return
        if is_of(job.files.job.made_by, ask.document.get("owner")):
            self._outcomes.cancel(job)
        else:
            log.info("Job %s is not cancelled: it belongs to another try by now", job.name)

    def _restart(self, job: ActiveJob, ask: Ask) -> None:
        if job.places:
            raise JobError("tasks of the job are running; cancel it first")
        files = job.files
        unknown = [each for each in ask.tasks if each not in job.tasks]
        if unknown:
            raise JobError(f"there are no tasks {', '.join(map(repr, unknown))}")
        if ask.action == "reset":
            restart.reset(files)
            files.job.generation += 1
            separate_logs(files)
        elif (why := restart.why_not(files, ask.tasks)) is not None:
            raise JobError(why)
        else:
            restart.retry(files, ask.tasks)
        files.job.cancelled = files.job.paused = False
        files.set_state(JobState.WAITING)
        job.enlist_all()
        job.commit()
