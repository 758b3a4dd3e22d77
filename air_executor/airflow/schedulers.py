"""Schedulers, and the names of their executors.

A name holds the scheduler's job, and when that began, which tells databases apart: several may share a state
directory, at the same time or one after another, as after ``airflow db reset``. Their jobs have the same numbers, but
never began in the same microsecond.
"""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from airflow.jobs.job import Job
from airflow.utils.session import create_session
from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from air_executor.runs.backend import RunBackend

log = logging.getLogger(__name__)

#: The trace of a dead executor whose job another database has is kept this long for that one's schedulers, in seconds.
_STRANGE_S = 86400.0

#: States of a job. The enumeration has moved from one version of Airflow to another.
_JOB_RUNNING, _JOB_FAILED = "running", "failed"

#: A working executor touches its file, and its scheduler its job, at most this many seconds apart.
_APART_S = 60.0


_EPOCH = datetime.fromtimestamp(0, tz=timezone.utc)


@dataclass(frozen=True)
class JobName:
    """The job that an executor belongs to."""

    id: int
    begun: str | None
    """When the job began, in microseconds since the epoch; ``None`` in names of the previous release."""

    @classmethod
    def parse(cls, name: str) -> JobName | None:
        """Read the name of an executor; ``None`` if it has no job."""
        job_id, _, rest = name.partition(".")
        if not (job_id.isascii() and job_id.isdigit()):
            return None
        return cls(int(job_id), rest.partition(".")[2] or None)

    def is_in(self, session: Session, last_seen_s: float | None = None) -> bool:
        """Return whether the session's database has this job.

        :param last_seen_s: when the executor last worked, in seconds since the epoch, if known.
        :raises SQLAlchemyError: the database can't be reached.
        """
        job = session.execute(select(Job.start_date, Job.latest_heartbeat).where(Job.id == self.id)).one_or_none()
        if job is None or job.start_date is None:
            return False
        if self.begun is not None:
            return self.begun == _microseconds(job.start_date)
        if last_seen_s is None:
            return True
        heard = job.latest_heartbeat or job.start_date
        return bool(max(job.start_date, heard).timestamp() <= last_seen_s + _APART_S)


def new_name(session: Session | None, job_id: object) -> str:
    """Return a name for the executor of a job: ``<job id>.<uuid>.<when the job began>``.

    :param session: of the job's database; ``None`` if that can't be reached.
    :param job_id: ``None`` for an executor without a scheduler.
    :raises SQLAlchemyError: the database can't be reached.
    """
    name = f"{job_id or 'test'}.{uuid.uuid4()}"
    if session is None or not str(job_id).isdigit():
        return name
    begun = session.scalar(select(Job.start_date).where(Job.id == int(str(job_id))))
    return name if begun is None else f"{name}.{_microseconds(begun)}"


def own_name(job_id: object) -> str:
    """Return a name for the executor of a scheduler's job in the database."""
    try:
        with create_session(scoped=False) as session:
            return new_name(session, job_id)
    except SQLAlchemyError as error:
        log.warning("When job %s began can't be looked up now: %s", job_id, error)
        return new_name(None, job_id)


def is_of_this_database(executor: str) -> bool:
    """Tell whether an executor, given by its name, was one of a scheduler of this database."""
    job = JobName.parse(executor)
    if job is None or job.begun is None:
        return True  # nothing tells that it was not
    with create_session(scoped=False) as session:
        return job.is_in(session)


def fail_jobs_of_dead_executors(backend: RunBackend, own_job_id: object) -> None:
    """Fail the jobs of dead schedulers in the database, so that their tasks can be taken over now.

    The kernel has freed the locks of their executors. Airflow itself would wait until heartbeats were missing for long.

    :raises SQLAlchemyError: the database can't be reached. The next call tries again.
    """
    backend.settle_owners(lambda name, last_seen_s: _fail_job_of(name, last_seen_s, own_job_id))


def _fail_job_of(executor: str, last_seen_s: float, own_job_id: object) -> bool:
    """Fail the job of a dead executor in the database.

    :return: whether to keep the executor's trace, for schedulers of the database that has the job.
    """
    job = JobName.parse(executor)
    if job is None:
        return False
    with create_session(scoped=False) as session:
        if not job.is_in(session, last_seen_s):
            return time.time() - last_seen_s < _STRANGE_S
        if str(job.id) != str(own_job_id):
            session.execute(
                update(Job)
                .where(Job.id == job.id, Job.job_type == "SchedulerJob", Job.state == _JOB_RUNNING)
                .values(state=_JOB_FAILED)
                .execution_options(synchronize_session=False)
            )
            log.info("Scheduler job %s is dead; its tasks can be taken over", job.id)
    return False


def _microseconds(moment: datetime) -> str:
    return str((moment - _EPOCH) // timedelta(microseconds=1))
