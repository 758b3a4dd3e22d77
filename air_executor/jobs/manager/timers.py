"""When something is due for a job even if nothing happens."""

from __future__ import annotations

import heapq
from collections.abc import Iterator


class Timers:
    """One timer for each job, on the monotonic clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        #: The timer of each job. All other entries of the heap are stale.
        self._of: dict[str, float] = {}

    def set(self, name: str, at_s: float) -> None:
        """Set the timer of a job, unless it has an earlier one."""
        known = self._of.get(name)
        if known is None or at_s < known:
            self._of[name] = at_s
            heapq.heappush(self._heap, (at_s, name))

    def remove(self, name: str) -> None:
        """Remove the timer of a job, if it has one."""
        self._of.pop(name, None)

    def due_s(self) -> float:
        """Return when the next timer is due; infinity if there is none."""
        while self._heap and self._of.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else float("inf")

    def take_due(self, now_s: float) -> Iterator[str]:
        """Yield the jobs whose timers are due, and remove these."""
        while self.due_s() <= now_s:
            _, name = heapq.heappop(self._heap)
            del self._of[name]
            yield name
