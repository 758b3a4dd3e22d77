"""Sizes of memory: as people write them, and as they are shown."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"": 1, "b": 1, **{prefix + "b": 1000**n for n, prefix in enumerate("kmgt", 1)}}
_UNITS |= {unit: 1024**n for n, prefix in enumerate("kmgt", 1) for unit in (prefix, prefix + "ib")}


def parse_size(value: Any) -> int:
    """Return a size in bytes, given as a number or as text with a unit.

    :raises ValueError: it is neither, or no size that memory can have.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", str(value).lower())
    if isinstance(value, bool) or match is None or match.group(2) not in _UNITS:
        raise ValueError("it must be a number of bytes, or text such as '512MiB' or '2GB'")
    size = int(float(match.group(1)) * _UNITS[match.group(2)])
    if not 0 < size < 1 << 63:
        raise ValueError("it must be more than 0, and less than 8 EiB")
    return size


def mebibytes(size_bytes: int) -> str:
    """Return a size for people, in MiB."""
    return f"{size_bytes / (1 << 20):.0f} MiB"
