"""What a run used, over time: the points of ``usage.jsonl`` in its folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from air_executor import jsontext
from air_executor.machine.safe_files import open_plain
from air_executor.runs.files import RunFiles

NAME = "usage.jsonl"

#: Two lines of the file are never longer.
_TAIL_BYTES = 2048

#: A longer file is not the runner's.
_MAX_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class Point:
    """What all processes of a task used in a stretch of time. What is not known is ``None``."""

    at_s: float
    """Its end, in seconds since the task process began."""
    lasts_s: float
    memory_bytes: int
    """The most that they held together, each page counted once."""
    cpu_s: float
    """The CPU time that they have used since the beginning, in seconds."""
    processes: int
    """The most that there were."""
    read_bytes: int | None = None
    written_bytes: int | None = None
    """How much they have read from disks, and written, since the beginning."""
    gpu_memory_bytes: int | None = None
    """How much of the task's GPUs was in use at most."""

    def with_next(self, later: Point) -> Point:
        """Return one point for this stretch and the next."""
        return Point(
            at_s=later.at_s,
            lasts_s=round(self.lasts_s + later.lasts_s, 2),
            memory_bytes=max(self.memory_bytes, later.memory_bytes),
            cpu_s=max(self.cpu_s, later.cpu_s),
            processes=max(self.processes, later.processes),
            read_bytes=_most(self.read_bytes, later.read_bytes),
            written_bytes=_most(self.written_bytes, later.written_bytes),
            gpu_memory_bytes=_most(self.gpu_memory_bytes, later.gpu_memory_bytes),
        )

    def to_line(self) -> bytes:
        """Return it as a line of the file, without what is not known."""
        return jsontext.dumps({name: value for name, value in vars(self).items() if value is not None}) + b"\n"


def _most(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def read(files: RunFiles, run_id: str) -> list[Point]:
    """Return the points of a run, the earliest first. Lines that can't be understood are left out.

    :raises RecordError: the file is no plain file, or too large.
    :raises StateDirError: it can't be read.
    """
    data = files.read_document(os.path.join(files.path(run_id), NAME))
    return [point for line in (data or b"").splitlines()[:_MAX_POINTS] if (point := _parsed(line)) is not None]


def last_point(folder: str) -> Point | None:
    """Return the last point of the run with that folder; ``None`` if there is none, or it can't be understood."""
    try:
        with open_plain(os.path.join(folder, NAME)) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).splitlines()
    except OSError:
        return None
    return next((point for line in reversed(lines[-2:]) if (point := _parsed(line)) is not None), None)


_TYPES = {each.name: (int,) if each.type.startswith("int") else (int, float) for each in fields(Point)}


def _parsed(line: bytes) -> Point | None:
    try:
        found: dict[str, Any] = jsontext.loads(line)
        known = {name: found[name] for name in _TYPES.keys() & found.keys()}
        if any(isinstance(value, bool) or not isinstance(value, _TYPES[name]) for name, value in known.items()):
            return None
        return Point(**known)
    except (ValueError, TypeError, AttributeError):
        return None  # the last line may be half written


def percentile(values: Iterable[tuple[float, float]], part: float) -> float:
    """Return the least value that is not exceeded for at least ``part`` (0 to 1) of all weights.

    :param values: pairs of a value and its weight; at least one.
    """
    ordered = sorted(values)
    left = part * sum(weight for _, weight in ordered)
    for value, weight in ordered:
        left -= weight
        if left <= 1e-9:
            return value
    return ordered[-1][0]


def memory_percentile(points: Sequence[Point], part: float) -> int:
    """Return how much memory was held, or less, for a part of the time; of at least one point."""
    return int(percentile(((point.memory_bytes, point.lasts_s) for point in points), part))
