"""How much a workflow gives Temporal at once. Part of a workflow's code."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import timedelta
from typing import Any

from temporalio import workflow

#: One workflow task orders about this many bytes. All that one asks for is one call, which has at most 4 MB, and the
#: history takes no more at a time. Ends, and what is passed on to a successor, need room there, too.
_PORTION = 1_000_000

#: An activity has about this many bytes more than what it is given.
_ACTIVITY = 500

#: Looking for runs shall not give a history more events, or bytes. From 51,200 or 50 MB on, Temporal ends its workflow.
_MOST_EVENTS, _MOST_BYTES = 40_000, 40 << 20

#: Two more looks for a run that no host answers for add about so many.
_EVENTS_OF_LOOKS, _BYTES_OF_LOOKS = 16, 6_000

#: Pauses between two looks double with each 25th part of that beyond the twelfth: ordinary histories are shorter.
_PARTS, _FAST_PARTS, _MOST_DOUBLINGS = 25, 12, 20

_MOMENT = timedelta(milliseconds=1)


def size(value: Any) -> int:
    """Return how many bytes Temporal's client makes of a value: JSON in ASCII, so six for a character beyond that."""
    return len(json.dumps(value, separators=(",", ":")))


def first_of(values: list[Any], most: int) -> list[Any]:
    """Return as many of these values, from the first on, as have this many bytes together; at least one."""
    sums = itertools.accumulate(map(size, values))
    return values[: max(1, sum(1 for _ in itertools.takewhile(lambda total: total <= most, sums)))]


def slowness(events: int, size: int, missing: int) -> int:
    """Return how many times as long as else to wait between two looks for runs: the history must not get too long.

    :param events: how many it has.
    :param size: how many bytes it has.
    :param missing: how many runs are looked for.
    """
    used = max(
        (events + _EVENTS_OF_LOOKS * missing) / _MOST_EVENTS,
        (size + _BYTES_OF_LOOKS * missing) / _MOST_BYTES,
    )
    return 1 << min(max(0, int(_PARTS * used) - _FAST_PARTS), _MOST_DOUBLINGS)


class Portions:
    """Divides what a workflow orders among its workflow tasks."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._task = self._used = 0

    async def wait(self, size: int) -> None:
        """Return when the present workflow task has room for an activity that is given this many bytes.

        One that is given more than fits has a workflow task of its own.
        """
        size += _ACTIVITY
        async with self._lock:
            if self._used_here() and self._used + size > _PORTION:
                await workflow.sleep(_MOMENT)  # a timer begins another one
            self._used = self._used_here() + size

    def _used_here(self) -> int:
        if (task := workflow.info().get_current_history_length()) != self._task:
            self._task, self._used = task, 0
        return self._used
