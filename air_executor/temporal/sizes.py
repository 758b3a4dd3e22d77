"""How much a workflow gives Temporal at once. Part of a workflow's code."""

from __future__ import annotations

import itertools
import json
from typing import Any


def size(value: Any) -> int:
    """Return how many bytes Temporal's client makes of a value: JSON in ASCII, so six for a character beyond that."""
    return len(json.dumps(value, separators=(",", ":")))


def first_of(values: list[Any], most: int) -> list[Any]:
    """Return as many of these values, from the first on, as have this many bytes together; at least one."""
    sums = itertools.accumulate(map(size, values))
    return values[: max(1, sum(1 for _ in itertools.takewhile(lambda total: total <= most, sums)))]
