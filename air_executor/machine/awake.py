"""Time that passes while this process runs. Time in which the machine slept or was paused does not count."""

from __future__ import annotations

import time
from collections import deque

#: A process that runs looks at the clock at least this often, in seconds.
_LONGEST_S = 15.0

#: This much of each pause counts as passed, in seconds: the usual time between two looks.
_NORMAL_S = 5.0

#: How many pauses are remembered.
_MAX_PAUSES = 100


class AwakeClock:
    """Tells for how long this process has been running, since a moment on the monotonic clock.

    Its users look at it every few seconds. Two looks that are much further apart mean that this process, or the
    machine, stood still; what it waits for probably did, too. The kernel does not tell: its monotonic clock stops while
    a machine is suspended, but not while processes are.
    """

    def __init__(self, longest_s: float | None = None) -> None:
        """Begin to look.

        :param longest_s: a longer time between two looks was a pause, in seconds; for users that look more often.
        """
        self._longest_s = _LONGEST_S if longest_s is None else longest_s
        self._looked_s = time.monotonic()
        #: When each pause ended, and how long it was, in seconds.
        self._pauses: deque[tuple[float, float]] = deque(maxlen=_MAX_PAUSES)

    def look(self) -> float:
        """Note that this process runs, and return the monotonic time."""
        now_s = time.monotonic()
        if now_s - self._looked_s > self._longest_s:
            self._pauses.append((now_s, now_s - self._looked_s - _NORMAL_S))
        self._looked_s = now_s
        return now_s

    def since_s(self, moment_s: float) -> float:
        """Return how many seconds have passed since a moment on the monotonic clock, without pauses."""
        now_s = self.look()
        return (
            now_s
            - moment_s
            - sum(min(length_s, end_s - moment_s) for end_s, length_s in self._pauses if end_s > moment_s)
        )
