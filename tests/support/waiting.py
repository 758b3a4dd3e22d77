"""Waiting for a condition, with a deadline: tests never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T],
    what: str,
    timeout_s: float = 300.0,
    every_s: float = 0.05,
    seen: Callable[[], object] | None = None,
) -> T:
    """Return the first true value of ``condition``; fail after ``timeout_s`` seconds, saying ``what`` did not come.

    The failure tells what ``seen`` returns then, by default the condition's last value.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            try:
                last = value if seen is None else seen()
            except Exception as error:
                last = error
            raise AssertionError(f"after {timeout_s:.0f} s still waiting for {what}; last seen: {last!r}")
        time.sleep(every_s)
