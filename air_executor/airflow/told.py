"""Ends of which the scheduler was told, until it is certain that it has heard of them.

The scheduler drops what it is told of a task instance whose row somebody else has locked at that moment. So a failure,
which nobody but the executor tells, is told again until the database agrees. Only then is it recorded as reported: a
scheduler that dies before that leaves it to the next one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from air_executor.errors import StateDirError
from air_executor.guard import Guard
from air_executor.runs.record import RunRecord
from air_executor.runs.store import RunStore

#: While this many ends can't be recorded in one loop, as on a full disk, the others wait for the next loop.
_MAX_UNRECORDED = 8

#: Pauses before a failure is told again, in seconds: the first one, doubled each time, up to the last one.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 5.0, 300.0


@dataclass
class Telling:
    """What the scheduler was told of one end."""

    id: str
    """Id of the run, or of this telling if there is no run."""
    record: RunRecord | None = None
    """``None`` for a workload that could not even be ordered."""
    key: Any = None
    """By which the scheduler knows the workload."""
    ti_id: str | None = None
    """Id of the task instance that the scheduler has to fail; ``None`` when it does not matter whether it hears."""
    executor_id: str | None = None
    """``external_executor_id`` of that instance, as long as nobody has queued it again."""
    reason: str | None = None
    due_s: float = 0.0
    """From when on it is asked whether the scheduler has heard, on the monotonic clock."""
    pause_s: float = _FIRST_PAUSE_S


class Told:
    """The ends that one executor has told."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        #: Told in this loop of the scheduler. In the next one it has dealt with them.
        self._fresh: list[Telling] = []
        #: Perhaps not heard, by their ids.
        self._open: dict[str, Telling] = {}
        #: Certainly heard, and still to be recorded.
        self._heard: list[RunRecord] = []

    def add(self, telling: Telling) -> None:
        """Take note that the scheduler is told of an end."""
        self._fresh.append(telling)

    def has_key(self, key: Any) -> bool:
        """Tell whether the scheduler may still have to hear of an end of this workload."""
        return any(key == each.key for each in self._fresh) or any(key == each.key for each in self._open.values())

    def next_loop(self, store: RunStore) -> None:
        """Take note that the scheduler has dealt with what it was told, and record what needs no confirmation."""
        fresh, self._fresh = self._fresh, []
        for each in fresh:
            if each.ti_id is not None:
                self._open[each.id] = each
            elif each.record is not None:
                self._heard.append(each.record)
        if self._heard:
            self._record(store)

    def to_confirm(self) -> list[Telling]:
        """Return those of which it is time to ask whether the scheduler has heard of them."""
        now_s = time.monotonic()
        return [each for each in self._open.values() if each.due_s <= now_s]

    def confirm(self, ids: Iterable[str]) -> None:
        """Take note that the database agrees with ends."""
        for each in [self._open.pop(telling_id) for telling_id in ids if telling_id in self._open]:
            if each.record is not None:
                self._heard.append(each.record)

    def repeat(self, telling_id: str) -> Telling | None:
        """Return what is to be told again."""
        telling = self._open.pop(telling_id, None)
        if telling is not None:
            telling.due_s = time.monotonic() + telling.pause_s
            telling.pause_s = min(2 * telling.pause_s, _LAST_PAUSE_S)
            self._fresh.append(telling)
        return telling

    def _record(self, store: RunStore) -> None:
        heard, self._heard, failed = self._heard, [], 0
        for number, record in enumerate(heard):
            if failed >= _MAX_UNRECORDED:
                self._heard += heard[number:]
                return
            with self._guard("Recording that the end of a run was told") as recording:
                try:
                    store.mark_reported(record)
                except StateDirError:
                    if store.has(record.id):  # otherwise there is nothing left to be recorded
                        raise
            if recording.error is not None:
                failed += 1
                self._heard.append(record)  # the next loop tries again, and says no more of it
