"""When an executor reconciles its runs with the database, and what it does with what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from air_executor.airflow import metrics
from air_executor.airflow.ends import Ends
from air_executor.airflow.live_runs import Run
from air_executor.airflow.reconcile import Outcome, Reconciler
from air_executor.airflow.stops import Stops
from air_executor.airflow.work import Work

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: After a pause of the machine, the scheduler waits at most this many seconds for its tasks' heartbeats to be written.
_CATCH_UP_S = 5.0


class Passes:
    """Begins passes of the reconciler, and acts on them."""

    def __init__(self, work: Work, ends: Ends, stops: Stops) -> None:
        self._work = work
        self._ends = ends
        self._stops = stops
        self.reconciler: Reconciler

    def make(self) -> None:
        """Begin a pass when one is due, and act on its findings when it is over."""
        self.begin()
        found = None
        with self._work.guard("Reconciling the runs with the database"):
            found = self.reconciler.outcome()
        if found is not None:
            self.act_on(found)

    def begin(self) -> None:
        """Begin a pass when one is due. If heartbeats are behind, wait a moment for it."""
        work = self._work
        with work.guard("Beginning to reconcile the runs with the database"):
            if self.reconciler.is_due():
                instances = {run_id: run.ti_id for run_id, run in work.runs.items()}
                self.reconciler.waiting = work.gpu_queue.instances()
                self.reconciler.begin(instances, list(work.elsewhere), work.reports.to_confirm())
            self.reconciler.catch_up(_CATCH_UP_S)

    def act_on(self, found: Outcome) -> None:
        """Act on the findings of a pass."""
        work, executor = self._work, self._work.executor
        for run_id in found.lost & work.runs.keys():
            executor.log.info("Run %s was taken over by another scheduler", run_id)
            work.free(work.runs.pop(run_id))
        for ti_id in found.over & work.elsewhere.keys():
            executor.running.discard(work.elsewhere.pop(ti_id))
        for unwanted in found.unwanted:
            if (key := work.gpu_queue.key_of(unwanted.run_id)) is not None:
                executor.log.info("%s waits for GPUs no longer: %s", key, unwanted.reason)
                work.gpu_queue.drop(key)
                work.free(Run(key, unwanted.run_id))
            elif unwanted.run_id in work.runs and unwanted.run_id not in self._stops:
                self._stops.ask(unwanted.run_id, unwanted.reason, unwanted=True)
        work.reports.confirm(found.heard)
        for report_id in found.missed:
            with work.guard("Reporting again what the scheduler has missed"):
                self._ends.repeat(report_id)
        with work.guard("Counting what is in hand"):
            metrics.reconciled(found.took_s)
            metrics.live(len(work.runs), len(work.gpu_queue), work.backend.room.waiting(), work.backend.launchers())
        if not self.reconciler.is_database_away:
            with work.guard("Showing that runs are reconciled"):
                work.backend.show_life()

    def is_alive(self, ti: TaskInstance) -> bool:
        """Tell whether a task instance has a runner here that holds its lock and is not silent."""
        work = self._work
        with work.guard(f"Looking whether {ti} lives"):
            for run_id in work.runs.ids_of(ti.key):
                has_runner = work.runs[run_id].ti_id == str(ti.id) and work.backend.is_alive(str(ti.id))
                if has_runner and not self.reconciler.is_silent(run_id):
                    work.executor.log.info(
                        "%s lives: its runner holds its lock. Its heartbeat is still to be written", ti
                    )
                    return True
        return False


def vouch(passes: Iterable[Passes], instances: Callable[[], list[Any]]) -> list[Any]:
    """Return those task instances that the scheduler should fail because their heartbeats are missing.

    Those whose runner lives are left out: it is not their fault that a heartbeat was not written, as when the machine
    was paused.

    :param instances: looks them up in the database.
    """
    passes = list(passes)
    for each in passes:
        each.begin()
    return [ti for ti in instances() if not any(each.is_alive(ti) for each in passes)]
