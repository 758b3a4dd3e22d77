"""Backoff for spares: each further one that dies before its order comes delays the next one more."""

from __future__ import annotations

import time

#: After this many deaths within this many seconds, the launcher gives up for a while.
_DEATHS, _WITHIN_S = 3, 10.0

#: For how long it gives up, in seconds.
_GIVEN_UP_S = 300.0


class Backoff:
    """Counts the deaths of spares."""

    def __init__(self) -> None:
        self._deaths_s: list[float] = []
        self._in_a_row = 0
        self.deaths = 0
        """How many there were, in all."""
        self.has_given_up = False
        """Runners are forked when their orders come, and prepare nothing."""
        self.due_s = 0.0
        """When the next spare may be forked, on the monotonic clock."""

    def failed(self) -> None:
        """Take note that a spare has died before its order came."""
        now_s = time.monotonic()
        self._in_a_row += 1
        self.deaths += 1
        self._deaths_s = [*(each for each in self._deaths_s if now_s - each < _WITHIN_S), now_s]
        self.due_s = now_s + min(2.0 ** (self._in_a_row - 1), _GIVEN_UP_S)
        if len(self._deaths_s) >= _DEATHS or self.has_given_up:
            self.has_given_up, self.due_s = True, now_s + _GIVEN_UP_S
            print(self.trouble(), flush=True)

    def succeeded(self) -> None:
        """Take note that a spare has become a runner."""
        self._deaths_s, self._in_a_row, self.has_given_up = [], 0, False

    def trouble(self) -> str | None:
        """Return what went wrong, for a person."""
        if not self.has_given_up:
            return None
        deaths = f"{self._in_a_row} processes that were forked ahead have died at birth"
        return f"{deaths}: runners are forked when their orders come, and tasks start a little later"
