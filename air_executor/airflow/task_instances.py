"""Statements on Airflow's task instances and connection tests: what an executor reads and writes of them."""

from __future__ import annotations

import importlib
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import with_row_locks
from airflow.utils.state import TaskInstanceState
from sqlalchemy import Update, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from air_executor.airflow.reports import Report
from air_executor.machine.safe_files import is_fresh

log = logging.getLogger(__name__)

#: The result of a connection test is cut to this many characters.
_MAX_RESULT = 2000

#: At most this many ids go into one statement: SQLite before 3.32 takes at most 999.
_CHUNK = 900

#: A run should go on while its task instance is in one of these states.
WANTED = frozenset({TaskInstanceState.QUEUED.value, TaskInstanceState.RUNNING.value})

#: A task instance that is still in one of these states after a report of its failure: the scheduler has missed that.
_UNENDED = WANTED | {TaskInstanceState.RESTARTING.value}


def beat(ti_ids: Sequence[str], min_age_s: float = 0.0) -> set[str]:
    """Write heartbeats for these instances, and return those whose rows somebody else had locked.

    :param min_age_s: only for those whose last heartbeat is older than this many seconds.
    """
    unbeaten: set[str] = set()
    for some in _chunks([instance_id(ti_id) for ti_id in ti_ids]):
        with create_session(scoped=False) as session:
            free = _free(session, some)
            now = datetime.now(tz=timezone.utc)
            beat = _update(*free).where(TaskInstance.state == TaskInstanceState.RUNNING)
            if min_age_s:
                beat = beat.where(TaskInstance.last_heartbeat_at < now - timedelta(seconds=min_age_s))
            session.execute(beat.values(last_heartbeat_at=now))
        unbeaten |= {str(ti_id) for ti_id in some} - {str(ti_id) for ti_id in free}
    return unbeaten


def keep_queued(ti_ids: Sequence[str]) -> None:
    """Renew the queued time of these instances, so that ``[scheduler] task_queued_timeout`` does not fail them."""
    for some in _chunks([instance_id(ti_id) for ti_id in ti_ids]):
        with create_session(scoped=False) as session:
            is_queued = TaskInstance.state == TaskInstanceState.QUEUED
            touch = _update(*_free(session, some)).where(is_queued)
            session.execute(touch.values(queued_dttm=datetime.now(tz=timezone.utc)))


def fail_connection_test(test_id: str, reason: str) -> None:
    """Fail a connection test, unless it has ended: Airflow ignores events about it, and would let the user wait.

    :raises SQLAlchemyError: the database can't be reached. Then Airflow gives the test up after its timeout.
    """
    models = importlib.import_module("airflow.models.connection_test")
    with create_session(scoped=False) as session:
        test = session.get(models.ConnectionTestRequest, uuid.UUID(test_id))
        if test is not None and test.state in models.ACTIVE_STATES:
            test.state = models.ConnectionTestState.FAILED
            test.result_message = reason[:_MAX_RESULT]


def name_runs(runs: Mapping[str, str]) -> None:
    """Write the ids of runs to the database, by those of their task instances, where their scheduler has not.

    The scheduler would do it for events. But on SQLite, which locks no rows, an instance that moves on to another try
    at that moment, and so gets another id, would then cause an error that ends the scheduler.
    """
    try:
        named: set[Any] = set()
        for some in _chunks([instance_id(ti_id) for ti_id in runs]):
            with create_session(scoped=False) as session:
                for ti_id in _free(session, some):
                    session.execute(_update(ti_id).values(external_executor_id=runs[str(ti_id)]))
                    named.add(str(ti_id))
        for ti_id in runs.keys() - named:  # one at a time: to wait for a row while holding another may deadlock
            with create_session(scoped=False) as session:
                session.execute(_update(instance_id(ti_id)).values(external_executor_id=runs[ti_id]))
    except SQLAlchemyError as error:
        log.warning("The database does not know the ids of %d runs, so nobody can take them over: %s", len(runs), error)


def is_beating(ti_id: str, limit_s: float) -> bool:
    """Tell whether a task instance has a heartbeat in the database that is less than ``limit_s`` seconds old."""
    try:
        with create_session(scoped=False) as session:
            beat = select(TaskInstance.last_heartbeat_at).where(TaskInstance.id == instance_id(ti_id))
            last: datetime | None = session.scalar(beat)
    except SQLAlchemyError as error:
        log.warning("Whether task instance %s lives can't be looked up now: %s", ti_id, error)
        return False
    return last is not None and is_fresh(last.timestamp(), limit_s)


def is_restarting(key: TaskInstanceKey) -> bool:
    """Tell whether a task instance was cleared while it ran, and waits for the end of that run."""
    columns = TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index
    wanted = key.dag_id, key.run_id, key.task_id, key.map_index
    query = select(TaskInstance.state).where(*(column == value for column, value in zip(columns, wanted, strict=True)))
    with create_session(scoped=False) as session:
        return session.scalar(query) == TaskInstanceState.RESTARTING


def given_up(runs: Mapping[str, str]) -> list[str]:
    """Return those runs whose task instances are gone, or neither queued nor running any more.

    :param runs: the ids of the task instances, by those of the runs.
    """
    try:
        states = states_of(runs.values())
    except SQLAlchemyError as error:
        log.warning("What became of the tasks of dead schedulers can't be looked up now: %s", error)
        return []
    return [run_id for run_id, ti_id in runs.items() if states.get(ti_id) not in WANTED]


def _free(session: Session, ids: Sequence[Any]) -> Sequence[Any]:
    """Lock the rows of those task instances that nobody else has locked, and return their ids.

    So a statement over many rows waits for no lock and can't be part of a deadlock. The scheduler skips locked rows:
    commit soon.
    """
    if session.get_bind().dialect.name == "sqlite":
        return ids  # it locks the whole database, and waits for that only if nothing was read before
    query = select(TaskInstance.id).where(TaskInstance.id.in_(ids)).order_by(TaskInstance.id)
    return session.scalars(with_row_locks(query, session, of=TaskInstance, skip_locked=True)).all()


def _update(*ids: Any) -> Update:
    return update(TaskInstance).where(TaskInstance.id.in_(ids)).execution_options(synchronize_session=False)


def missed(reports: Sequence[Report], job: str) -> set[str]:
    """Return the ids of reports that had no effect: the instance is as it was, and this scheduler's to fail.

    :param job: the id of the scheduler's job, as text.
    """
    missed: set[str] = set()
    instances = {str(instance_id(each.ti_id)): each for each in reports if each.ti_id is not None}
    columns = (TaskInstance.id, TaskInstance.state, TaskInstance.external_executor_id, TaskInstance.queued_by_job_id)
    for some in _chunks([instance_id(ti_id) for ti_id in instances]):
        with create_session(scoped=False) as session:
            rows = session.execute(select(*columns).where(TaskInstance.id.in_(some))).all()
        for ti_id, state, executor_id, job_id in rows:
            report = instances[str(ti_id)]
            is_ours = executor_id == report.executor_id and str(job_id or "test") == job
            if state in _UNENDED and is_ours:
                missed.add(report.id)
    return missed


def states_of(ti_ids: Iterable[str]) -> dict[str, str | None]:
    """Return the state of each of these task instances that there still is, by its id."""
    states: dict[str, str | None] = {}
    ids = [instance_id(ti_id) for ti_id in ti_ids]
    if ids:
        with create_session(scoped=False) as session:
            for some in _chunks(ids):
                found = select(TaskInstance.id, TaskInstance.state).where(TaskInstance.id.in_(some))
                states.update({str(ti_id): state for ti_id, state in session.execute(found)})
    return states


def hostname(workload_id: str) -> str | None:
    """Return the address of the host that runs a task instance's try, or has run it.

    ``None``: Airflow has none, or this machine has no access to its database.
    """
    ti_id = instance_id(workload_id)
    former = TaskInstanceHistory.hostname, TaskInstanceHistory.task_instance_id
    try:
        with create_session(scoped=False) as session:
            for name, key in ((TaskInstance.hostname, TaskInstance.id), former):
                if found := session.scalar(select(name).where(key == ti_id)):
                    return str(found)
    except SQLAlchemyError:
        return None
    return None


def instance_id(workload_id: str) -> Any:
    """Return a task instance's id as its column wants it: a UUID from Airflow 3.3 on, text before."""
    return TaskInstance.id.type.python_type(workload_id)


def _chunks(ids: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]
