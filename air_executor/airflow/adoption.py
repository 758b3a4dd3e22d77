"""Taking over the work of schedulers that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

from air_executor.airflow import compat, metrics, task_instances
from air_executor.airflow.reconcile import SILENT_S
from air_executor.airflow.schedulers import is_of_this_database
from air_executor.airflow.work import Work
from air_executor.errors import AirExecutorError
from air_executor.runs.record import UNWANTED

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance


class Adoption:
    """Takes over runs for one executor."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def inherit(self) -> None:
        """Follow the callbacks of schedulers that are gone: only an executor reports their ends to Airflow.

        Airflow offers tasks for adoption, but not those that it has given up meanwhile: nobody needs their ends.
        """
        work, orphans = self._work, []
        for record in work.backend.orphans(is_of_this_database):
            with work.guard(f"Taking run {record.id} over"):
                orphans.append(record)
                if record.identity.kind == "callback":
                    work.follow(record, compat.callback_key(record.identity.workload_id))
        if work.runs:
            work.executor.log.info("%d callbacks of schedulers that are gone were taken over", len(work.runs))
        ended = {r.id: r for r in orphans if r.identity.kind == "task" and r.state.is_end}
        for run_id in task_instances.given_up({r.id: r.identity.workload_id for r in ended.values()}):
            with work.guard(f"Recording that nobody waits for the end of run {run_id}"):
                work.backend.acknowledge(ended[run_id])

    def take(self, instances: Sequence[TaskInstance]) -> list[TaskInstance]:
        """Take over the runs of task instances.

        A scheduler whose heartbeat was late may consider itself gone, so what is in hand already stays as it is.

        :return: the instances that have no run to take over, and had begun, so that they can't be queued again.
        """
        work, given_back = self._work, []
        before = self._counts()
        for ti in instances:
            is_kept = False
            with work.guard(f"Taking {ti} over") as attempt:
                is_kept = work.has(ti.key) or self._adopt(ti)
            if attempt.error is not None:
                work.forget(ti.key)
            if not is_kept:
                given_back.append(ti)
        with work.guard("Counting what was taken over"):
            metrics.adopted(len(work.runs) - before[0])
        work.executor.log.info(
            "Adopting %d tasks of dead schedulers: %d adopted, %d queued again, %d running elsewhere, %d returned to "
            "Airflow",
            len(instances),
            *(count - earlier for count, earlier in zip(self._counts(), before, strict=True)),
            len(given_back),
        )
        return given_back

    def _counts(self) -> tuple[int, int, int]:
        return len(self._work.runs), len(self._work.executor.queued_tasks), len(self._work.elsewhere)

    def _adopt(self, ti: TaskInstance) -> bool:
        try:
            run_id, record = ti.external_executor_id, None
            if run_id:
                identity = partial(compat.identity_of_instance, ti, team=self._work.team)
                record = self._work.backend.adopt(run_id, identity)
            if record is None:
                return self._queue_again(ti) or self._leave_elsewhere(ti)
            if record.state.is_end and (record.reported_at or record.outcome == UNWANTED):
                return self._queue_again(ti)  # a scheduler ordered its next run, and died before it was noted
            self._work.follow(record, ti.key, compat.trace_carrier(ti))
        except AirExecutorError as error:
            self._work.executor.log.warning("%s can't be adopted and is returned to Airflow: %s", ti, error)
            return False
        return True

    def _queue_again(self, ti: TaskInstance) -> bool:
        """Queue an instance that was queued by a scheduler that died, and has not begun. It keeps its try."""
        executor = self._work.executor
        if ti.state != compat.states_of("task").QUEUED:
            return False
        try:
            workload = compat.workload_of(ti, executor.jwt_generator, getattr(executor, "sentry_integration", ""))
        except Exception:
            executor.log.exception("%s can't be queued again, and is returned to Airflow", ti)
            return False
        executor.queued_tasks[ti.key] = workload
        # The scheduler saves it with the rest. With the old time, it could take the instance for stuck in the queue.
        ti.queued_dttm = datetime.now(tz=timezone.utc)
        return True

    def _leave_elsewhere(self, ti: TaskInstance) -> bool:
        """Keep the slot of an instance that runs where this executor can't see it, while its runner sends heartbeats.

        It belongs to a scheduler on another machine, or with another state directory. Its runner reports its end to
        Airflow; if the runner dies, Airflow misses its heartbeats.
        """
        if ti.state != compat.states_of("task").RUNNING or not task_instances.is_beating(str(ti.id), SILENT_S):
            return False
        self._work.elsewhere[str(ti.id)] = ti.key
        self._work.executor.running.add(ti.key)
        self._work.executor.log.info("%s runs elsewhere and continues", ti)
        return True
