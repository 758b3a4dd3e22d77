"""The names of executors. Each names its scheduler's job, and when that began, which tells databases apart.

Several databases may share a state directory, at the same time or one after another, as after ``airflow db reset``.
Their jobs have the same numbers, but never began in the same microsecond.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from airflow.jobs.job import Job
from sqlalchemy import select
from sqlalchemy.orm import Session

#: A working executor touches its file, and its scheduler its job, at most this many seconds apart.
_APART_S = 60.0

_EPOCH = datetime.fromtimestamp(0, tz=timezone.utc)


@dataclass(frozen=True)
class JobName:
    """The job that an executor belongs to."""

    id: int
    begun: str | None
    """When the job began, in microseconds since the epoch; ``None`` in names of the last release."""

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


def _microseconds(moment: datetime) -> str:
    return str((moment - _EPOCH) // timedelta(microseconds=1))
