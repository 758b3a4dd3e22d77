"""What a task and all that it has started use together, measured while it runs: for its limits, and for people.

**Memory is counted once.** The plain sum over the processes is cheap. It counts memory that forks share, with each
other or with the launcher, for each of them, so it is never too low. While it is below the limit, nothing else is read.
Above it, the kernel's exact account decides: it divides every page by the number of processes that have it
(:mod:`air_executor.machine.rollup`). The shares in the launcher's pages are subtracted. Without a limit the task is
looked at now and then (:mod:`.history`), and of several processes the exact account is always read.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence

from air_executor.machine import family, rollup
from air_executor.machine.family import Family, Member
from air_executor.machine.gpu_memory import GpuMemory
from air_executor.machine.rollup import Rollup, Views
from air_executor.runner.history import History
from air_executor.runs.limits import Limits

#: How often a task with a limit is measured, in seconds; less often when that takes long.
_MEASURE_S = 0.2

#: How often the exact account is read only to keep the recorded peak right, in seconds.
_REFINE_S = 1.0

#: A fork that has not shown its account after this many seconds never will. On a busy machine it may begin that late.
_SHY_S = 10.0

#: For people, exact accounts are read for so long at a time, in seconds: those of large processes take long.
_LOOK_S = 0.1

#: Measuring takes at most one part in this many of a CPU's time.
_SHARE = 10


class Usage:
    """Measures the descendants of this process."""

    def __init__(self, limits: Limits, path: str | None = None) -> None:
        """Measure nothing yet.

        :param path: where to write what is used over time; ``None``: only for the limits is anything measured.
        """
        self._limit = limits.memory
        #: Whether memory is measured as often as for a limit: it has one, or is to be learned for one.
        self._watches_memory = limits.memory is not None or limits.memory_rule is not None
        self._is_wanted = limits.are_measured
        self._path = path
        self._history: History | None = None
        self._family = Family()
        self._views = rollup.make_views() if self._watches_memory else None
        self._gpus = GpuMemory(())
        self._is_over = False
        self._inherited_bytes = 0
        self._ended_before_s = 0.0
        self._next_s = self._next_refined_s = 0.0
        self.peak_bytes = 0
        """The most memory that was held at a time."""
        self.cpu_time_s = 0.0
        """Including that of descendants that have ended."""

    def expect_fork(self, views: Views | None = None, inherited_bytes: int = 0) -> None:
        """In the runner, before the task process is forked: prepare :meth:`grant_view`.

        :param views: by which a task process that was forked before lets itself be seen.
        :param inherited_bytes: what the runner held when it forked that.
        """
        self._inherited_bytes = inherited_bytes
        if self._views is None or views is not None:
            self._views = views or rollup.make_views()

    def grant_view(self) -> None:
        """In the task process, first: let the runner see how much memory it holds."""
        if self._views is not None:
            self._views.grant(waits=self._watches_memory)

    def begin(self, gpus: Sequence[str] = ()) -> None:
        """In the runner, when the task process has begun: note what is not the task's.

        :param gpus: those that the task has, see :class:`.GpuMemory`.
        """
        self._history = History(self._path) if self._path is not None else None
        self._gpus = GpuMemory(gpus)
        self._ended_before_s = _ended_s()
        self._inherited_bytes = self._inherited_bytes or family.memory_bytes(os.getpid())

    def due_s(self) -> float | None:
        """Return when to measure again, on the monotonic clock; ``None`` when it can wait until something happens."""
        sample_s = self._history.due_s() if self._history is not None else None
        if not self._is_wanted:
            return sample_s
        return self._next_s if sample_s is None else min(self._next_s, sample_s)

    def measure(self) -> bool:
        """Measure if it is time to; tell whether it was."""
        begin_s = time.thread_time()
        is_sample = self._history is not None and self._history.is_due()
        if not is_sample and (not self._is_wanted or time.monotonic() < self._next_s):
            if self._views is not None:
                self._views.receive()  # forks may be many
            return False
        # A task without limits: a sample that would equal the last one is skipped.
        may_rest = not (self._is_wanted or self._watches_memory or self._gpus.are_there)
        if may_rest and self._history is not None and self._history.is_begun and self._family.has_rested():
            self._history.repeat(cost_s=time.thread_time() - begin_s)
            return True
        members = self._family.look(memory=is_sample or self._watches_memory, notes_rest=may_rest)
        # A process that has just ended is in its parent's sum already, or is missing until the next measurement.
        used_s = sum(member.cpu_time_s for member in members) + _ended_s() - self._ended_before_s
        self.cpu_time_s = max(self.cpu_time_s, used_s)
        if self._watches_memory or is_sample:
            self._receive_views(members)
        if self._watches_memory:
            self._measure_memory(members)
        cost_s = time.thread_time() - begin_s
        self._next_s = time.monotonic() + max(_MEASURE_S, _SHARE * cost_s)
        if is_sample and self._history is not None:
            self._take_sample(self._history, members, begin_s)
        return True

    def _take_sample(self, history: History, members: Sequence[Member], begin_s: float) -> None:
        if not any(member.memory_bytes for member in members):
            history.skip()  # it is just ending, and the kernel has taken its memory back; or it can't be seen
            return
        held = sum(map(self._beyond_inherited, members))
        if len(members) > 1 or self._is_near(members):
            held = self._exact_bytes(members, None if self._watches_memory else begin_s + _LOOK_S)
        self.peak_bytes = max(self.peak_bytes, held)
        history.add(
            memory_bytes=held,
            cpu_s=self.cpu_time_s,
            processes=len(members),
            io=family.io_bytes([os.getpid(), *(member.pid for member in members)]),
            gpu_memory_bytes=self._gpus.used_bytes(),
            cost_s=time.thread_time() - begin_s,
        )

    def p95_bytes(self) -> int | None:
        """Return how much memory was held at most for 95 % of the time; ``None``: too short a task to be measured."""
        return self._history.p95_bytes() if self._history is not None else None

    def end(self) -> None:
        """When the task has ended, once: write what is not written yet."""
        if self._history is not None and self._history.is_begun and not self._is_over:
            self._is_over = True
            self._history.end(cpu_s=_ended_s() - self._ended_before_s, io=family.io_bytes([os.getpid()]))

    def close(self) -> None:
        """End, and close what is open."""
        self.end()
        if self._views is not None:
            self._views.close()
            self._views = None

    def _receive_views(self, members: Sequence[Member]) -> None:
        self._views = self._views or rollup.make_views()
        if self._views is not None:
            self._views.receive()
            self._views.keep_only(member.pid for member in members)

    def _is_near(self, members: Sequence[Member]) -> bool:
        return self._limit is not None and sum(member.memory_bytes for member in members) > self._limit

    def _measure_memory(self, members: Sequence[Member]) -> None:
        held = sum(map(self._beyond_inherited, members))
        is_near = self._is_near(members)
        if is_near or (len(members) > 1 and held > self.peak_bytes):
            if not is_near and time.monotonic() < self._next_refined_s:
                return
            held = self._exact_bytes(members)
            self._next_refined_s = time.monotonic() + _REFINE_S
        self.peak_bytes = max(self.peak_bytes, held)

    def _account(self, pid: int, until_s: float | None) -> Rollup | None:
        if self._views is None or (until_s is not None and time.thread_time() > until_s):
            return None
        return self._views.look(pid)

    def _beyond_inherited(self, member: Member) -> int:
        return max(0, member.memory_bytes - (self._inherited_bytes if member.is_fork else 0))

    def _exact_bytes(self, members: Sequence[Member], until_s: float | None = None) -> int:
        """Return what the processes hold together.

        :param until_s: on the clock of this thread's CPU time: what is read later counts as having no account.

        For a process without an account (another user's, or forked just now or not by Python), the plain sum counts. If
        it is a fork, only what it has added counts: its parent's count has the rest. The parent counts undivided once
        it is clear that the fork will never show its account.
        """
        accounts = {m.pid: self._account(m.pid, until_s) for m in members}
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
