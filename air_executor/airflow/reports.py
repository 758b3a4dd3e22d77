"""Ends that were reported to the scheduler, until it is certain that it has taken them in.

The scheduler drops a report on a task instance whose row somebody else has locked at that moment. So a failure, which
nobody but the executor reports, is reported again until the database agrees. Only then is it acknowledged: a scheduler
that dies before that leaves it to the next one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from air_executor.errors import StateDirError
from air_executor.guard import Guard
from air_executor.runs.backend import RunBackend
from air_executor.runs.record import RunRecord

#: When this many ends can't be acknowledged in one loop, as on a full disk, the others wait for the next loop.
_MAX_FAILURES = 8

#: Backoff before a failure is reported again, in seconds: the first pause, doubled each time, up to the last one.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 5.0, 300.0


@dataclass
class Report:
    """A report of one end to the scheduler."""

    id: str
    """Id of the run, or of this report if there is no run."""
    record: RunRecord | None = None
    """``None`` for a workload that could not even be ordered."""
    key: Any = None
    """The scheduler's key of the workload."""
    ti_id: str | None = None
    """Id of the task instance that the scheduler has to fail; ``None`` if it does not matter whether it does."""
    executor_id: str | None = None
    """``external_executor_id`` of that instance, as long as nobody has queued it again."""
    reason: str | None = None
    due_s: float = 0.0
    """When to begin to check whether the scheduler has taken it in, on the monotonic clock."""
    pause_s: float = _FIRST_PAUSE_S


class Reports:
    """The reports of one executor."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        #: Reports of this loop of the scheduler. In the next loop, it has dealt with them.
        self._fresh: list[Report] = []
        #: Reports that the scheduler may have missed, by their ids.
        self._open: dict[str, Report] = {}
        #: Ends that the scheduler has taken in, still to be acknowledged.
        self._taken_in: list[RunRecord] = []

    def add(self, report: Report) -> None:
        """Note that an end is reported in this loop of the scheduler."""
        self._fresh.append(report)

    def has_key(self, key: Any) -> bool:
        """Tell whether the scheduler may still have to take in an end of this workload."""
        return any(key == each.key for each in self._fresh) or any(key == each.key for each in self._open.values())

    def next_loop(self, backend: RunBackend) -> None:
        """Note that the scheduler has dealt with the last loop's reports; acknowledge what needs no confirmation."""
        fresh, self._fresh = self._fresh, []
        for each in fresh:
            if each.ti_id is not None:
                self._open[each.id] = each
            elif each.record is not None:
                self._taken_in.append(each.record)
        if self._taken_in:
            self._acknowledge(backend)

    def to_confirm(self) -> list[Report]:
        """Return the reports for which a check is due whether the scheduler has taken them in."""
        now_s = time.monotonic()
        return [each for each in self._open.values() if each.due_s <= now_s]

    def confirm(self, ids: Iterable[str]) -> None:
        """Note that the database agrees with these reports."""
        for each in [self._open.pop(report_id) for report_id in ids if report_id in self._open]:
            if each.record is not None:
                self._taken_in.append(each.record)

    def repeat(self, report_id: str) -> Report | None:
        """Return a report that is to be made again; ``None`` if it is no longer needed."""
        report = self._open.pop(report_id, None)
        if report is not None:
            report.due_s = time.monotonic() + report.pause_s
            report.pause_s = min(2 * report.pause_s, _LAST_PAUSE_S)
            self._fresh.append(report)
        return report

    def _acknowledge(self, backend: RunBackend) -> None:
        records, self._taken_in, failed = self._taken_in, [], 0
        for number, record in enumerate(records):
            if failed >= _MAX_FAILURES:
                self._taken_in += records[number:]
                return
            with self._guard("Acknowledging the end of a run") as attempt:
                try:
                    backend.acknowledge(record)
                except StateDirError:
                    if backend.knows(record.id):  # otherwise there is nothing left to acknowledge
                        raise
            if attempt.error is not None:
                failed += 1
                self._taken_in.append(record)  # the next loop tries again, and does not log it again
