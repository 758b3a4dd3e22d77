"""What one executor has in hand: where runs happen, its live runs, and workloads that wait for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.executors.base_executor import BaseExecutor

from air_executor.airflow.gpu_queue import GpuQueue
from air_executor.airflow.live_runs import LiveRuns, Run
from air_executor.airflow.reports import Reports
from air_executor.config import Config
from air_executor.guard import Guard
from air_executor.runs.backend import RunBackend
from air_executor.runs.record import RunRecord


class Work:
    """The state that the parts of an executor share. Slots are counted by Airflow's own set of running workloads."""

    backend: RunBackend
    options: Config
    server: str | None = None
    """URL of the execution API."""
    order_wait_s: float | None = None
    """For how long the token of an order has to be valid, in seconds, as it may wait; ``None``: it does not wait."""

    def __init__(self, executor: BaseExecutor) -> None:
        self.executor = executor
        self.guard = Guard(executor.log)
        self.runs = LiveRuns()
        """Live runs, by their ids."""
        self.gpu_queue = GpuQueue()
        """Workloads that wait for GPUs."""
        self.held: dict[Any, Any] = {}
        """Workloads whose task instance has another try that is still ending, by their keys: they begin after it."""
        self.elsewhere: dict[str, Any] = {}
        """Keys of task instances that were taken over with a runner that can't be seen from here, by their ids."""
        self.reports = Reports(self.guard)

    @property
    def has_begun(self) -> bool:
        """Whether the executor has started."""
        return hasattr(self, "backend")

    @property
    def team(self) -> str | None:
        """The team that the executor works for."""
        return getattr(self.executor, "team_name", None)

    def add(self, record: RunRecord, key: Any, carrier: Mapping[str, Any] | None = None) -> None:
        """Note that a workload has a live run, and occupies a slot.

        :param carrier: where in which trace it belongs.
        """
        is_task = record.identity.kind == "task"
        self.runs[record.id] = Run(key, record.identity.workload_id if is_task else None, carrier)
        self.executor.running.add(key)

    def follow(self, record: RunRecord, key: Any, carrier: Mapping[str, Any] | None = None) -> None:
        """Take over a run that another executor ordered.

        :param carrier: where in which trace it belongs.
        :raises AirExecutorError: it can't be followed.
        """
        self.add(record, key, carrier)
        try:
            self.backend.follow(record)
        except Exception:
            self.forget(key)
            raise

    def forget(self, key: Any) -> None:
        """Release a workload whose run can't be followed."""
        for run_id in self.runs.ids_of(key):
            del self.runs[run_id]
        self.executor.running.discard(key)

    def free(self, run: Run | None) -> None:
        """Free the slot of a run that is no longer this executor's, unless its task instance has another."""
        if run is not None and not self.continues(run.key):
            self.executor.running.discard(run.key)

    def continues(self, key: Any) -> bool:
        """Tell whether a workload has a live run, or waits for one."""
        return self.runs.has_key(key) or key in self.gpu_queue or key in self.held

    def is_mine(self, run_id: str) -> bool:
        """Tell whether no other executor follows a run, as far as that can be told."""
        with self.guard(f"Looking up who follows run {run_id}"):
            return self.backend.is_mine(run_id)
        return True

    def has(self, key: Any) -> bool:
        """Tell whether a workload is in hand already, though Airflow offers it for adoption."""
        if key in self.executor.queued_tasks or key in self.held or key in self.gpu_queue or self.reports.has_key(key):
            return True
        return any(self.is_mine(run_id) for run_id in self.runs.ids_of(key))

    def vacant(self) -> int:
        """Return how many slots are free before the scheduler knows: of runs that have ended, or wait for GPUs."""
        if not self.has_begun:
            return 0
        with self.guard("Looking for runs that have ended"):
            ended = {self.runs[run_id].key for run_id in self.backend.ends() if run_id in self.runs}
            return len((ended | self.gpu_queue.keys()) & self.executor.running)
        return 0

    def take_ends(self) -> list[RunRecord]:
        """Return the records of runs that have ended since the last call."""
        with self.guard("Looking for runs that have ended"):
            return self.backend.take_ends()
        return []
