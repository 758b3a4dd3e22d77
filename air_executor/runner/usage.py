"""What a task and all that it has started use together, measured while it runs, for the limits on it.

**Memory is counted once.** The plain sum over the processes is cheap. It counts memory that forks share, with each
other or with the launcher, for each of them, so it is never too low. While it is below the limit, nothing else is read.
Above it, the kernel's exact account decides: it divides every page by the number of processes that have it
(:mod:`air_executor.machine.rollup`). The shares in the launcher's pages are subtracted.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence

from air_executor.machine import family, rollup
from air_executor.machine.family import Family, Member
from air_executor.machine.rollup import Rollup
from air_executor.runs.limits import Limits

#: How often a task with a limit is measured, in seconds; less often when that takes long.
_MEASURE_S = 0.2

#: How often the exact account is read only to keep the recorded peak right, in seconds.
_REFINE_S = 1.0

#: A fork that has not shown its account after this many seconds never will. On a busy machine it may begin that late.
_SHY_S = 10.0

#: Measuring takes at most one part in this many of a CPU's time.
_SHARE = 10


class Usage:
    """Measures the descendants of this process."""

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.memory
        self._is_wanted = limits.are_measured
        self._family = Family()
        self._views = rollup.Views() if limits.memory is not None else None
        self._inherited_bytes = 0
        self._ended_before_s = 0.0
        self._next_s = self._next_refined_s = 0.0
        self.peak_bytes = 0
        """The most memory that was held at a time."""
        self.cpu_time_s = 0.0
        """Including that of descendants that have ended."""

    def begin(self) -> None:
        """In the runner, when the task process has begun: note what is not the task's."""
        if self._is_wanted:
            self._inherited_bytes = family.memory_bytes(os.getpid())
            self._ended_before_s = _ended_s()

    def grant_view(self) -> None:
        """In the task process, first: let the runner see how much memory it holds."""
        if self._views is not None:
            self._views.grant()

    def due_s(self) -> float | None:
        """Return when to measure again, on the monotonic clock; ``None`` when nothing is to be measured."""
        return self._next_s if self._is_wanted else None

    def measure(self) -> bool:
        """Measure if it is time to; tell whether it was."""
        begin_s = time.thread_time()
        if not self._is_wanted or time.monotonic() < self._next_s:
            return False
        members = self._family.look(memory=self._limit is not None)
        # A process that has just ended is in its parent's sum already, or is missing until the next measurement.
        used_s = sum(member.cpu_time_s for member in members) + _ended_s() - self._ended_before_s
        self.cpu_time_s = max(self.cpu_time_s, used_s)
        if self._limit is not None:
            self._measure_memory(members, self._limit)
        self._next_s = time.monotonic() + max(_MEASURE_S, _SHARE * (time.thread_time() - begin_s))
        return True

    def _measure_memory(self, members: Sequence[Member], limit: int) -> None:
        if self._views is not None:
            self._views.receive()
            self._views.keep_only(member.pid for member in members)
        held = sum(map(self._beyond_inherited, members))
        is_near = sum(member.memory_bytes for member in members) > limit
        if is_near or (len(members) > 1 and held > self.peak_bytes):
            if not is_near and time.monotonic() < self._next_refined_s:
                return
            held = self._exact_bytes(members)
            self._next_refined_s = time.monotonic() + _REFINE_S
        self.peak_bytes = max(self.peak_bytes, held)

    def _beyond_inherited(self, member: Member) -> int:
        return max(0, member.memory_bytes - (self._inherited_bytes if member.is_fork else 0))

    def _exact_bytes(self, members: Sequence[Member]) -> int:
        """Return what the processes hold together.

        For a process without an account (another user's, or forked just now or not by Python), the plain sum counts. If
        it is a fork, only what it has added counts: its parent's count has the rest. The parent counts undivided once
        it is clear that the fork will never show its account.
        """
        accounts = {member.pid: self._views.look(member.pid) if self._views is not None else None for member in members}
        shy_s = time.monotonic() - _SHY_S
        undivided = {m.parent for m in members if accounts[m.pid] is None and m.is_fork and m.first_s < shy_s}
        total = launchers = 0
        for member in members:
            account = accounts[member.pid]
            if member.pid in undivided:
                total += self._beyond_inherited(member)
            elif account is not None:
                total += account.proportional
                if member.is_fork:
                    launchers += min(self._inherited_bytes, account.anonymous - account.anonymous_private)
            elif member.is_fork and member.parent != os.getpid():
                total += max(0, member.memory_bytes - member.first_bytes)
            else:
                total += self._beyond_inherited(member)
        # The runner's own pages show what share of a page of the launcher counts for one process.
        return max(0, total - round(launchers * _share(rollup.own())))


def _share(account: Rollup | None) -> float:
    """Return how much of a shared anonymous page counts for the process on average, from 0 to 1."""
    if account is None or account.anonymous <= account.anonymous_private:
        return 0.0
    shared = account.anonymous - account.anonymous_private
    return min(1.0, (account.anonymous_proportional - account.anonymous_private) / shared)


def _ended_s() -> float:
    """Return the CPU time of this process's children that have ended, including that of their children."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime
