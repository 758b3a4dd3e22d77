"""Which runs there are: a short note of each record, so that no page reads all records each time.

The notes are of one process. A record is read again when its run's folder has changed; folders are looked at every two
seconds, at most, while somebody asks.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from air_executor.errors import AirExecutorError
from air_executor.observe.everywhere import AllRuns
from air_executor.runs.record import Identity

#: How long what was found is good for, in seconds.
_FRESH_S = 2.0


@dataclass(frozen=True)
class Note:
    """What is remembered of one record."""

    changed_s: float
    identity: Identity
    is_over: bool


class RunIndex:
    """The notes on all runs of one state directory. Threads may share it."""

    def __init__(self) -> None:
        self._notes: dict[str, Note] = {}
        self._looked_s = float("-inf")
        self._lock = threading.Lock()

    def newest(self, runs: AllRuns) -> Iterator[tuple[str, Note]]:
        """Yield the ids of all runs with their notes, those that changed last first."""
        notes = self._look(runs)
        for _, run_id in heapq.nlargest(len(notes), ((note.changed_s, run_id) for run_id, note in notes.items())):
            yield run_id, notes[run_id]

    def of_instance(self, runs: AllRuns, dag_id: str, dag_run_id: str, task_id: str, map_index: int) -> list[str]:
        """Return the ids of the runs of a task instance, in no order."""
        wanted = (dag_id, dag_run_id, task_id, map_index)
        return [
            run_id
            for run_id, note in self._look(runs).items()
            if (note.identity.dag_id, note.identity.dag_run_id, note.identity.task_id, note.identity.map_index)
            == wanted
        ]

    def _look(self, runs: AllRuns) -> dict[str, Note]:
        with self._lock:
            if time.monotonic() - self._looked_s >= _FRESH_S:
                known, self._notes = self._notes, {}
                for changed_s, run_id in runs.changed():
                    note = known.get(run_id)
                    if note is None or note.changed_s != changed_s:
                        note = _noted(runs, run_id, changed_s)
                    if note is not None:
                        self._notes[run_id] = note
                self._looked_s = time.monotonic()
            return self._notes


def _noted(runs: AllRuns, run_id: str, changed_s: float) -> Note | None:
    try:
        record = runs.store_of(run_id).read(run_id)
    except AirExecutorError:
        return None
    return Note(changed_s, record.identity, record.state.is_end)


_indices: dict[Path, RunIndex] = {}


def index_of(runs: AllRuns) -> RunIndex:
    """Return this process's index of a state directory."""
    return _indices.setdefault(runs.here.root, RunIndex())
