"""Callbacks and mails about failed tasks: each is requested once per try."""

from __future__ import annotations

from typing import Any

from air_executor.runs.record import RunRecord

#: How many requests to remember. Airflow repeats a request within one loop of the scheduler.
_MANY = 10_000

#: Requests that Airflow's scheduler makes for one try of a task. Those for a DAG run always pass.
_KINDS = ("TaskCallbackRequest", "EmailRequest")

#: States after which the task's own process runs the callbacks and sends the mails.
_RUNS_ITS_CALLBACKS = frozenset({"failed", "up_for_retry"})


class Alerts:
    """Remembers requests, so that none is repeated.

    Airflow's scheduler requests the callbacks of a task whose heartbeats are missing twice: when it notices that, and
    when it handles the executor's event. It also requests them for a task that has run them itself, but could not
    report its state to the API server.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, int], None] = {}

    def are_told_by(self, record: RunRecord) -> None:
        """Remember the callbacks that the task of a run has run itself, if any."""
        who = record.identity
        if record.outcome in _RUNS_ITS_CALLBACKS and who.kind == "task" and who.try_number is not None:
            for kind in _KINDS:
                self._is_new(kind, who.workload_id, who.try_number)

    def are_wanted(self, request: Any) -> bool:
        """Return whether a request for callbacks or mail is the first of its kind for a try, and remember it."""
        kind = type(request).__name__
        return kind not in _KINDS or self._is_new(kind, str(request.ti.id), request.ti.try_number)

    def _is_new(self, kind: str, ti_id: str, try_number: int) -> bool:
        key = kind, ti_id, try_number
        if key in self._told:
            return False
        self._told[key] = None
        if len(self._told) > _MANY:
            del self._told[next(iter(self._told))]
        return True
