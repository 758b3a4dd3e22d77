"""Making the records and Airflow's metadata database agree: all live runs in one pass, in two statements.

Runners leave heartbeats in files. A pass writes all of them to the database in one UPDATE, every third time, and asks
in one SELECT which task instances should no longer run: marked, cleared, deleted, or moved on to another try. While
passes are made, no runner sends heartbeats to the API server. A pass is made in a thread of its own, so that the
scheduler's loop waits neither for the database nor for a thousand files.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.jobs.job import Job
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import with_row_locks
from airflow.utils.state import TaskInstanceState
from sqlalchemy import Update, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from air_executor.airflow.deferrals import Deferrals
from air_executor.airflow.jobname import JobName, new_name
from air_executor.airflow.told import Telling
from air_executor.errors import StateDirError
from air_executor.guard import Guard
from air_executor.machine.awake import AwakeClock
from air_executor.machine.safe_files import is_fresh, modified_s
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.store import RunStore

log = logging.getLogger(__name__)

#: Seconds between two passes: as often as Airflow's own supervisor would ask whether its task should still run.
PASS_S = 5.0

#: Heartbeats are passed on every so many seconds, or four times within Airflow's time-out for them if that is shorter.
_BEAT_S = 15.0

#: Instances that wait for GPUs are shown to Airflow as queued just now every so many seconds, or four times within its
#: time-out for them if that is shorter.
_QUEUED_S = 60.0

#: A runner that has shown no sign of life for so many seconds is not vouched for; Airflow's time-out then decides.
_SILENT_S = 60.0

#: The result of a connection test is cut to so many characters.
_MAX_RESULT = 2000

#: So many ids go into one statement: SQLite before 3.32 takes at most 999.
_CHUNK = 900

#: What is left of an executor whose job another database has is kept for those so long, in seconds.
_STRANGE_S = 86400.0

#: States of a job. The enumeration has moved from one version of Airflow to another.
_JOB_RUNNING, _JOB_FAILED = "running", "failed"

#: In these states of its task instance a run is where it should be.
_WANTED = frozenset({TaskInstanceState.QUEUED.value, TaskInstanceState.RUNNING.value})

#: In these states of its task instance an executor's word that it has failed is heeded, and was not heard.
_UNENDED = _WANTED | {TaskInstanceState.RESTARTING.value}


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
    missed: set[str] = field(default_factory=set)
    """What was told, and the scheduler has not heard, by its ids."""
    heard: set[str] = field(default_factory=set)
    """What was told, and needs not be told again."""


class Reconciler:
    """Makes the passes of one executor."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._next_s = self._next_beat_s = 0.0
        self._timeout_s = conf.getfloat("scheduler", "task_instance_heartbeat_timeout")
        self._beat_s = min(_BEAT_S, self._timeout_s / 4)
        #: When heartbeats were last passed on, in seconds since the epoch, as the scheduler measures them.
        self._beaten_at_s = time.time()
        self._awake = AwakeClock()
        #: What each run's heartbeat was when it was last seen to change, and when that was, on the monotonic clock.
        self._signs: dict[str, tuple[float, float]] = {}
        #: The pass that was waited for.
        self._awaited: threading.Thread | None = None
        self._thread: threading.Thread | None = None
        self._found: Outcome | None = None
        self.is_database_away = False
        #: Runs that were unwanted in the last pass. One that is so twice is stopped: the first time it may be about
        #: to end because of what it has told Airflow itself.
        self._suspects: dict[str, str] = {}
        #: Instances whose rows others had locked when they were to beat. They do with the next pass.
        self._unbeaten: set[str] = set()
        #: Instances whose runs are not ordered yet, as they wait for GPUs. Airflow must not take them for stuck.
        self.waiting: Sequence[str] = ()
        self._next_queued_s = 0.0
        self._queued_s = min(_QUEUED_S, conf.getfloat("scheduler", "task_queued_timeout") / 4)
        self._deferrals = Deferrals(store.root)
        self._guard = Guard(log)

    def is_due(self) -> bool:
        """Tell whether it is time for a pass, and the last one is over."""
        return self._thread is None and (self._awake.look() >= self._next_s or self.is_behind())

    def is_behind(self) -> bool:
        """Tell whether heartbeats were not passed on for so long that the scheduler may soon fail tasks for it.

        As after a pause of the machine, when the database was away, or when the clock was set forward.
        """
        return time.time() - self._beaten_at_s > self._timeout_s / 2

    def catch_up(self, timeout_s: float) -> None:
        """Wait for a pass, if there is one and heartbeats are behind; for each pass once."""
        if self._thread is not None and self._thread is not self._awaited and self.is_behind():
            self._awaited = self._thread
            self._thread.join(timeout_s)

    def is_silent(self, run_id: str) -> bool:
        """Tell whether a runner has shown no sign of life for long, while it could have."""
        sign = self._signs.get(run_id)
        return sign is not None and self._awake.since_s(sign[1]) > _SILENT_S

    def _beats(self, run_id: str) -> bool:
        """Look at the heartbeat of a run, and tell whether it is passed on."""
        seen_s = self._store.last_heartbeat_s(run_id)
        if seen_s is None:
            return False
        if (sign := self._signs.get(run_id)) is None or sign[0] != seen_s:
            self._signs[run_id] = seen_s, self._awake.look()
        return not self.is_silent(run_id)

    def begin(
        self,
        runs: Mapping[str, str | None],
        owner: str,
        elsewhere: Sequence[str] = (),
        told: Sequence[Telling] = (),
    ) -> None:
        """Begin a pass over live runs.

        :param runs: the ids of task instances, by the ids of their runs; ``None`` for what is no task.
        :param owner: the name of the executor that follows them.
        :param elsewhere: the ids of further task instances, whose runs nobody here can see.
        :param told: failures that the scheduler has dealt with by now, if it has heard of them.
        """
        self._next_s = time.monotonic() + PASS_S
        # Not from a pool: a database that never answers must not keep the scheduler from ending.
        self._thread = threading.Thread(
            target=self._pass, args=(dict(runs), owner, elsewhere, told), name="reconcile", daemon=True
        )
        self._thread.start()

    def outcome(self) -> Outcome | None:
        """Return what the pass has found, once it is over."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        found, self._found = self._found, None
        return found

    def _pass(
        self, runs: Mapping[str, str | None], owner: str, elsewhere: Sequence[str], told: Sequence[Telling]
    ) -> None:
        with self._guard("Reconciling the runs"):
            lost, tasks = set(), {}
            for run_id, ti_id in runs.items():
                with self._guard(f"Looking up who follows run {run_id}"):
                    if self._store.owner(run_id) not in (None, owner):
                        lost.add(run_id)
                    elif ti_id is not None:
                        tasks[run_id] = str(_instance_id(ti_id))
            self._found = self._look_up(lost, tasks, elsewhere, told, owner)

    def _look_up(
        self,
        lost: set[str],
        runs: Mapping[str, str],
        elsewhere: Sequence[str],
        told: Sequence[Telling],
        owner: str,
    ) -> Outcome:
        """Exchange news with the database. One that is away is reported once, and made up for by the next pass."""
        try:
            runs = {**runs, **{ti_id: ti_id for ti_id in self.waiting}}  # given up like runs, by their own ids
            states = self._exchange(runs, elsewhere)
            missed = _missed(told, owner)
        except SQLAlchemyError as error:
            if not self.is_database_away:
                log.warning("The database can't be reached; runs go on and are reconciled later: %s", error)
            self.is_database_away = True
            return Outcome(lost, [], set())
        if self.is_database_away:
            log.info("The database is back")
        self.is_database_away = False
        with self._guard("Looking after the jobs of deferred tasks"):
            self._deferrals.look()
        with self._guard("Looking for dead schedulers"):
            fail_jobs_of_dead_executors(self._store, owner.split(".")[0])
        over = {ti_id for ti_id in elsewhere if states.get(ti_id) != TaskInstanceState.RUNNING}
        heard = {each.id for each in told} - missed
        return Outcome(lost, self._judge(runs, states), over, missed, heard)

    def _exchange(self, runs: Mapping[str, str], elsewhere: Sequence[str]) -> dict[str, str | None]:
        """Pass the heartbeats on, and return the state of each task instance that there still is, by its id."""
        is_time = time.monotonic() >= self._next_beat_s or self.is_behind()
        beating = []
        for run_id in self._signs.keys() - runs.keys():
            del self._signs[run_id]
        for run_id, ti_id in runs.items():
            if is_time or ti_id in self._unbeaten:
                with self._guard(f"Looking for the heartbeat of run {run_id}"):
                    if self._beats(run_id):
                        beating.append(ti_id)
        states: dict[str, str | None] = {}
        if runs or elsewhere:
            with create_session(scoped=False) as session:
                states = _states(session, [*runs.values(), *elsewhere])
        running = [ti_id for ti_id in beating if states.get(ti_id) == TaskInstanceState.RUNNING]
        self._unbeaten = _beat(running)
        if time.monotonic() >= self._next_queued_s:
            _keep_queued([ti_id for ti_id in self.waiting if states.get(ti_id) == TaskInstanceState.QUEUED])
            self._next_queued_s = time.monotonic() + self._queued_s
        if is_time:
            self._next_beat_s = time.monotonic() + self._beat_s
            self._beaten_at_s = time.time()
        return states

    def is_of_this_database(self, executor: str) -> bool:
        """Tell whether an executor, given by its name, was one of a scheduler of this database."""
        job = JobName.parse(executor)
        if job is None or job.begun is None:
            return True  # nothing tells that it was not
        with create_session(scoped=False) as session:
            return job.is_in(session)

    def name_runs(self, runs: Mapping[str, str]) -> None:
        """Put the ids of runs in the database, by those of their task instances, where their scheduler has not.

        Not as events, for which the scheduler does it: on SQLite, which locks no rows, an instance that moves on to
        another try at that moment, and so gets another id, would be an error that ends the scheduler.
        """
        if not runs:
            return
        try:
            named: set[Any] = set()
            for some in _chunks([_instance_id(ti_id) for ti_id in runs]):
                with create_session(scoped=False) as session:
                    for ti_id in _free(session, some):
                        session.execute(_update(ti_id).values(external_executor_id=runs[str(ti_id)]))
                        named.add(str(ti_id))
            for ti_id in runs.keys() - named:  # one at a time: who waits for a row and holds another may be waited for
                with create_session(scoped=False) as session:
                    session.execute(_update(_instance_id(ti_id)).values(external_executor_id=runs[ti_id]))
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


def own_name(job_id: object) -> str:
    """Return a name for the executor of a scheduler's job in the database."""
    try:
        with create_session(scoped=False) as session:
            return new_name(session, job_id)
    except SQLAlchemyError as error:
        log.warning("When job %s began can't be looked up now: %s", job_id, error)
        return new_name(None, job_id)


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
        except (StateDirError, OSError) as error:  # as on a disk that takes nothing now; whoever is alive needs no lock
            log.warning("Whether a scheduler is dead can't be told now: %s", error)
            continue
        keeps = True
        try:
            keeps = _fail_job_of(path, own_job_id)
        finally:
            lock.release(keep_file=keeps)


def _fail_job_of(path: Path, own_job_id: object) -> bool:
    """Note in the database that the job of a dead executor is over.

    :return: whether to keep the executor's file, for those whose job it is.
    """
    job = JobName.parse(path.name)
    if job is None:
        return False
    last_seen_s = modified_s(path) or 0.0
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


def _beat(ti_ids: Sequence[str]) -> set[str]:
    """Pass on that these instances live, and return those that could not be, as somebody else had locked their rows."""
    unbeaten: set[str] = set()
    for some in _chunks([_instance_id(ti_id) for ti_id in ti_ids]):
        with create_session(scoped=False) as session:
            free = _free(session, some)
            is_running = TaskInstance.state == TaskInstanceState.RUNNING
            session.execute(_update(*free).where(is_running).values(last_heartbeat_at=datetime.now(tz=timezone.utc)))
        unbeaten |= {str(ti_id) for ti_id in some} - {str(ti_id) for ti_id in free}
    return unbeaten


def _keep_queued(ti_ids: Sequence[str]) -> None:
    """Let these instances count as queued just now, which ``[scheduler] task_queued_timeout`` is about."""
    for some in _chunks([_instance_id(ti_id) for ti_id in ti_ids]):
        with create_session(scoped=False) as session:
            is_queued = TaskInstance.state == TaskInstanceState.QUEUED
            touch = _update(*_free(session, some)).where(is_queued)
            session.execute(touch.values(queued_dttm=datetime.now(tz=timezone.utc)))


def _free(session: Session, ids: Sequence[Any]) -> Sequence[Any]:
    """Lock the rows of those task instances that nobody else has locked, and return their ids.

    So a statement over many waits for no lock and can't be part of a deadlock. The scheduler passes over rows that are
    locked: commit soon.
    """
    if session.get_bind().dialect.name == "sqlite":
        return ids  # it locks the whole database, and waits for that only if nothing was read before
    query = select(TaskInstance.id).where(TaskInstance.id.in_(ids)).order_by(TaskInstance.id)
    return session.scalars(with_row_locks(query, session, of=TaskInstance, skip_locked=True)).all()


def _update(*ids: Any) -> Update:
    return update(TaskInstance).where(TaskInstance.id.in_(ids)).execution_options(synchronize_session=False)


def _missed(told: Sequence[Telling], owner: str) -> set[str]:
    """Return the ids of what was told and had no effect: the instance is as it was, and this scheduler's to fail."""
    missed: set[str] = set()
    instances = {str(_instance_id(each.ti_id)): each for each in told if each.ti_id is not None}
    columns = (TaskInstance.id, TaskInstance.state, TaskInstance.external_executor_id, TaskInstance.queued_by_job_id)
    for some in _chunks([_instance_id(ti_id) for ti_id in instances]):
        with create_session(scoped=False) as session:
            rows = session.execute(select(*columns).where(TaskInstance.id.in_(some))).all()
        for ti_id, state, executor_id, job_id in rows:
            telling = instances[str(ti_id)]
            is_ours = executor_id == telling.executor_id and str(job_id or "test") == owner.split(".")[0]
            if state in _UNENDED and is_ours:
                missed.add(telling.id)
    return missed


def fail_connection_test(test_id: str, reason: str) -> None:
    """Give a connection test its end, unless it has one: Airflow heeds no event of it, and would let the user wait.

    :raises SQLAlchemyError: the database can't be reached. Airflow itself gives the test up after its time-out then.
    """
    models = importlib.import_module("airflow.models.connection_test")
    with create_session(scoped=False) as session:
        test = session.get(models.ConnectionTestRequest, uuid.UUID(test_id))
        if test is not None and test.state in models.ACTIVE_STATES:
            test.state = models.ConnectionTestState.FAILED
            test.result_message = reason[:_MAX_RESULT]


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
