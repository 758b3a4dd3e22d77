"""Making the records and Airflow's metadata database agree: all live runs in one pass, in two statements.

Runners leave heartbeats in files. A pass writes all of them to the database in one UPDATE, every third time, and asks
in one SELECT which task instances should no longer run: marked, cleared, deleted, or moved on to another try. While
passes are made, no runner sends heartbeats to the API server. A pass is made in a thread of its own, so that the
scheduler's loop waits neither for the database nor for a thousand files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from airflow.configuration import conf
from airflow.jobs.job import Job
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from air_executor.errors import StateDirError
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.store import RunStore, is_fresh

log = logging.getLogger(__name__)

#: Seconds between two passes: as often as Airflow's own supervisor would ask whether its task should still run.
PASS_S = 5.0

#: Heartbeats are passed on every so many seconds, or four times within Airflow's time-out for them if that is shorter.
_BEAT_S = 15.0

#: A runner that has shown no sign of life for so many seconds is not vouched for; Airflow's time-out then decides.
_SILENT_S = 60.0

#: So many ids go into one statement: SQLite before 3.32 takes at most 999.
_CHUNK = 900

#: States of a job. The enumeration has moved from one version of Airflow to another.
_JOB_RUNNING, _JOB_FAILED = "running", "failed"

#: In these states of its task instance a run is where it should be.
_WANTED = frozenset({TaskInstanceState.QUEUED.value, TaskInstanceState.RUNNING.value})


@dataclass(frozen=True)
class Unwanted:
    """A run that Airflow has given up, and why, for a person."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a pass has found."""

    lost: set[str]
    """Runs that another executor follows by now."""
    unwanted: list[Unwanted]
    over: set[str]
    """Instances without a run here that do not run any more, by their ids."""


class Reconciler:
    """Makes the passes of one executor."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._next_s = self._next_beat_s = 0.0
        self._beat_s = min(_BEAT_S, conf.getfloat("scheduler", "task_instance_heartbeat_timeout") / 4)
        self._thread: threading.Thread | None = None
        self._found: Outcome | None = None
        self.is_database_away = False
        #: Runs that were unwanted in the last pass. One that is so twice is stopped: the first time it may be about
        #: to end because of what it has told Airflow itself.
        self._suspects: dict[str, str] = {}

    def is_due(self) -> bool:
        """Tell whether it is time for a pass, and the last one is over."""
        return self._thread is None and time.monotonic() >= self._next_s

    def begin(self, runs: Mapping[str, str | None], owner: str, elsewhere: Sequence[str] = ()) -> None:
        """Begin a pass over live runs.

        :param runs: the ids of task instances, by the ids of their runs; ``None`` for what is no task.
        :param owner: the name of the executor that follows them.
        :param elsewhere: the ids of further task instances, whose runs nobody here can see.
        """
        self._next_s = time.monotonic() + PASS_S
        # Not from a pool: a database that never answers must not keep the scheduler from ending.
        self._thread = threading.Thread(
            target=self._pass, args=(dict(runs), owner, elsewhere), name="reconcile", daemon=True
        )
        self._thread.start()

    def outcome(self) -> Outcome | None:
        """Return what the pass has found, once it is over."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        found, self._found = self._found, None
        return found

    def _pass(self, runs: Mapping[str, str | None], owner: str, elsewhere: Sequence[str]) -> None:
        try:
            lost = {run_id for run_id in runs if self._store.owner(run_id) not in (None, owner)}
            tasks = {run_id: ti_id for run_id, ti_id in runs.items() if ti_id is not None and run_id not in lost}
            self._found = Outcome(lost, *self._look_up(tasks, elsewhere, owner))
        except Exception:
            log.exception("The runs can't be reconciled; the next pass tries again")

    def _look_up(
        self, runs: Mapping[str, str], elsewhere: Sequence[str], owner: str
    ) -> tuple[list[Unwanted], set[str]]:
        """Exchange news with the database. One that is away is reported once, and made up for by the next pass."""
        try:
            states = self._exchange(runs, elsewhere)
            fail_jobs_of_dead_executors(self._store, owner.split(".")[0])
        except SQLAlchemyError as error:
            if not self.is_database_away:
                log.warning("The database can't be reached; runs go on and are reconciled later: %s", error)
            self.is_database_away = True
            return [], set()
        if self.is_database_away:
            log.info("The database is back")
        self.is_database_away = False
        over = {ti_id for ti_id in elsewhere if states.get(ti_id) != TaskInstanceState.RUNNING}
        return self._judge(runs, states), over

    def _exchange(self, runs: Mapping[str, str], elsewhere: Sequence[str]) -> dict[str, str | None]:
        """Pass the heartbeats on, and return the state of each task instance that there still is, by its id."""
        if not runs and not elsewhere:
            return {}
        is_time = time.monotonic() >= self._next_beat_s
        beating = [
            _instance_id(ti_id)
            for run_id, ti_id in runs.items()
            if is_time and is_fresh(self._store.last_heartbeat_s(run_id), _SILENT_S)
        ]
        with create_session(scoped=False) as session:
            states = _states(session, [*runs.values(), *elsewhere])
            for some in _chunks(beating):
                session.execute(
                    update(TaskInstance)
                    .where(TaskInstance.id.in_(some), TaskInstance.state == TaskInstanceState.RUNNING)
                    .values(last_heartbeat_at=datetime.now(tz=timezone.utc))
                    .execution_options(synchronize_session=False)
                )
        if beating:
            self._next_beat_s = time.monotonic() + self._beat_s
        return states

    def name_runs(self, runs: Mapping[str, str]) -> None:
        """Put the ids of runs in the database, by those of their task instances, where their scheduler has not.

        Not as events, for which the scheduler does it: on SQLite, which locks no rows, an instance that moves on to
        another try at that moment, and so gets another id, would be an error that ends the scheduler.
        """
        if not runs:
            return
        try:
            with create_session(scoped=False) as session:
                for ti_id, run_id in runs.items():
                    session.execute(
                        update(TaskInstance)
                        .where(TaskInstance.id == _instance_id(ti_id))
                        .values(external_executor_id=run_id)
                        .execution_options(synchronize_session=False)
                    )
        except SQLAlchemyError as error:
            log.warning(
                "The database does not know the ids of %d runs, so nobody can take them over: %s", len(runs), error
            )

    def is_beating(self, ti_id: str) -> bool:
        """Tell whether a task instance has shown a sign of life in the database lately."""
        try:
            with create_session(scoped=False) as session:
                beat = select(TaskInstance.last_heartbeat_at).where(TaskInstance.id == _instance_id(ti_id))
                last: datetime | None = session.scalar(beat)
        except SQLAlchemyError as error:
            log.warning("Whether task instance %s lives can't be looked up now: %s", ti_id, error)
            return False
        return last is not None and is_fresh(last.timestamp(), _SILENT_S)

    def given_up(self, runs: Mapping[str, str]) -> list[str]:
        """Return those runs whose task instances are gone, or neither queued nor running any more."""
        try:
            with create_session(scoped=False) as session:
                states = _states(session, runs.values())
        except SQLAlchemyError as error:
            log.warning("What became of the tasks of dead schedulers can't be looked up now: %s", error)
            return []
        return [run_id for run_id, ti_id in runs.items() if states.get(ti_id) not in _WANTED]

    def _judge(self, runs: Mapping[str, str], states: Mapping[str, str | None]) -> list[Unwanted]:
        suspects: dict[str, str] = {}
        for run_id, ti_id in runs.items():
            if ti_id not in states:
                suspects[run_id] = "its task instance was deleted, cleared, or has moved on to another try"
            elif states[ti_id] not in _WANTED:
                suspects[run_id] = f"its task instance was set to {states[ti_id] or 'no state'}"
        sure = [Unwanted(run_id, reason) for run_id, reason in suspects.items() if run_id in self._suspects]
        self._suspects = suspects
        return sure


def fail_jobs_of_dead_executors(store: RunStore, own_job_id: object) -> None:
    """Note in the database which schedulers are dead, as the kernel knows, so that their tasks can be taken over now.

    Airflow itself waits for a heartbeat that is missing for long. A scheduler whose executor's lock is free is gone.

    :raises SQLAlchemyError: the database can't be reached. The next call tries again.
    """
    for path in store.executors.glob("*"):
        lock = KernelLock(path)
        try:
            if is_held(path) or not lock.acquire(timeout_s=0, create=False):  # its holder may just have removed it
                continue
        except StateDirError as error:  # as on a disk that takes nothing now; whoever is alive needs no lock of ours
            log.warning("Whether a scheduler is dead can't be told now: %s", error)
            continue
        job_id = path.name.split(".")[0]
        try:
            if job_id.isdigit() and job_id != str(own_job_id):
                with create_session(scoped=False) as session:
                    session.execute(
                        update(Job)
                        .where(Job.id == int(job_id), Job.job_type == "SchedulerJob", Job.state == _JOB_RUNNING)
                        .values(state=_JOB_FAILED)
                        .execution_options(synchronize_session=False)
                    )
                log.info("Scheduler job %s is dead; its tasks can be taken over", job_id)
        except BaseException:
            lock.release(keep_file=True)
            raise
        lock.release()


def _states(session: Session, ti_ids: Iterable[str]) -> dict[str, str | None]:
    """Return the state of each of these task instances that there still is, by its id."""
    states: dict[str, str | None] = {}
    for some in _chunks([_instance_id(ti_id) for ti_id in ti_ids]):
        found = select(TaskInstance.id, TaskInstance.state).where(TaskInstance.id.in_(some))
        states.update({str(ti_id): state for ti_id, state in session.execute(found)})
    return states


def _instance_id(workload_id: str) -> Any:
    """Return a task instance's id as its column wants it: a UUID from Airflow 3.3 on, text before."""
    return TaskInstance.id.type.python_type(workload_id)


def _chunks(ids: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]
