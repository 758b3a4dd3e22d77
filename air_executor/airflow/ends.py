"""The ends of runs in the scheduler's terms."""

from __future__ import annotations

from typing import Any

from airflow.models.taskinstancekey import TaskInstanceKey

from air_executor.airflow import compat, metrics, spans, task_instances
from air_executor.airflow.alerts import Alerts
from air_executor.airflow.reports import Report
from air_executor.airflow.work import Work
from air_executor.runs.record import UNWANTED, RunRecord, RunState

#: Name of AirExecutor's entries in Airflow's audit log.
AUDIT_EVENT = "air_executor run ended"
_TOKEN_EVENT = "air_executor token signed"

#: States in which the try continues later in a new run.
_CONTINUES_LATER = frozenset({"awaiting_input", "deferred", "up_for_reschedule"})


class Ends:
    """Reports ends to the scheduler."""

    def __init__(self, work: Work, alerts: Alerts) -> None:
        self._work = work
        self._alerts = alerts

    def take(self, record: RunRecord) -> None:
        """Report the end of a run."""
        work = self._work
        run = work.runs.pop(record.id, None)
        if not work.is_mine(record.id):
            work.free(run)
            return
        with work.guard("Counting the end of a run"):
            metrics.run_ended(record)
        if run is None:
            work.reports.add(Report(record.id, record))
            return
        with work.guard("Reporting the span of a run"):
            spans.start(record, run.carrier)
        with work.guard(f"Reporting the end of run {record.id}") as attempt:
            self.report(run.key, record)
        if attempt.error is not None:
            if record.delivered or record.outcome == UNWANTED:
                work.free(run)  # Airflow knows the end, or does not want it
            else:
                self.fail(run.key, f"run {record.id} ended as {record.state.value}: {record.reason or record.outcome}")
        self.note(run.key, record.id, record, run.ti_id, record.id)

    def report(self, key: Any, record: RunRecord) -> None:
        """Turn the end of a run into an event for the scheduler, where it needs one."""
        executor, is_last = self._work.executor, not self._work.continues(key)
        if record.reason:
            executor.log_task_event(event=AUDIT_EVENT, extra=f"run {record.id}: {record.reason}", ti_key=key)
        if record.tokens_signed:
            how = f"its token was not valid any more; its runner has signed another, {record.tokens_signed} times"
            executor.log_task_event(event=_TOKEN_EVENT, extra=f"run {record.id}: {how}", ti_key=key)
        is_unwanted = record.outcome == UNWANTED and not self._is_waited_for(key, record)
        if is_unwanted or (record.delivered and record.outcome in _CONTINUES_LATER):
            # An event would make the scheduler fail an instance that somebody else may be running, or that is scheduled
            # again already, and still waits for a slot.
            if is_last:
                executor.running.discard(key)
            return
        states = compat.states_of(record.identity.kind)
        # For a task whose runner has reported its state to Airflow, the scheduler only needs to know that the slot is
        # free; "failed" would mean that the task's state is wrong.
        ok = record.delivered or record.outcome == UNWANTED
        ok = ok or (record.identity.kind != "task" and record.state is RunState.SUCCEEDED)
        if not ok:
            self._alerts.are_told_by(record)
        info = None if ok else record.reason
        executor.change_state(key, states.SUCCESS if ok else states.FAILED, info, remove_running=is_last)

    @staticmethod
    def _is_waited_for(key: Any, record: RunRecord) -> bool:
        """Tell whether the scheduler waits for the end of an unwanted run: one that was cleared while it ran.

        Its ``process_executor_events`` then begins the instance again.
        """
        return record.running_at is not None and isinstance(key, TaskInstanceKey) and task_instances.is_restarting(key)

    def fail(self, key: Any, reason: str) -> None:
        """Fail a workload. If even that can't be reported, its slot is free."""
        executor = self._work.executor
        with self._work.guard(f"Adding to the audit log why {key} failed"):
            executor.log_task_event(event=AUDIT_EVENT, extra=reason, ti_key=key)
        with self._work.guard(f"Telling the scheduler that {key} failed"):
            executor.running.discard(key)
            executor.fail(key, info=reason)

    def note(
        self, key: Any, report_id: str, record: RunRecord | None, ti_id: str | None, executor_id: str | None
    ) -> None:
        """Note what is reported to the scheduler. A report that is to fail a task instance must not be missed."""
        state, reason = self._work.executor.event_buffer.get(key, (None, None))
        is_failure = isinstance(key, TaskInstanceKey) and state == compat.states_of("task").FAILED
        self._work.reports.add(Report(report_id, record, key, ti_id if is_failure else None, executor_id, reason))

    def repeat(self, report_id: str) -> None:
        """Report again a failure that the scheduler has missed."""
        executor, report = self._work.executor, self._work.reports.repeat(report_id)
        if report is None or report.key in executor.running or report.key in executor.queued_tasks:
            return  # the workload is in hand again: the scheduler would ignore the report
        executor.log.info(
            "Reporting again the end of %s, which the scheduler has missed: %s", report.key, report.reason
        )
        executor.change_state(report.key, compat.states_of("task").FAILED, report.reason)
