"""What a task uses over time, written while it runs: see :mod:`air_executor.runs.usage`.

A task that ends within a second leaves nothing. A longer one is looked at every second first, then less and less often,
down to every ten seconds. Where more processes want to run than there are CPUs, short tasks last longer for that alone:
there the first look, the most expensive one, waits until the third second. A task that has not run since the last look
is not looked at closely, and of the samples in which it rests one in six is written down. The file has at most 240
points: when it is full, each two become one, and from then on a point stands for twice as long.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from air_executor.errors import StateDirError
from air_executor.machine import system
from air_executor.machine.safe_files import append_to_file, replace_file
from air_executor.runs.usage import Point, memory_percentile

#: A sample is taken after a tenth of the time that has passed, but at least and at most after this many seconds.
_LEAST_S, _MOST_S, _PART = 1.0, 10.0, 0.1

#: On a crowded machine the first sample is taken after this many seconds.
_FIRST_S = 3.0

#: Taking samples takes at most one part in this many of a CPU's time.
_SHARE = 100

#: Of this many samples of a task that rests, one is written down.
_REPEATS = 6

#: The file has at most this many points.
MAX_POINTS = 240

#: A process that looks at something anyway does so at least this often; so for later samples none needs to wake up.
_WAKES_S = 5.0


class History:
    """The points of one task."""

    def __init__(self, path: str) -> None:
        """Write nothing yet.

        :param path: of the file. A full disk loses points, and nothing else.
        """
        self._path = path
        self._began_s = time.monotonic()
        self._may_wait = True
        self._last_s = self._began_s
        self._next_s = self._began_s + _LEAST_S
        self._points: list[Point] = []
        self._sample: Point | None = None
        #: Samples that make the next point, and how many a point is made of.
        self._open: Point | None = None
        self._count, self._stride = 0, 1

    @property
    def is_begun(self) -> bool:
        """Whether there is a sample."""
        return bool(self._points) or self._open is not None

    def is_due(self) -> bool:
        """Tell whether it is time for a sample."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        if self._may_wait and now_s < self._began_s + _FIRST_S and system.is_crowded():
            self._next_s = self._began_s + _FIRST_S
            return False
        self._may_wait = False
        return True

    def due_s(self) -> float | None:
        """Return when to wake up for the next sample, on the monotonic clock; ``None``: it can wait for an occasion."""
        return self._next_s if self._next_s - self._last_s < _WAKES_S else None

    def skip(self) -> None:
        """Take note that there was nothing to be seen. The next look is a while later."""
        self._next_s = time.monotonic() + max(_LEAST_S, self._next_s - self._last_s)

    def add(
        self,
        *,
        memory_bytes: int,
        cpu_s: float,
        processes: int,
        io: tuple[int, int] | None = None,
        gpu_memory_bytes: int | None = None,
        cost_s: float = 0.0,
    ) -> None:
        """Take note of a sample.

        :param io: how many bytes were read and written so far.
        :param cost_s: how much CPU time the sample has taken: an expensive one is taken less often.
        """
        now_s = time.monotonic()
        read, written = io or (None, None)
        sample = Point(
            at_s=round(now_s - self._began_s, 2),
            lasts_s=round(now_s - self._last_s, 2),
            memory_bytes=memory_bytes,
            cpu_s=round(cpu_s, 2),
            processes=processes,
            read_bytes=read,
            written_bytes=written,
            gpu_memory_bytes=gpu_memory_bytes,
        )
        self._sample = sample
        self._last_s, self._next_s = now_s, now_s + self._pause_s(now_s, cost_s)
        self._open = sample if self._open is None else self._open.with_next(sample)
        self._count += 1
        if self._count >= self._stride:
            self._finish_point()

    def _pause_s(self, now_s: float, cost_s: float) -> float:
        return max(min(_MOST_S, max(_LEAST_S, _PART * (now_s - self._began_s))), _SHARE * cost_s)

    def repeat(self, *, cost_s: float) -> None:
        """Take note that all is as it was at the last sample. That is written down now and then only."""
        last = self._sample
        assert last is not None, "there was none"
        now_s = time.monotonic()
        pause_s = self._pause_s(now_s, cost_s)
        if now_s < self._last_s + _REPEATS * pause_s:
            self._next_s = now_s + pause_s
            return
        self.add(
            memory_bytes=last.memory_bytes,
            cpu_s=last.cpu_s,
            processes=last.processes,
            io=None if last.read_bytes is None or last.written_bytes is None else (last.read_bytes, last.written_bytes),
            gpu_memory_bytes=last.gpu_memory_bytes,
            cost_s=cost_s,
        )

    def end(self, *, cpu_s: float, io: tuple[int, int] | None) -> None:
        """Write what is not written yet, with what the task has used in all."""
        last = self._open or self._points[-1]
        self.add(memory_bytes=last.memory_bytes, cpu_s=cpu_s, processes=last.processes, io=io)
        if self._open is not None:
            self._finish_point()

    def p95_bytes(self) -> int | None:
        """Return how much memory was held for 95 % of the time at most; ``None``: nothing was measured."""
        points = [*self._points, *([self._open] if self._open is not None else [])]
        return memory_percentile(points, 0.95) if points else None

    def _finish_point(self) -> None:
        if self._open is None:
            return
        self._points.append(self._open)
        self._open, self._count = None, 0
        if len(self._points) <= MAX_POINTS:
            self._append(self._points[-1].to_line())
            return
        self._points = halved(self._points)
        self._stride *= 2
        with contextlib.suppress(StateDirError):
            replace_file(self._path, b"".join(point.to_line() for point in self._points))

    def _append(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            append_to_file(self._path, line)


def halved(points: Sequence[Point]) -> list[Point]:
    """Return points with each two made one."""
    pairs = zip(points[::2], points[1::2], strict=False)
    odd = points[-1:] if len(points) % 2 else []
    return [*(one.with_next(other) for one, other in pairs), *odd]
