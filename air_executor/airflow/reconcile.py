"""Making runs and Airflow's metadata database agree: all live runs in one pass, with a few statements.

Runners leave heartbeats where they run. Every third pass writes them to the database in bulk, and each pass asks in
bulk which task instances should no longer run: marked, cleared, deleted, or moved on to another try. While passes are
made, no runner sends heartbeats to the API server. A pass has a thread of its own, so that the scheduler's loop waits
neither for the database nor for a thousand files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from airflow.configuration import conf
from airflow.utils.state import TaskInstanceState
from sqlalchemy.exc import SQLAlchemyError

from air_executor.airflow import task_instances
from air_executor.airflow.deferrals import Deferrals
from air_executor.airflow.reports import Report
from air_executor.airflow.schedulers import fail_jobs_of_dead_executors
from air_executor.guard import Guard
from air_executor.machine.awake import AwakeClock
from air_executor.runs.backend import RunBackend

log = logging.getLogger(__name__)

#: Seconds between two passes: as often as Airflow's own supervisor would ask whether its task should still run.
PASS_S = 5.0

#: Seconds between two writes of heartbeats; or a quarter of Airflow's timeout for them, if that is shorter.
_BEAT_S = 15.0

#: Seconds between two renewals of the queued time of instances that wait for GPUs, or whose runners wait for the API
#: server; or a quarter of Airflow's timeout for queued instances, if that is shorter.
_QUEUED_S = 60.0

#: A runner without a heartbeat for this many seconds is not vouched for; Airflow's timeout then decides.
SILENT_S = 60.0


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
    """Ids of instances without a run here that no longer run."""
    missed: set[str] = field(default_factory=set)
    """Ids of reports that the scheduler has missed."""
    heard: set[str] = field(default_factory=set)
    """Ids of reports that need not be repeated."""
    took_s: float = 0.0
    """How long the pass took."""


class Reconciler:
    """Makes the passes of one executor."""

    def __init__(
        self, backend: RunBackend, state_dir: str | Path, job_id: object, *, min_beat_age_s: float = 0.0
    ) -> None:
        """Make no pass yet.

        :param state_dir: where the notes on jobs of deferred tasks are.
        :param job_id: of the scheduler's job in the database.
        :param min_beat_age_s: a heartbeat in the database that is younger than this many seconds is not renewed.
            Runners on other hosts send theirs to Airflow themselves, and need these only while it can't be reached.
        """
        self._backend = backend
        self._job = str(job_id or "test")
        self._next_s = self._next_beat_s = 0.0
        self._timeout_s = conf.getfloat("scheduler", "task_instance_heartbeat_timeout")
        self._beat_s = min(_BEAT_S, self._timeout_s / 4)
        self._min_beat_age_s = min(min_beat_age_s, self._timeout_s / 3)
        #: When heartbeats were last written, in seconds since the epoch, as the scheduler measures them.
        self._beaten_at_s = time.time()
        self._awake = AwakeClock()
        #: By run: its last heartbeat, and when that one was first seen here, on the monotonic clock.
        self._signs: dict[str, tuple[float, float]] = {}
        #: The pass that :meth:`catch_up` has waited for.
        self._awaited: threading.Thread | None = None
        self._thread: threading.Thread | None = None
        self._found: Outcome | None = None
        self.is_database_away = False
        #: Runs that were unwanted in the last pass. A run that is unwanted twice in a row is stopped: the first time it
        #: may be about to end because of what it has told Airflow itself.
        self._suspects: dict[str, str] = {}
        #: Instances whose heartbeats were not written, as others had locked their rows. The next pass writes them.
        self._unbeaten: set[str] = set()
        #: Instances that wait for GPUs. Airflow must not take them for stuck.
        self.waiting: Sequence[str] = ()
        #: Instances that were queued at the last renewal, though their runners live.
        self._starting: set[str] = set()
        self._next_queued_s = 0.0
        self._queued_s = min(_QUEUED_S, conf.getfloat("scheduler", "task_queued_timeout") / 4)
        self._deferrals = Deferrals(Path(state_dir))
        self._guard = Guard(log)

    def is_due(self) -> bool:
        """Tell whether a pass is due, and the last one is over."""
        return self._thread is None and (self._awake.look() >= self._next_s or self.is_behind())

    def is_behind(self) -> bool:
        """Tell whether heartbeats were not written for so long that the scheduler may soon fail tasks for it.

        This happens after a pause of the machine, when the database was away, or when the clock was set forward.
        """
        return time.time() - self._beaten_at_s > self._timeout_s / 2

    def catch_up(self, timeout_s: float) -> None:
        """Wait for the present pass, if heartbeats are behind; at most once for each pass."""
        if self._thread is not None and self._thread is not self._awaited and self.is_behind():
            self._awaited = self._thread
            self._thread.join(timeout_s)

    def is_silent(self, run_id: str) -> bool:
        """Tell whether a runner has left no heartbeat for long, not counting pauses."""
        sign = self._signs.get(run_id)
        return sign is not None and self._awake.since_s(sign[1]) > SILENT_S

    def begin(
        self, runs: Mapping[str, str | None], elsewhere: Sequence[str] = (), reports: Sequence[Report] = ()
    ) -> None:
        """Begin a pass over live runs.

        :param runs: the ids of task instances, by the ids of their runs; ``None`` for what is no task.
        :param elsewhere: the ids of further task instances, whose runs nobody here can see.
        :param reports: failures that the scheduler has dealt with by now, unless it has missed them.
        """
        self._next_s = time.monotonic() + PASS_S
        # Not from a pool: a database that never answers must not keep the scheduler from ending.
        self._thread = threading.Thread(
            target=self._pass, args=(dict(runs), elsewhere, reports), name="reconcile", daemon=True
        )
        self._thread.start()

    def outcome(self) -> Outcome | None:
        """Return what the pass has found, once it is over."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        found, self._found = self._found, None
        return found

    def _pass(self, runs: Mapping[str, str | None], elsewhere: Sequence[str], reports: Sequence[Report]) -> None:
        began_s = time.monotonic()
        with self._guard("Reconciling the runs"):
            lost, tasks = set(), {}
            for run_id, ti_id in runs.items():
                with self._guard(f"Looking up who follows run {run_id}"):
                    if not self._backend.is_mine(run_id):
                        lost.add(run_id)
                    elif ti_id is not None:
                        tasks[run_id] = str(task_instances.instance_id(ti_id))
            found = self._look_up(lost, tasks, elsewhere, reports)
            self._found = replace(found, took_s=time.monotonic() - began_s)

    def _look_up(
        self, lost: set[str], runs: Mapping[str, str], elsewhere: Sequence[str], reports: Sequence[Report]
    ) -> Outcome:
        """Exchange news with the database. If it is away, that is logged once, and the next pass makes up for it."""
        try:
            runs = {**runs, **{ti_id: ti_id for ti_id in self.waiting}}  # Airflow gives these up like runs
            states = self._exchange(runs, elsewhere)
            missed = task_instances.missed(reports, self._job)
        except SQLAlchemyError as error:
            if not self.is_database_away:
                log.warning("The database can't be reached; runs continue and are reconciled later: %s", error)
            self.is_database_away = True
            return Outcome(lost, [], set())
        if self.is_database_away:
            log.info("The database is back")
        self.is_database_away = False
        with self._guard("Looking after the jobs of deferred tasks"):
            self._deferrals.look()
        with self._guard("Looking for dead schedulers"):
            fail_jobs_of_dead_executors(self._backend, self._job)
        over = {ti_id for ti_id in elsewhere if states.get(ti_id) != TaskInstanceState.RUNNING}
        heard = {each.id for each in reports} - missed
        return Outcome(lost, self._judge(runs, states), over, missed, heard)

    def _exchange(self, runs: Mapping[str, str], elsewhere: Sequence[str]) -> dict[str, str | None]:
        """Write the heartbeats, and return the state of each task instance that there still is, by its id."""
        is_time = time.monotonic() >= self._next_beat_s or self.is_behind()
        beating = []
        for run_id in self._signs.keys() - runs.keys():
            del self._signs[run_id]
        for run_id, ti_id in runs.items():
            if is_time or ti_id in self._unbeaten:
                with self._guard(f"Looking for the heartbeat of run {run_id}"):
                    if self._beats(run_id):
                        beating.append(ti_id)
        states = task_instances.states_of([*runs.values(), *elsewhere])
        running = [ti_id for ti_id in beating if states.get(ti_id) == TaskInstanceState.RUNNING]
        self._unbeaten = task_instances.beat(running, self._min_beat_age_s)
        if time.monotonic() >= self._next_queued_s:
            self._keep_queued(runs, states)
            self._next_queued_s = time.monotonic() + self._queued_s
        if is_time:
            self._next_beat_s = time.monotonic() + self._beat_s
            self._beaten_at_s = time.time()
        return states

    def _keep_queued(self, runs: Mapping[str, str], states: Mapping[str, str | None]) -> None:
        """Renew the queued time of those instances that wait for GPUs, or whose runners have waited for some time."""
        queued = {ti_id for ti_id in runs.values() if states.get(ti_id) == TaskInstanceState.QUEUED}
        shown = {ti_id for run_id, ti_id in runs.items() if run_id in self._signs and not self.is_silent(run_id)}
        starting = queued & shown
        kept = (starting & self._starting) | (queued & set(self.waiting))
        self._starting = starting
        task_instances.keep_queued(sorted(kept))

    def _beats(self, run_id: str) -> bool:
        """Look at the heartbeat of a run, and tell whether it is to be written."""
        seen_s = self._backend.last_beat_s(run_id)
        if seen_s is None:
            return False
        if (sign := self._signs.get(run_id)) is None or sign[0] != seen_s:
            self._signs[run_id] = seen_s, self._awake.look()
        return not self.is_silent(run_id)

    def _judge(self, runs: Mapping[str, str], states: Mapping[str, str | None]) -> list[Unwanted]:
        suspects: dict[str, str] = {}
        for run_id, ti_id in runs.items():
            if ti_id not in states:
                suspects[run_id] = "its task instance was deleted, cleared, or has moved on to another try"
            elif states[ti_id] not in task_instances.WANTED:
                suspects[run_id] = f"its task instance was set to {states[ti_id] or 'no state'}"
        sure = [Unwanted(run_id, reason) for run_id, reason in suspects.items() if run_id in self._suspects]
        self._suspects = suspects
        return sure
