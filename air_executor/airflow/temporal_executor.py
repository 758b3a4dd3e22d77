"""TemporalExecutor: AirExecutor's calls, with runs on many hosts."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from queue import SimpleQueue
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from sqlalchemy import select, tuple_, update

from air_executor.airflow import compat, task_instances
from air_executor.airflow.admission import WAITS_EVENT
from air_executor.airflow.executor import AirExecutor
from air_executor.config import Config
from air_executor.guard import Guard
from air_executor.runs.backend import RunBackend
from air_executor.runs.record import Identity
from air_executor.temporal.backend import TemporalBackend
from air_executor.temporal.execution import AGAIN, ALIVE, LOST, OVER
from air_executor.temporal.settings import Settings

log = logging.getLogger(__name__)

#: How often to look which DAG runs have ended, in seconds, and how many at once.
_LOOK_S, _AT_ONCE = 5.0, 500

#: A heartbeat that is old by the clocks has not changed for at least so long, in seconds.
_SEEN_S = 20.0

#: A run that nobody has asked about for so long is forgotten, in seconds.
_FORGET_S = 3600.0

_ENDS = (DagRunState.SUCCESS, DagRunState.FAILED)


@dataclass
class _Beat:
    """The last heartbeat of a task instance, as the database has it. Times are those of the monotonic clock."""

    value: datetime
    """By the clock of the API server, which may be wrong: only whether it changes says something."""
    first_seen_s: float
    asked_s: float


class Judge:
    """Says what becomes of runs whose hosts do not answer. May be called in several threads.

    A run's runner sends heartbeats to Airflow itself, so the database knows whether it lives. One that has not begun
    can be ordered again in the same try: Airflow refuses the second that begins.
    """

    def __init__(self, lost_s: float) -> None:
        """Know of no run.

        :param lost_s: one is lost when its host has not answered for so long, and no heartbeat came for so long.
        """
        self._lost_s = lost_s
        self._lock = threading.Lock()
        self._beats: dict[str, _Beat] = {}

    def __call__(self, who: Identity, silent_s: float) -> str:
        """Return a verdict of :mod:`air_executor.temporal.workflow`.

        :param silent_s: for how long the run's host has not answered.
        :raises SQLAlchemyError: the database is away.
        """
        is_silent = silent_s >= self._lost_s
        if who.kind != "task":
            return LOST if is_silent else ALIVE
        columns = select(TaskInstance.state, TaskInstance.last_heartbeat_at)
        mine = columns.where(TaskInstance.id == task_instances.instance_id(who.workload_id))
        with create_session(scoped=False) as session:
            found = session.execute(mine).first()
        if found is not None and found.state in (TaskInstanceState.QUEUED, TaskInstanceState.RESTARTING):
            return AGAIN
        if found is None or found.state != TaskInstanceState.RUNNING:
            return OVER
        beat: datetime | None = found.last_heartbeat_at
        is_old = beat is None or self._is_old(who.workload_id, beat)  # also looked at while it is early
        return LOST if is_silent and is_old else ALIVE

    def _is_old(self, workload_id: str, beat: datetime) -> bool:
        """Tell whether a heartbeat came too long ago: by what was seen of it here, or by clocks that agree.

        While runners reach Airflow, heartbeats change every few seconds, whatever the clocks say.
        """
        unchanged_s = self._unchanged_s(workload_id, beat)
        is_old_by_clocks = time.time() - beat.timestamp() >= self._lost_s
        return unchanged_s >= (min(_SEEN_S, self._lost_s) if is_old_by_clocks else self._lost_s)

    def _unchanged_s(self, workload_id: str, beat: datetime) -> float:
        """Return for how long a heartbeat has been the last one, as far as it was looked at here."""
        with self._lock:
            now_s = time.monotonic()
            self._beats = {key: each for key, each in self._beats.items() if now_s - each.asked_s < _FORGET_S}
            known = self._beats.get(workload_id)
            if known is None or known.value != beat:
                known = self._beats[workload_id] = _Beat(beat, now_s, now_s)
            known.asked_s = now_s
            return now_s - known.first_seen_s


def give_back(who: Identity, run_id: str) -> bool:
    """Let the scheduler queue a task instance again, in the same try: its order is lost, and it has not begun.

    :return: whether it was this run's, and had not.
    :raises SQLAlchemyError: the database is away.
    """
    if who.kind != "task":
        return False
    with create_session(scoped=False) as session:
        is_ours = TaskInstance.id == task_instances.instance_id(who.workload_id)
        is_queued = (TaskInstance.state == TaskInstanceState.QUEUED) & (TaskInstance.external_executor_id == run_id)
        # As the scheduler itself does it for one that is stuck in its queue.
        now = datetime.now(tz=timezone.utc)
        again = {"state": TaskInstanceState.SCHEDULED, "queued_dttm": None, "queued_by_job_id": None}
        back = update(TaskInstance).where(is_ours, is_queued).values(**again, scheduled_dttm=now)
        done: Any = session.execute(back.execution_options(synchronize_session=False))
        return bool(done.rowcount)


class DagRunEnds:
    """Ends the workflows of DAG runs that have ended in Airflow. Each look has a thread of its own."""

    def __init__(self, backend: TemporalBackend) -> None:
        self._backend = backend
        self._next_s = 0.0
        self._thread: threading.Thread | None = None
        self._guard = Guard(log)

    def look(self) -> None:
        """Look, when it is time."""
        if time.monotonic() >= self._next_s and (self._thread is None or not self._thread.is_alive()):
            self._next_s = time.monotonic() + _LOOK_S
            self._thread = threading.Thread(target=self._look, name="dag runs", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        with self._guard("Looking which DAG runs have ended"):
            open_runs = self._backend.open_dag_runs()
            for begin in range(0, len(open_runs), _AT_ONCE):
                some = open_runs[begin : begin + _AT_ONCE]
                query = select(DagRun.dag_id, DagRun.run_id, DagRun.state)
                with create_session(scoped=False) as session:
                    found = session.execute(query.where(tuple_(DagRun.dag_id, DagRun.run_id).in_(some))).all()
                states = {(dag_id, run_id): state for dag_id, run_id, state in found}
                for dag_run in some:
                    state = states.get(dag_run, "deleted")
                    if state == "deleted" or state in _ENDS:
                        self._backend.close_dag_run(*dag_run, str(getattr(state, "value", state)))


class TemporalExecutor(AirExecutor):
    """Runs each workload in a runner process of its own on one of many hosts, where ``air-executor worker`` serves.

    Orders stay in Temporal until a host takes them; each DAG run is a workflow there.
    """

    is_local = False
    serve_logs = False
    _min_beat_age_s = 60.0

    _dag_runs: DagRunEnds
    _waits: SimpleQueue[tuple[str, str]]
    """Runs that wait, and why, to be told in Airflow's audit log."""

    def _make_backend(self, options: Config) -> RunBackend:
        settings = Settings.load(compat.team_getter(self.conf))
        self._work.order_wait_s = settings.token_s
        self._waits = SimpleQueue()
        backend = TemporalBackend(
            options, settings, Judge(settings.lost_s), give_back, lambda run_id, why: self._waits.put((run_id, why))
        )
        self._dag_runs = DagRunEnds(backend)
        return backend

    def sync(self) -> None:
        """Report the runs that have ended, and those that wait, and end the workflows of DAG runs that have ended."""
        super().sync()
        self._dag_runs.look()
        while not self._waits.empty():
            run_id, why = self._waits.get()
            if run_id in self._work.runs:
                key = self._work.runs[run_id].key
                self.log_task_event(event=WAITS_EVENT, extra=f"run {run_id}: {why}", ti_key=key)

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Leave an order that waits for a host where it is, whatever ``task_queued_timeout`` says.

        :raises NotImplementedError: always. The scheduler then leaves the task queued.
        """
        raise NotImplementedError

    @staticmethod
    def get_cli_commands() -> list[Any]:
        """Return no commands: on Airflow 3.1, which refuses two of a name, AirExecutor beside this one has them."""
        return []
