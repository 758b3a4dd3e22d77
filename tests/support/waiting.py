"""Waiting for a condition, with a deadline: tests never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: A longer time between two looks is one in which the whole machine stood still: no more of it counts, in seconds.
_LONGEST_PAUSE_S = 30.0


def wait_for(
    condition: Callable[[], T],
    what: str,
    timeout_s: float = 300.0,
    every_s: float = 0.05,
    seen: Callable[[], object] | None = None,
) -> T:
    """Return the first true value of ``condition``; fail after ``timeout_s`` seconds, saying ``what`` did not come.

    The failure tells what ``seen`` returns then, by default the condition's last value.

    :param every_s: the first pauses; later ones grow with the wait, and with what the condition costs.
    """
    waited_s, seen_s = 0.0, time.monotonic()
    while True:
        asked = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        waited_s += min(now - seen_s, _LONGEST_PAUSE_S)
        seen_s = now
        if waited_s > timeout_s:
            try:
                last = value if seen is None else seen()
            except Exception as error:
                last = error
            raise AssertionError(f"after {timeout_s:.0f} s still waiting for {what}; last seen: {last!r}")
        time.sleep(min(max(every_s, waited_s / 20, 4 * (now - asked)), 1.0))
