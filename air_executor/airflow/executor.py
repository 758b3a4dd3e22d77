"""AirExecutor: Airflow's calls on an executor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.executors.base_executor import BaseExecutor
from airflow.models.taskinstancekey import TaskInstanceKey
from sqlalchemy.exc import SQLAlchemyError

from air_executor import config
from air_executor.airflow import compat, idle
from air_executor.airflow.admission import Admission
from air_executor.airflow.adoption import Adoption
from air_executor.airflow.alerts import Alerts
from air_executor.airflow.ends import Ends
from air_executor.airflow.orders import Orders
from air_executor.airflow.passes import Passes, vouch
from air_executor.airflow.reconcile import Reconciler
from air_executor.airflow.schedulers import fail_jobs_of_dead_executors, own_name
from air_executor.airflow.stops import STUBBORN_S, Stops
from air_executor.airflow.task_instances import fail_connection_test
from air_executor.airflow.work import Work
from air_executor.config import Config
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.backend import RunBackend

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: How often an executor that drains checks whether its runs have ended, in seconds.
_DRAIN_LOOK_S = 0.2


class AirExecutor(BaseExecutor):
    """Runs each workload in a runner process of its own on this machine.

    Records of the runs are in ``[air_executor] state_dir``; ``air-executor status`` shows them.

    An exception from here would end the scheduler. So whatever is done for one run, or in one step, is guarded: its
    exception is logged, and the others continue.
    """

    is_local = True
    is_production = True
    serve_logs = True
    supports_callbacks = True
    supports_connection_test = True
    supports_multi_team = True
    #: The scheduler commits the run's id with the state "queued", so that another scheduler can find the runner.
    pre_assigns_external_executor_id = True

    #: A heartbeat in the database that is younger than this many seconds is not renewed.
    _min_beat_age_s = 0.0

    #: The executors of this process that have started: each team may have one.
    _working: ClassVar[list[AirExecutor]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._alerts = Alerts()
        self._work = Work(self)
        self._stops = Stops(self._work)
        self._ends = Ends(self._work, self._alerts)
        self._orders = Orders(self._work, self._ends)
        self._adoption = Adoption(self._work)
        self._admission = Admission(self._work)
        self._passes = Passes(self._work, self._ends, self._stops)
        #: Releases resources in reverse order of acquisition, however far the start has come.
        self._at_end = contextlib.ExitStack()
        #: Keeps audit entries alive: the scheduler saves them through a generator, and SQLAlchemy holds only weak
        #: references. An entry that nobody else holds is saved empty, which fails and loses all of them.
        self._held_entries: list[Any] = []

    # Airflow's calls, in the order in which they come

    def start(self) -> None:
        """Check the options and the state directory, and warm up a launcher.

        :raises ConfigError: an option cannot be used. The scheduler does not start; the message names the option.
        :raises StateDirError: the state directory cannot be used.
        """
        compat.leave_shared_connections()
        get, work = compat.team_getter(self.conf), self._work
        work.options = config.load(lambda name: get(config.SECTION, name))
        work.server = compat.execution_api_url(get)
        backend = self._make_backend(work.options)
        self._at_end.callback(backend.close)
        while not backend.open(own_name(self.job_id)):  # another executor may just be looking at that name
            pass
        work.backend = backend
        try:
            fail_jobs_of_dead_executors(backend, self.job_id)
        except SQLAlchemyError as error:
            self.log.warning("Schedulers that died can't be noted now: %s", error)
        work.gpu_queue.open(backend)
        self._at_end.callback(work.gpu_queue.close)
        self._passes.reconciler = Reconciler(
            backend, work.options.state_dir, self.job_id, min_beat_age_s=self._min_beat_age_s
        )
        backend.warm_up()
        with work.guard("Taking over the runs of schedulers that are gone"):
            self._adoption.inherit()
        self._working.append(self)
        self._at_end.callback(self._working.remove, self)
        compat.use_idle_wait(self._wait_for_news)
        compat.use_vouching(self._vouch)
        if work.options.has_budget:
            compat.use_admission(self._admits)

    def _make_backend(self, options: Config) -> RunBackend:
        """Return where the runs happen."""
        return LocalBackend(options)

    # The slot of a run that has ended is free one loop of the scheduler before the scheduler knows it. A task that
    # waits for GPUs has no slot.

    @property
    def slots_available(self) -> int:
        """How many more workloads this executor can take."""
        return int(super().slots_available) + self._work.vacant()

    @property
    def slots_occupied(self) -> int:
        """How many workloads keep this executor busy."""
        return int(super().slots_occupied) - self._work.vacant()

    def trigger_tasks(self, open_slots: int) -> None:
        """Order the runs of as many queued tasks as there are slots."""
        with self._work.guard("Ordering the runs of queued tasks"):
            super().trigger_tasks(open_slots + self._work.vacant())

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        self._orders.take(workload_items)

    def sync(self) -> None:
        """Report the runs that have ended, and regularly reconcile the others with the database."""
        self._held_entries = list(self._task_event_logs)
        with self._work.guard("Acknowledging ends"):
            self._work.reports.next_loop(self._work.backend)
        for record in self._work.take_ends():
            self._stops.has_ended(record.id)
            self._ends.take(record)
        if self._work.held:
            self._orders.order_held()
        self._orders.order_waiting()
        self._admission.tidy()
        self._reconcile()

    def _reconcile(self) -> None:
        self._passes.make()
        self._stops.kill_the_stubborn()

    def log_task_event(self, *, event: str, extra: str, ti_key: Any) -> None:
        """Add an entry to Airflow's audit log, for tasks."""
        if isinstance(ti_key, TaskInstanceKey):
            super().log_task_event(event=event, extra=extra, ti_key=ti_key)
            self._held_entries.append(self._task_event_logs[-1])

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        """Report a workload's state; to the database too, for a connection test that fails with a reason."""
        super().change_state(key, state, info, remove_running)
        if info and type(key).__name__ == "ConnectionTestKey":
            with self._work.guard(f"Recording the end of connection test {key}"):
                fail_connection_test(str(key.id), str(info))

    def send_callback(self, request: Any) -> None:
        """Have the DAG processor run a callback or send a mail: once for each try of a task."""
        is_wanted = True
        with self._work.guard("Looking whether a callback was asked for before"):
            is_wanted = self._alerts.are_wanted(request)
        if is_wanted:
            super().send_callback(request)

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Stop the runner of a task instance and free its slot, without an event."""
        work = self._work
        with work.guard(f"Revoking {ti}"):
            self.queued_tasks.pop(ti.key, None)
            self.running.discard(ti.key)
            work.elsewhere.pop(str(ti.id), None)
            for run_id in work.runs.ids_of(ti.key):
                del work.runs[run_id]
                self._stops.ask(run_id, "revoked by the scheduler", unwanted=True)
            work.gpu_queue.drop(ti.key)
            work.held.pop(ti.key, None)

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Take over the runs of a scheduler that is gone; see :meth:`.adoption.Adoption.take`."""
        return self._adoption.take(tis)

    def end(self) -> None:
        """Release everything. ``[air_executor] on_shutdown`` decides what becomes of the runs."""
        work = self._work
        with work.guard("Ending the executor"), self._at_end:
            if not work.has_begun:
                return
            # Nobody knows whether the scheduler has dealt with the last ends: the next scheduler gets them again.
            policy = work.options.on_shutdown
            self.log.info("AirExecutor ends; %d runs: %s", len(work.runs), policy)
            if policy == "drain":
                self._wait_for_runs(None)
            elif policy == "kill":
                self.terminate()
                self._wait_for_runs(work.options.stop_grace_seconds + 2 * STUBBORN_S)

    def terminate(self) -> None:
        """Stop every run of this executor. Workloads that wait for one stay queued, for the next executor."""
        self.running -= self._work.gpu_queue.keys()
        self._work.gpu_queue.clear()
        for run_id in list(self._work.runs):
            self._stops.ask(run_id, "the executor was terminated")

    def _wait_for_runs(self, timeout_s: float | None) -> None:
        """Wait until all runs have ended. The next scheduler reports their ends, if the runners have not."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._work.runs and (end_s is None or time.monotonic() < end_s):
            for record in self._work.take_ends():
                self._work.runs.pop(record.id, None)
            self._reconcile()
            time.sleep(_DRAIN_LOOK_S)

    def debug_dump(self) -> None:
        """Log what this executor has in hand, for SIGUSR2, which may come before it has started."""
        with self._work.guard("Dumping what the executor has in hand"):
            super().debug_dump()
            where = self._work.options.state_dir if self._work.has_begun else "not known yet"
            self.log.info("air_executor.state_dir %s", where)
            lines = "\n\t".join(f"{run_id} {run.key}" for run_id, run in self._work.runs.items())
            self.log.info("air_executor.runs (%d)\n\t%s", len(self._work.runs), lines)
            self.log.info("air_executor.waiting_for_gpus (%d)", len(self._work.gpu_queue))

    @staticmethod
    def get_cli_commands() -> list[Any]:
        """Return the commands of ``airflow air``. From Airflow 3.2 on they come through the provider instead."""
        if compat.AIRFLOW_VERSION >= (3, 2):
            return []
        from air_executor.provider import get_cli_commands

        return get_cli_commands()

    @classmethod
    def _wait_for_news(cls, seconds: float) -> None:
        idle.wait_for_news([each._work for each in cls._working], seconds)

    @classmethod
    def _admits(cls, executor: Any, ti: TaskInstance) -> bool:
        return executor not in cls._working or executor._admission.admits(ti)

    @classmethod
    def _vouch(cls, instances: Callable[[], list[Any]]) -> list[Any]:
        return vouch((each._passes for each in cls._working), instances)
