"""The descendants of this process, and what the kernel says each of them uses.

The cost grows with the descendants, not with the other processes of the machine: the tree is walked down through
``/proc/PID/task/TID/children``. Where that is missing (Linux without ``CONFIG_PROC_CHILDREN``, other systems), psutil
finds them, at a cost that grows with all processes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

#: Set in a process's flags until it executes a program: it was forked, and still has its parent's memory.
#: From ``<linux/sched.h>``.
_PF_FORKNOEXEC = 0x40

#: More than any of the small files that are read contains.
_FILE_BYTES = 1 << 16


@dataclass(frozen=True)
class Member:
    """A process of a run, as it was at one moment."""

    pid: int
    parent: int
    is_fork: bool
    """Whether it descends from the runner by forks alone: then it began with the runner's memory."""
    memory_bytes: int
    """Its anonymous and shared-memory pages, in memory or swapped out, also those that it shares. Pages of files do not
    count, as the kernel can drop them."""
    first_bytes: int
    """What it held when it was first seen. For a fork, that is about what it has from its parent."""
    first_s: float
    """When that was, on the monotonic clock."""
    cpu_time_s: float
    """Including that of its children that were reaped."""


class Family:
    """Looks at all descendants of this process."""

    def __init__(self) -> None:
        #: Members as they were first seen, by pid and start time. Otherwise an orphan, which the runner adopts, would
        #: look like a fork of the runner.
        self._first: dict[tuple[int, int], Member] = {}
        #: The only member, if it has one thread, and how long it had run at the last look, in nanoseconds.
        self._alone: tuple[int, int] | None = None

    def has_rested(self) -> bool:
        """Tell whether there was one member at the last look, which has not run for a moment since.

        Then nothing has changed: it has neither memory that it had not, nor children, nor read or written anything.
        """
        return self._alone is not None and _ran_ns(self._alone[0]) == self._alone[1]

    def look(self, *, memory: bool = True, notes_rest: bool = False) -> list[Member]:
        """Return the descendants of this process, parents before their children.

        :param memory: whether to look at memory at all; otherwise it is 0.
        :param notes_rest: whether :meth:`has_rested` is to be asked later.
        """
        self._alone = None
        if sys.platform != "linux":
            return list(_seen_by_psutil())
        first: dict[tuple[int, int], Member] = {}
        forking = {os.getpid()}
        members: list[Member] = []
        ran_ns = threads = 0
        for pid, parent in _walk():
            if notes_rest and not members:
                ran_ns = _ran_ns(pid)
            stat = _stat(pid)
            if stat is None:
                continue
            threads = int(stat[17])
            identity = pid, int(stat[19])
            known = self._first.get(identity)
            is_fork = bool(int(stat[6]) & _PF_FORKNOEXEC) and (known.is_fork if known else parent in forking)
            held = memory_bytes(pid) if memory or known is None else 0
            cpu_time_s = sum(int(ticks) for ticks in stat[11:15]) / _ticks_per_s()
            first_bytes, first_s = (known.first_bytes, known.first_s) if known else (held, time.monotonic())
            member = Member(pid, parent, is_fork, held, first_bytes, first_s, cpu_time_s)
            first[identity] = known or member
            if is_fork:
                forking.add(pid)
            members.append(member)
        self._first = first
        if ran_ns and len(members) == threads == 1:
            self._alone = members[0].pid, ran_ns
        return members


def memory_bytes(pid: int) -> int:
    """Return what process ``pid`` holds, see :attr:`Member.memory_bytes`; 0 when it has ended.

    It comes from ``/proc/PID/status``: every user may read that, and the kernel keeps these sums anyway.
    """
    total = 0
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith((b"RssAnon:", b"RssShmem:", b"VmSwap:")):
            total += int(line.split()[1]) * 1024
    return total


def io_bytes(pids: Iterable[int]) -> tuple[int, int] | None:
    """Return how many bytes processes, and children of theirs that were reaped, have read from disks and written.

    ``None``: the kernel does not tell of each. It does not show it of private processes to others than root.
    """
    read = written = 0
    for pid in pids:
        values = dict(line.split(b": ", 1) for line in _read(f"/proc/{pid}/io").splitlines() if b": " in line)
        try:
            read, written = read + int(values[b"read_bytes"]), written + int(values[b"write_bytes"])
        except (KeyError, ValueError):
            if os.path.exists(f"/proc/{pid}"):  # otherwise it has ended, and its parent has its part, or will
                return None
    return read, written


def _walk() -> Iterator[tuple[int, int]]:
    """Yield each descendant with its parent, parents first, each once whatever they do meanwhile."""
    if not _knows_children():
        yield from _walk_with_psutil()
        return
    seen = {os.getpid()}
    parents = [os.getpid()]
    for parent in parents:
        for pid in _children(parent):
            if pid not in seen:
                seen.add(pid)
                yield pid, parent
                parents.append(pid)


def _walk_with_psutil() -> Iterator[tuple[int, int]]:
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                yield process.pid, process.ppid()


def _children(pid: int) -> list[int]:
    """Return the children of all threads of process ``pid``."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []  # it has ended
    return [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


@functools.cache
def _knows_children() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


@functools.cache
def _ticks_per_s() -> int:
    return os.sysconf("SC_CLK_TCK")


def _ran_ns(pid: int) -> int:
    """Return how long the first thread of process ``pid`` has run, in nanoseconds; 0: the kernel does not say."""
    return int((_read(f"/proc/{pid}/schedstat").split() or [b"0"])[0])


def _stat(pid: int) -> list[bytes] | None:
    """Return the fields of ``/proc/PID/stat`` from the third on: the state, the parent and so on, see proc(5)."""
    data = _read(f"/proc/{pid}/stat")
    # The second field is the program's name, which may contain anything.
    return data[data.rindex(b")") + 2 :].split() if data else None


def _read(path: str) -> bytes:
    """Return what is in a small file of the kernel; nothing when its process has ended, or hides it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(fd, _FILE_BYTES):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _seen_by_psutil() -> Iterator[Member]:
    try:
        family = psutil.Process().children(recursive=True)
    except psutil.Error:
        return
    for process in family:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            held = process.memory_info().rss
            yield Member(process.pid, process.ppid(), False, held, held, time.monotonic(), times.user + times.system)
