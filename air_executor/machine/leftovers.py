"""The end of what a task leaves behind: nothing of a try that is over may live beside the next one.

A runner adopts all that its task started, and the launcher adopts what its runners leave. So each kills its children,
and theirs as they come, until none is left. When runner and launcher have died together, whoever finds that out looks
for the run's processes in the whole machine: see ``runs/remains.py``.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Collection, Iterable

from air_executor.machine import system
from air_executor.machine.children import children, reaped
from air_executor.machine.marks import is_cleaner, is_kept
from air_executor.machine.processes import Process, kill, look

#: How long to wait for a process that was killed, in seconds. One that is in the kernel for longer (uninterruptible
#: sleep: a network file system, a driver) executes no code of the task any more.
STUCK_S = 10.0

#: How long to wait for a process of another user, which may not be killed, in seconds: its parent may end it.
_FORBIDDEN_S = 2.0

#: A process that is to outlive its task can be recognized only from its ``exec`` on. So during this time after the
#: task's end, in seconds, no process is killed that is younger than that.
_YOUNG_S = 0.5

#: How long a process that cleans up after the others has to do so, in seconds.
CLEANS_UP_S = 2.0

#: How often to look whether a process has ended, where there are no pidfds, in seconds.
_LOOK_S = 0.02


def name_survivors(survivors: Iterable[Process]) -> str:
    """Return a sentence about processes that could not be killed; empty when there are none."""
    said = [
        f"{process} {'is in uninterruptible sleep' if process.state == 'D' else 'may not be killed by this user'}"
        for process in survivors
    ]
    return f"left behind, as it can't be killed: {', '.join(said)}" if said else ""


class Leftovers:
    """The processes that are left below this one when its task has ended."""

    def __init__(self) -> None:
        self.killed: set[int] = set()
        """The ids of the processes that were killed."""
        self.survivors: list[Process] = []
        """The processes that could not be killed, and still live."""
        self._kept: set[int] = set()
        self._given_up: set[int] = set()

    @property
    def are_any(self) -> bool:
        """Whether a process still lives: it was kept, or could not be killed."""
        return bool(self._kept or self._given_up)

    def end(self, patience_s: float = STUCK_S) -> None:
        """Kill every child of this process, and theirs as they are adopted, until none is left that can be killed.

        :param patience_s: how long to wait for one that was killed, in seconds.
        """
        began_s = time.monotonic()
        forbidden: set[int] = set()
        while self._reap():
            left, are_young = [], False
            for pid in children():
                if pid in self._kept or pid in self._given_up:
                    continue
                if pid not in self.killed and is_kept(pid):
                    self._kept.add(pid)
                elif pid not in self.killed and self._has_time(pid, time.monotonic() - began_s):
                    are_young = True
                else:
                    (self.killed if kill(pid) else forbidden).add(pid)
                    left.append(pid)
            until_s = began_s + (patience_s if set(left) - forbidden else min(patience_s, _FORBIDDEN_S))
            if are_young:
                time.sleep(_LOOK_S)
            elif not left or not _wait_for_any(left, until_s - time.monotonic()):
                self._given_up |= set(left)
                break
        self.survivors = [p for p in map(look, self._given_up) if p is not None and not p.is_dead]

    def _has_time(self, pid: int, since_s: float) -> bool:
        """Tell whether a process is not killed yet, this many seconds after the task's end."""
        if since_s < _YOUNG_S and (process := look(pid)) is not None and process.age_s() < _YOUNG_S:
            return True
        return since_s < CLEANS_UP_S and is_cleaner(pid)

    def _reap(self) -> bool:
        """Reap what has ended, and tell whether there are children left."""
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                reaped(pid)
                self._kept.discard(pid)
                self._given_up.discard(pid)
        except ChildProcessError:
            return False
        return True


def _wait_for_any(pids: Collection[int], timeout_s: float) -> bool:
    """Wait until one of these children has ended; ``False``: none has in time."""
    if timeout_s <= 0:
        return False
    fds = [fd for pid in pids if (fd := system.open_pidfd(pid)) is not None]
    try:
        if len(fds) < len(pids):
            time.sleep(_LOOK_S)
            return True  # one may have: the caller looks
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        for fd in fds:
            os.close(fd)
