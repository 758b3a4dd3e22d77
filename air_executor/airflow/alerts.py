"""Which failures of tasks have been told: by callbacks and mails, once for each try."""

from __future__ import annotations

from typing import Any

from air_executor.runs.record import RunRecord

#: So many are remembered. Airflow asks for the same again within a loop of the scheduler.
_MANY = 10_000

#: Requests that Airflow's scheduler makes for one try of a task. Those for a dag run are no matter of ours.
_KINDS = ("TaskCallbackRequest", "EmailRequest")

#: What a task says of itself before its own process runs its callbacks and sends its mails.
_RUNS_ITS_CALLBACKS = frozenset({"failed", "up_for_retry"})


class Alerts:
    """Remembers what has been told, so that it is not told twice.

    Airflow's scheduler asks twice for the callbacks of a task whose heartbeats it misses: when it misses them, and when
    it handles the event that follows from that. It also asks for those of a task that has run them itself, when nobody
    could tell the API server what became of it.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, int], None] = {}

    def are_told_by(self, record: RunRecord) -> None:
        """Take note of a run whose task has run its callbacks, if it has."""
        who = record.identity
        if record.outcome in _RUNS_ITS_CALLBACKS and who.kind == "task" and who.try_number is not None:
            for kind in _KINDS:
                self._is_new(kind, who.workload_id, who.try_number)

    def are_wanted(self, request: Any) -> bool:
        """Tell whether a request for callbacks or mail is the first of its kind for a try, and take note of it."""
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
