"""AirExecutor: Airflow's calls on an executor, turned into runs."""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.executors.base_executor import BaseExecutor
from airflow.models.taskinstancekey import TaskInstanceKey
from sqlalchemy.exc import SQLAlchemyError

from air_executor import config
from air_executor.airflow import compat
from air_executor.airflow.alerts import Alerts
from air_executor.airflow.gpu_queue import GpuQueue
from air_executor.airflow.live import LiveRuns, Run
from air_executor.airflow.reconcile import (
    Outcome,
    Reconciler,
    fail_connection_test,
    fail_jobs_of_dead_executors,
    own_name,
)
from air_executor.airflow.told import Telling, Told
from air_executor.config import Config
from air_executor.errors import AirExecutorError, RecordError
from air_executor.guard import Guard
from air_executor.launcher.client.backend import LocalBackend
from air_executor.machine.awake import AwakeClock
from air_executor.runs import limits
from air_executor.runs import record as runs
from air_executor.runs.backend import RunBackend, RunRequest
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.record import UNWANTED, RunRecord, RunState
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import append_to_log

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: Name of AirExecutor's entries in Airflow's audit log.
AUDIT_EVENT = "air_executor run ended"
_TOKEN_EVENT = "air_executor token signed"

#: A run that was asked to end gets this many seconds more than its task has for ``on_kill``. Then it is killed.
_STUBBORN_S = 15.0

#: While there is plenty of work, the scheduler rests up to so many times as long as it has worked.
_GATHER_FACTOR = 3.0

#: So many live runs for each CPU are plenty of work.
_PLENTY_PER_CPU = 4

#: States in which a task leaves its runner, and goes on with another one in the same try.
_GOES_ON = frozenset({"awaiting_input", "deferred", "up_for_reschedule"})

#: After a pause of the machine, the scheduler waits so many seconds at most for its tasks' heartbeats to be written.
_CATCH_UP_S = 5.0

#: How often an executor that drains looks whether its runs have ended, in seconds.
_DRAIN_LOOK_S = 0.2

#: After a look for news that has failed, the scheduler waits so many seconds for the next one.
_FAILED_WAIT_S = 0.1


class AirExecutor(BaseExecutor):
    """Runs each workload in a runner process of its own on this machine.

    Records of the runs are in ``[air_executor] state_dir``; ``air-executor status`` shows them.

    An exception out of here would end the scheduler. So whatever is done for one run, or in one step, is guarded:
    logged, and gone on with the others.
    """

    is_local = True
    is_production = True
    serve_logs = True
    supports_callbacks = True
    supports_connection_test = True
    supports_multi_team = True
    #: The scheduler commits the run's id with the state "queued", so that another scheduler can find the runner.
    pre_assigns_external_executor_id = True

    #: The executors of this process that have started: each team may have one.
    _working: ClassVar[list[AirExecutor]] = []
    #: When the scheduler of this process last ended its wait for news, on the monotonic clock.
    _woken_s: ClassVar[float] = math.inf

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options: Config
        self._store: RunStore
        self._backend: RunBackend
        self._reconciler: Reconciler
        self._waiting = GpuQueue()
        #: Held for this executor's life: others see by it that its runs are followed. Its file's time says since when.
        self._life: KernelLock
        #: Lets go of what was begun, the last first, however far the start has come.
        self._at_end = contextlib.ExitStack()
        #: Live runs, by their ids.
        self._runs = LiveRuns()
        #: Workloads whose task instance has a former try that is still ending, by their keys: they begin after it.
        self._held: dict[Any, Any] = {}
        #: Task instances that were taken over with a runner that this executor can't see, by their ids.
        self._elsewhere: dict[str, Any] = {}
        #: Runs that were asked to end, and when, on the monotonic clock.
        self._stopping: dict[str, float] = {}
        self._alerts = Alerts()
        #: The scheduler saves audit entries through a generator, and SQLAlchemy holds them by weak references only:
        #: those that nobody else holds are saved empty, which fails and loses all of them.
        self._held_entries: list[Any] = []
        self._guard = Guard(self.log)
        self._told = Told(self._guard)
        self._awake = AwakeClock()

    # Airflow's calls, in the order in which they come

    def start(self) -> None:
        """Check the options and the state directory, and warm a launcher up.

        :raises ConfigError: an option cannot be used. The scheduler does not start; the message names the option.
        :raises StateDirError: the state directory cannot be used.
        """
        get = compat.team_getter(self.conf)
        self._options = config.load(lambda name: get(config.SECTION, name))
        self._server = compat.execution_api_url(get)
        self._store = RunStore(self._options.state_dir)
        self._store.prepare()
        with self._guard("Marking the runs that are open"):
            self._store.mark_open()
        try:
            fail_jobs_of_dead_executors(self._store, self.job_id)
        except SQLAlchemyError as error:
            self.log.warning("Schedulers that died can't be noted now: %s", error)
        self._life = self._begin_life()
        self._at_end.callback(self._life.release)
        self._waiting.open(self._store, self._options.gpus, self._life.name)
        self._at_end.callback(self._waiting.close)
        self._reconciler = Reconciler(self._store)
        backend = LocalBackend(self._store, self._options)
        self._at_end.callback(backend.close)
        backend.warm_up()
        self._backend = backend
        with self._guard("Taking over the runs of schedulers that are gone"):
            self._inherit()
        self._working.append(self)
        self._at_end.callback(self._working.remove, self)
        compat.use_idle_wait(self._wait_for_news)
        compat.use_vouching(self._vouch)

    # The slot of a run that has ended is free, before the scheduler has heard of it: that takes another of its loops.
    # A task that waits for GPUs has none.

    @property
    def slots_available(self) -> int:
        """How many more workloads this executor can take."""
        return int(super().slots_available) + self._vacant()

    @property
    def slots_occupied(self) -> int:
        """How many workloads keep this executor busy."""
        return int(super().slots_occupied) - self._vacant()

    def trigger_tasks(self, open_slots: int) -> None:
        """Order the runs of queued tasks, as many as there are slots."""
        with self._guard("Ordering the runs of queued tasks"):
            super().trigger_tasks(open_slots + self._vacant())

    def _vacant(self) -> int:
        if not hasattr(self, "_backend"):
            return 0
        with self._guard("Looking for runs that have ended"):
            ended = {self._runs[run_id].key for run_id in self._backend.ends() if run_id in self._runs}
            return len((ended | self._waiting.keys()) & self.running)
        return 0

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        items = []
        for workload in workload_items:
            with self._guard(f"Taking {type(workload).__name__} from the queue"):
                items.append((self._dequeue(workload), workload))
        self._order_all(items)
        self._order_waiting()

    def _order_all(self, items: Iterable[tuple[Any, Any]], *, have_waited: bool = False) -> None:
        """Have the runs of workloads begin, given with their keys; those that need GPUs wait until they are free."""
        unnamed: dict[str, str] = {}  # runs that the database does not know yet, by their instances
        for key, workload in items:
            with self._guard(f"Ordering the run of {type(workload).__name__}"):
                try:
                    if self._runs.has_other_try(key):
                        self._held[key] = workload
                        continue
                    if have_waited:
                        workload = compat.with_new_token(workload, self.jwt_generator)
                    elif self._waiting.takes(key, workload):
                        continue
                    record = self._order(key, workload)
                except Exception as error:
                    self._refuse(key, workload, error)
                    continue
                if gpus := record.limits.get("gpus"):
                    self._waiting.promise(record.id, gpus, record.identity.workload_id)
                if record.identity.kind == "task" and record.id != compat.pre_assigned_id(workload):
                    unnamed[record.identity.workload_id] = record.id
        with self._guard("Putting the ids of runs in the database"):
            self._reconciler.name_runs(unnamed)

    def _order_held(self) -> None:
        free = [key for key in self._held if not self._runs.has_other_try(key)]
        self._order_all([(key, self._held.pop(key)) for key in free])

    def _order_waiting(self) -> None:
        with self._guard("Looking for free GPUs"):
            slots = self.slots_available if len(self._waiting) else 0
            self._order_all(self._waiting.ready(slots), have_waited=True)

    def _dequeue(self, workload: Any) -> Any:
        """Take a workload out of the queues, count it as running, and return its key."""
        queues = [getattr(self, name, {}) for name in ("queued_tasks", "queued_callbacks", "queued_connection_tests")]
        try:
            key = compat.key_of(workload)
        except Exception:
            # Of a kind that came with a later Airflow. It must not be offered again with every loop.
            for queue in queues:
                for queued in [each for each, other in queue.items() if other is workload]:
                    del queue[queued]
            raise
        for queue in queues:
            queue.pop(key, None)
        self.running.add(key)
        return key

    def _refuse(self, key: Any, workload: Any, error: Exception) -> None:
        """Fail a workload that can't be handed to a runner."""
        reason = str(error)
        if not isinstance(error, AirExecutorError):
            self.log.error("The workload %s cannot be handed to a runner", key, exc_info=error)
            reason = f"AirExecutor could not hand the workload to a runner: {type(error).__name__}: {error}"
        with self._guard(f"Telling {key} in its log why it fails"):
            append_to_log(compat.log_file_of(workload), reason)
        self._fail(key, reason)
        ti = getattr(workload, "ti", None)
        ti_id = None if ti is None else str(ti.id)
        self._told.add(self._telling(key, str(uuid.uuid4()), None, ti_id, compat.pre_assigned_id(workload)))

    def sync(self) -> None:
        """Tell the scheduler of the runs that have ended, and reconcile the others with the database now and then."""
        self._held_entries = list(self._task_event_logs)
        with self._guard("Recording which ends were told"):
            self._told.next_loop(self._store)
        for record in self._take_ends():
            self._end_run(record)
        if self._held:
            self._order_held()
        self._order_waiting()
        self._reconcile()

    def _take_ends(self) -> list[RunRecord]:
        with self._guard("Looking for runs that have ended"):
            return self._backend.take_ends()
        return []

    def _end_run(self, record: RunRecord) -> None:
        run = self._runs.pop(record.id, None)
        self._stopping.pop(record.id, None)
        if not self._is_mine(record.id):
            self._free(run)
            return
        if run is None:
            self._told.add(Telling(record.id, record))
            return
        with self._guard(f"Telling the end of run {record.id}") as telling:
            self._tell(run.key, record)
        if telling.error is None:
            pass
        elif record.delivered or record.outcome == UNWANTED:
            self._free(run)  # Airflow knows, or does not want to
        else:
            self._fail(run.key, f"run {record.id} ended as {record.state.value}: {record.reason or record.outcome}")
        self._told.add(self._telling(run.key, record.id, record, run.ti_id, record.id))

    def _telling(
        self, key: Any, telling_id: str, record: RunRecord | None, ti_id: str | None, executor_id: str | None
    ) -> Telling:
        """Return what the scheduler gets to hear: if it is to fail a task instance, it must not miss that."""
        state, reason = self.event_buffer.get(key, (None, None))
        is_failure = isinstance(key, TaskInstanceKey) and state == compat.states_of("task").FAILED
        return Telling(telling_id, record, key, ti_id if is_failure else None, executor_id, reason)

    def _tell_again(self, telling_id: str) -> None:
        telling = self._told.repeat(telling_id)
        if telling is None or telling.key in self.running or telling.key in self.queued_tasks:
            return  # in hand again: the scheduler would not heed it
        self.log.info("The scheduler is told again of %s, which it has missed: %s", telling.key, telling.reason)
        self.change_state(telling.key, compat.states_of("task").FAILED, telling.reason)

    def log_task_event(self, *, event: str, extra: str, ti_key: Any) -> None:
        """Add an entry to Airflow's audit log, for tasks."""
        if isinstance(ti_key, TaskInstanceKey):
            super().log_task_event(event=event, extra=extra, ti_key=ti_key)
            self._held_entries.append(self._task_event_logs[-1])

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        """Tell the scheduler of a workload's state; the database too of a connection test that fails with a reason."""
        super().change_state(key, state, info, remove_running)
        if info and type(key).__name__ == "ConnectionTestKey":
            with self._guard(f"Telling the end of connection test {key}"):
                fail_connection_test(str(key.id), str(info))

    def send_callback(self, request: Any) -> None:
        """Have a callback run, or a mail sent, by the dag processor: for each try of a task once."""
        is_wanted = True
        with self._guard("Looking whether a callback was asked for before"):
            is_wanted = self._alerts.are_wanted(request)
        if is_wanted:
            super().send_callback(request)

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Stop the runner of a task instance and free its slot, without an event."""
        with self._guard(f"Revoking {ti}"):
            self.queued_tasks.pop(ti.key, None)
            self.running.discard(ti.key)
            self._elsewhere.pop(str(ti.id), None)
            for run_id in self._runs.ids_of(ti.key):
                del self._runs[run_id]
                self._stop(run_id, "revoked by the scheduler", unwanted=True)
            self._waiting.drop(ti.key)
            self._held.pop(ti.key, None)

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Take over the runs of a scheduler that is gone.

        A scheduler whose heartbeat was late may take itself for gone: what is in hand already stays as it is.

        :return: the instances that have no run to take over, and were not queued but begun.
        """
        given_back = []
        before = len(self._runs), len(self.queued_tasks), len(self._elsewhere)
        for ti in tis:
            is_kept = False
            with self._guard(f"Taking {ti} over") as attempt:
                is_kept = self._is_in_hand(ti.key) or self._adopt(ti)
            if attempt.error is not None:
                self._forget(ti.key)
            if not is_kept:
                given_back.append(ti)
        now = len(self._runs), len(self.queued_tasks), len(self._elsewhere)
        self.log.info(
            "Of %d tasks of schedulers that are gone: %d taken over, %d queued again, %d run elsewhere, %d given back",
            len(tis),
            *(count - earlier for count, earlier in zip(now, before, strict=True)),
            len(given_back),
        )
        return given_back

    def _is_in_hand(self, key: Any) -> bool:
        if key in self.queued_tasks or key in self._held or key in self._waiting or self._told.has_key(key):
            return True
        return any(self._is_mine(run_id) for run_id in self._runs.ids_of(key))

    def _forget(self, key: Any) -> None:
        """Let go of a workload whose run can't be followed."""
        for run_id in self._runs.ids_of(key):
            del self._runs[run_id]
        self.running.discard(key)

    def end(self) -> None:
        """Let go. What becomes of the runs, ``[air_executor] on_shutdown`` says."""
        with self._guard("Ending the executor"), self._at_end:
            if not hasattr(self, "_backend"):
                return
            # Whether the scheduler has dealt with the last ends is not known: the next one is told again.
            policy = self._options.on_shutdown
            self.log.info("AirExecutor ends; %d runs: %s", len(self._runs), policy)
            if policy == "drain":
                self._wait_for_runs(None)
            elif policy == "kill":
                self.terminate()
                self._wait_for_runs(self._options.stop_grace_seconds + 2 * _STUBBORN_S)

    def terminate(self) -> None:
        """Stop every run of this executor. What waits for one stays queued, for the next executor."""
        self.running -= self._waiting.keys()
        self._waiting.clear()
        for run_id in list(self._runs):
            self._stop(run_id, "the executor was terminated")

    def debug_dump(self) -> None:
        """Log what this executor has in hand, for SIGUSR2, which may come before it has started."""
        with self._guard("Dumping what the executor has in hand"):
            super().debug_dump()
            self.log.info("air_executor.state_dir %s", self._store.root if hasattr(self, "_store") else "not known yet")
            lines = "\n\t".join(f"{run_id} {run.key}" for run_id, run in self._runs.items())
            self.log.info("air_executor.runs (%d)\n\t%s", len(self._runs), lines)
            self.log.info("air_executor.waiting_for_gpus (%d)", len(self._waiting))

    @staticmethod
    def get_cli_commands() -> list[Any]:
        """Return the commands of ``airflow air``. From Airflow 3.2 on they come through the provider instead."""
        if compat.AIRFLOW_VERSION >= (3, 2):
            return []
        from air_executor.provider import get_cli_commands

        return get_cli_commands()

    @classmethod
    def _wait_for_news(cls, seconds: float) -> None:
        """Wait until a run has ended, at most so many seconds: what the scheduler does when it has nothing to do.

        What follows a task is scheduled when it ends, not up to a second later. Only while there is plenty of work for
        every CPU, ends are left to gather: a loop of the scheduler costs about as much for many of them as for one.
        """
        begin_s = time.monotonic()
        gather_s = begin_s + min(seconds, max(0.0, _GATHER_FACTOR * (begin_s - cls._woken_s)))
        plenty = _PLENTY_PER_CPU * (os.cpu_count() or 1)
        try:
            while (now_s := time.monotonic()) < begin_s + seconds:
                has_news, live, poll = False, 0, select.poll()
                for each in cls._working:
                    with each._guard("Waiting for news of runs") as looking:
                        has_news = each._backend.has_news() or has_news
                        live += len(each._runs) - len(each._backend.ends())
                        if (fd := each._backend.fileno()) is not None:
                            poll.register(fd, select.POLLIN)
                    if looking.error is not None:
                        time.sleep(min(_FAILED_WAIT_S, max(0.0, begin_s + seconds - now_s)))  # not in a busy loop
                if has_news and (now_s >= gather_s or live < plenty):
                    return
                poll.poll(max(0.0, ((gather_s if has_news else begin_s + seconds) - now_s) * 1000))
        finally:
            cls._woken_s = time.monotonic()

    # Beginning

    def _begin_life(self) -> KernelLock:
        while True:
            life = KernelLock(self._store.executors / own_name(self.job_id))
            if life.acquire(timeout_s=0):  # another executor may be looking at the very file
                return life

    def _inherit(self) -> None:
        """Follow the callbacks of schedulers that are gone: nobody but an executor tells Airflow of their ends.

        Tasks are offered by Airflow. Those that it has given up meanwhile are not, so that nobody needs to hear of
        their ends any more.
        """
        orphans = []
        for record in self._store.open_records():
            with self._guard(f"Taking run {record.id} over"):
                if not record.reported_at and self._is_orphan(record.id):
                    orphans.append(record)
                    if record.identity.kind == "callback":
                        self._follow(record, compat.callback_key(record.identity.workload_id))
        if self._runs:
            self.log.info("%d callbacks of schedulers that are gone were taken over", len(self._runs))
        ended = {r.id: r for r in orphans if r.identity.kind == "task" and r.state.is_end}
        for run_id in self._reconciler.given_up({r.id: r.identity.workload_id for r in ended.values()}):
            with self._guard(f"Recording that nobody waits for the end of run {run_id}"):
                self._store.mark_reported(ended[run_id])

    def _is_orphan(self, run_id: str) -> bool:
        """Tell whether the executor that followed a run is dead, and this one is to take its place."""
        owner = self._store.owner(run_id)
        if owner is None:
            return True
        return not is_held(self._store.executors / owner) and self._reconciler.is_of_this_database(owner)

    def _order(self, key: Any, workload: Any) -> RunRecord:
        """Have a run begin, and return its record."""
        identity = compat.identity_of(workload, team=getattr(self, "team_name", None))
        air = compat.executor_config(workload).get("air")
        known_id = compat.pre_assigned_id(workload)
        # One that was queued by a scheduler that died may have a run on record already, which never began.
        run_id = known_id if known_id and not self._store.has(known_id) else str(uuid.uuid4())
        log_file = compat.log_file_of(workload)
        request = RunRequest(
            id=run_id,
            identity=identity,
            workload=compat.dump_workload(workload),
            air=limits.as_json(air),
            server=self._server,
            log_file=log_file,
        )
        record = runs.queued(run_id, identity, limits=limits.public(air), log_file=log_file)
        self._backend.order(request, record)
        self._own(record, key)
        if identity.kind != "task":
            self.change_state(key, compat.states_of(identity.kind).RUNNING, remove_running=False)
        return record

    def _own(self, record: RunRecord, key: Any) -> None:
        is_task = record.identity.kind == "task"
        self._runs[record.id] = Run(key, record.identity.workload_id if is_task else None)
        self.running.add(key)
        try:
            self._store.set_owner(record.id, self._life.name)
        except Exception as error:
            self.log.warning("Run %s will send its heartbeats itself: %s", record.id, error)

    def _follow(self, record: RunRecord, key: Any) -> None:
        """Take over a run that another executor has ordered."""
        self._own(record, key)
        try:
            self._backend.follow(record)
        except Exception:
            self._forget(key)
            raise

    def _is_mine(self, run_id: str) -> bool:
        with self._guard(f"Looking up who follows run {run_id}"):
            return self._store.owner(run_id) in (None, self._life.name)
        return True

    def _adopt(self, ti: TaskInstance) -> bool:
        try:
            try:
                record = self._settled(ti.external_executor_id)
            except RecordError:
                record = self._with_lost_record(ti)
            if record is None:
                return self._order_again(ti) or self._leave_elsewhere(ti)
            if record.state.is_end and (record.reported_at or record.outcome == UNWANTED):
                return self._order_again(ti)  # its next run was ordered by a scheduler that died before it was noted
            self._follow(record, ti.key)
        except AirExecutorError as error:
            self.log.warning("%s is given back: %s", ti, error)
            return False
        return True

    def _settled(self, run_id: str | None) -> RunRecord | None:
        """Return the record of a run; ``None`` when it never began, and so will not any more."""
        if not run_id or not self._store.has(run_id):
            return None
        record = self._store.settle(self._store.read(run_id))
        if record.state is not RunState.QUEUED:
            return record
        lock = self._store.lock(record.identity.workload_id)
        if not lock.acquire(timeout_s=0):
            return record  # its runner is being born
        try:
            record = self._store.read(record.id)
            if record.state is RunState.QUEUED:
                # Whatever is left of its request finds it ended, and leaves it alone.
                lost = record.advance(RunState.LOST, outcome=UNWANTED, reason="its scheduler died before it began")
                self._store.mark_reported(lost)
                return None
            return record
        finally:
            lock.release()

    def _with_lost_record(self, ti: TaskInstance) -> RunRecord:
        """Return what can be told of a run whose record is lost, and whose runner lives. It writes another in the end.

        :raises RecordError: there is no runner.
        """
        identity = compat.identity_of_instance(ti, team=getattr(self, "team_name", None))
        if not is_held(self._store.lock(identity.workload_id).path):
            raise RecordError(f"the record of run {ti.external_executor_id} is lost, and it has no runner")
        record = runs.queued(str(ti.external_executor_id), identity, limits={}, log_file=None)
        return record.advance(RunState.STARTING).advance(RunState.RUNNING)

    def _order_again(self, ti: TaskInstance) -> bool:
        """Queue an instance that was queued by a scheduler that died, and has not begun. It keeps its try."""
        if ti.state != compat.states_of("task").QUEUED:
            return False
        try:
            workload = compat.workload_of(ti, self.jwt_generator, self.sentry_integration)
        except Exception:
            self.log.exception("%s can't be queued again and is given back", ti)
            return False
        self.queued_tasks[ti.key] = workload
        # The scheduler saves it with the rest. It would take one for stuck that waited for long before it died.
        ti.queued_dttm = datetime.now(tz=timezone.utc)
        return True

    def _leave_elsewhere(self, ti: TaskInstance) -> bool:
        """Keep the slot of an instance that runs where this executor can't see it, while its runner sends heartbeats.

        It is of a scheduler on another machine, or one with another state directory. Its runner tells Airflow its end;
        if it dies, Airflow misses its heartbeats.
        """
        if ti.state != compat.states_of("task").RUNNING or not self._reconciler.is_beating(str(ti.id)):
            return False
        self._elsewhere[str(ti.id)] = ti.key
        self.running.add(ti.key)
        self.log.info("%s runs elsewhere and goes on", ti)
        return True

    # While it runs

    def _reconcile(self) -> None:
        """Begin a pass when it is time for one, and heed what it has found when it is over."""
        self._begin_pass()
        found = None
        with self._guard("Reconciling the runs with the database"):
            found = self._reconciler.outcome()
        if found is not None:
            self._heed(found)
        self._kill_the_stubborn()

    def _begin_pass(self) -> None:
        """Begin a pass when it is time for one. One that is overdue is waited for, for a moment."""
        with self._guard("Beginning to reconcile the runs with the database"):
            if self._reconciler.is_due():
                instances = {run_id: run.ti_id for run_id, run in self._runs.items()}
                self._reconciler.waiting = self._waiting.instances()
                self._reconciler.begin(instances, self._life.name, list(self._elsewhere), self._told.to_confirm())
            self._reconciler.catch_up(_CATCH_UP_S)

    @classmethod
    def _vouch(cls, instances: Callable[[], list[Any]]) -> list[Any]:
        """Return those task instances that the scheduler should fail because their heartbeats are missing.

        Not those whose runner lives: that a heartbeat was not passed on, as while the machine was paused, is no fault
        of theirs.

        :param instances: looks them up in the database.
        """
        for each in cls._working:
            each._begin_pass()
        return [ti for ti in instances() if not any(each._is_alive(ti) for each in cls._working)]

    def _is_alive(self, ti: TaskInstance) -> bool:
        with self._guard(f"Looking whether {ti} lives"):
            for run_id in self._runs.ids_of(ti.key):
                has_runner = is_held(self._store.lock(str(ti.id)).path)
                if self._runs[run_id].ti_id == str(ti.id) and has_runner and not self._reconciler.is_silent(run_id):
                    self.log.info("%s lives: its runner holds its lock. Its heartbeat was not passed on yet", ti)
                    return True
        return False

    def _heed(self, found: Outcome) -> None:
        for run_id in found.lost & self._runs.keys():
            self.log.info("Run %s was taken over by another scheduler", run_id)
            self._free(self._runs.pop(run_id))
        for ti_id in found.over & self._elsewhere.keys():
            self.running.discard(self._elsewhere.pop(ti_id))
        for unwanted in found.unwanted:
            if (key := self._waiting.key_of(unwanted.run_id)) is not None:
                self.log.info("%s waits for GPUs no longer: %s", key, unwanted.reason)
                self._waiting.drop(key)
                self._free(Run(key, unwanted.run_id))
            elif unwanted.run_id in self._runs and unwanted.run_id not in self._stopping:
                self._stop(unwanted.run_id, unwanted.reason, unwanted=True)
        self._told.confirm(found.heard)
        for telling_id in found.missed:
            with self._guard("Telling the scheduler again what it has missed"):
                self._tell_again(telling_id)
        if not self._reconciler.is_database_away:
            with contextlib.suppress(OSError):
                os.utime(self._life.path)  # our sign of life: runners need send no heartbeats

    def _kill_the_stubborn(self) -> None:
        """Kill runs that were asked to end and have not. In each loop: it needs no database."""
        now_s = self._awake.look()
        for run_id, since_s in list(self._stopping.items()):
            if self._awake.since_s(since_s) <= self._options.stop_grace_seconds + _STUBBORN_S:
                continue
            with self._guard(f"Killing run {run_id}"):
                if self._store.stop_request(run_id) is not None:
                    self.log.warning("Run %s does not end by itself and is killed", run_id)
                    self._stopping[run_id] = now_s - self._options.stop_grace_seconds  # again after the rest
                    self._backend.kill(run_id)

    def _free(self, run: Run | None) -> None:
        """Free the slot of a run that is no longer this executor's, unless its task instance has another."""
        if run is not None and not self._goes_on(run.key):
            self.running.discard(run.key)

    def _goes_on(self, key: Any) -> bool:
        """Tell whether a workload has a live run, or waits for one."""
        return self._runs.has_key(key) or key in self._waiting or key in self._held

    def _stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        with self._guard(f"Stopping run {run_id}"):
            self._stopping[run_id] = time.monotonic()
            self._backend.stop(run_id, reason, unwanted=unwanted)

    def _wait_for_runs(self, timeout_s: float | None) -> None:
        """Wait until all runs have ended. Their ends are told by the next scheduler, if not by the runners."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._runs and (end_s is None or time.monotonic() < end_s):
            for record in self._take_ends():
                self._runs.pop(record.id, None)
            self._reconcile()
            time.sleep(_DRAIN_LOOK_S)

    # The end of a run

    def _fail(self, key: Any, reason: str) -> None:
        """Fail a workload; if even that can't be told, its slot is free."""
        with self._guard(f"Adding to the audit log why {key} failed"):
            self.log_task_event(event=AUDIT_EVENT, extra=reason, ti_key=key)
        with self._guard(f"Telling the scheduler that {key} failed"):
            self.running.discard(key)
            self.fail(key, info=reason)

    def _tell(self, key: Any, record: RunRecord) -> None:
        """Turn the end of a run into the scheduler's terms."""
        is_last = not self._goes_on(key)
        if record.reason:
            self.log_task_event(event=AUDIT_EVENT, extra=f"run {record.id}: {record.reason}", ti_key=key)
        if record.tokens_signed:
            how = f"its token was not valid any more; its runner has signed another, {record.tokens_signed} times"
            self.log_task_event(event=_TOKEN_EVENT, extra=f"run {record.id}: {how}", ti_key=key)
        if record.outcome == UNWANTED or (record.delivered and record.outcome in _GOES_ON):
            # An event would make the scheduler fail an instance that somebody else may be running, or one that goes on
            # already: that is scheduled again, and still waits for a slot.
            if is_last:
                self.running.discard(key)
            return
        states = compat.states_of(record.identity.kind)
        # For a task whose runner has told Airflow its state, the scheduler only wants to know that the slot is
        # free; "failed" would mean that the task's state is not what it should be.
        ok = record.delivered or (record.identity.kind != "task" and record.state is RunState.SUCCEEDED)
        info = None if ok else record.reason
        if not ok:
            self._alerts.are_told_by(record)
        self.change_state(key, states.SUCCESS if ok else states.FAILED, info, remove_running=is_last)
