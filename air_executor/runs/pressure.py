"""Whether this machine lacks memory now, whoever has taken it."""

from __future__ import annotations

import time

from air_executor.machine import room
from air_executor.machine.sizes import mebibytes

#: It does when less than this part of it would be left, ...
_LEAST_PART = 0.03

#: ... when processes wait for memory for this part of the time, ...
_MOST_STALL = 0.2

#: ... or for this many seconds after the kernel has killed a process for it.
_AFTER_KILL_S = 10.0


class Machine:
    """Whether this machine has memory for another run, whatever the claims say."""

    def __init__(self) -> None:
        self._kills = room.oom_kills()
        self._killed_s = float("-inf")
        self._stall: float | None = None
        self._available = self._least = 0

    def look(self) -> None:
        """Look how it is now."""
        kills = room.oom_kills()
        if kills is not None and self._kills is not None and kills > self._kills:
            self._killed_s = time.monotonic()
        self._kills = kills
        self._stall = room.memory_stall()
        self._available, self._least = room.available_bytes(), int(room.memory_bytes() * _LEAST_PART)

    def objection(self, needed: int, growth: int) -> str | None:
        """Return why there is no room.

        :param needed: what the run needs, in bytes.
        :param growth: how much more the other runs may still take, in bytes.
        """
        if time.monotonic() - self._killed_s < _AFTER_KILL_S:
            return "the kernel has just killed a process for lack of memory"
        if self._stall is not None and self._stall > _MOST_STALL:
            return f"the machine lacks memory: processes wait for it {self._stall:.0%} of the time"
        free = self._available - growth - self._least
        if free < needed or free < 0:
            return f"it needs {mebibytes(needed)} of memory; the machine has {mebibytes(max(0, free))} to spare"
        return None
