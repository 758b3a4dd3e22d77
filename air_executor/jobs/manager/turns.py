"""Which job may start the next task: the highest priority first, and jobs of the same priority in turn."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import NamedTuple

from air_executor.jobs.schedule import ActiveJob


class _Entry(NamedTuple):
    """A job in the queue; the least entry is first."""

    minus_priority: int
    number: int
    """In the order in which the jobs were opened."""
    serial: int
    """Differs between all entries, so that jobs are never compared."""
    job: ActiveJob


class Turns:
    """The queue of jobs that could start a task. The cost of a call depends on what has changed, not on all jobs."""

    def __init__(self) -> None:
        self._counter = itertools.count()
        #: The numbers of the jobs, by their names.
        self._numbers: dict[str, int] = {}
        #: The entry of each queued job. All other entries of the heap are stale.
        self._entries: dict[str, _Entry] = {}
        self._heap: list[_Entry] = []
        #: Jobs of the present priority that have had their turn in this round.
        self._had_turn: deque[_Entry] = deque()

    def update(self, job: ActiveJob) -> None:
        """Note that a job has changed, and may be able to start a task now."""
        number = self._numbers.setdefault(job.name, next(self._counter))
        entry = self._entries.get(job.name)
        minus_priority = -job.files.job.priority
        is_queued = entry is not None and entry.job is job and entry.minus_priority == minus_priority
        if job.is_willing and not is_queued:
            entry = self._entries[job.name] = _Entry(minus_priority, number, next(self._counter), job)
            heapq.heappush(self._heap, entry)

    def remove(self, name: str) -> None:
        """Forget a job."""
        self._entries.pop(name, None)
        self._numbers.pop(name, None)

    def __bool__(self) -> bool:
        """Tell whether a job could start a task. Valid only between two rounds."""
        self._drop_unwilling()
        return bool(self._heap)

    def next(self) -> ActiveJob | None:
        """Return the job that may start one task now; ``None`` if no job could.

        Of the jobs with the highest priority, each has one turn before any has its second one in this round.
        """
        self._drop_unwilling()
        had_turn = self._had_turn
        if self._heap and (not had_turn or self._heap[0].minus_priority <= had_turn[0].minus_priority):
            entry = heapq.heappop(self._heap)
        elif had_turn:
            entry = had_turn.popleft()
        else:
            return None
        had_turn.append(entry)
        return entry.job

    def end_round(self) -> None:
        """Begin a new round: the jobs that were opened first are first again."""
        for entry in self._had_turn:
            heapq.heappush(self._heap, entry)
        self._had_turn.clear()

    def _drop_unwilling(self) -> None:
        while self._heap and not self._is_willing(self._heap[0]):
            heapq.heappop(self._heap)
        while self._had_turn and not self._is_willing(self._had_turn[0]):
            self._had_turn.popleft()

    def _is_willing(self, entry: _Entry) -> bool:
        if self._entries.get(entry.job.name) is not entry:
            return False
        if entry.job.is_willing:
            return True
        del self._entries[entry.job.name]
        return False
