"""Background work: each chore has a process of its own and a deadline, so the launcher never waits for one."""

from __future__ import annotations

import math
import os
import signal
import time
import traceback
from collections.abc import Callable

from air_executor.errors import AirExecutorError
from air_executor.machine import system

#: A chore that takes longer than this many seconds is killed.
CHORE_S = 240.0


class Chores:
    """The processes that do chores."""

    def __init__(self, let_go: Callable[[], None]) -> None:
        """Begin without chores.

        :param let_go: closes in a forked child what belongs to the launcher.
        """
        self._let_go = let_go
        #: Their deadlines, on the monotonic clock, by process id.
        self._until_s: dict[int, float] = {}

    @property
    def pids(self) -> set[int]:
        """The processes that are not reaped yet."""
        return set(self._until_s)

    def begin(self, name: str, work: Callable[[], None]) -> int:
        """Do ``work`` in a process of its own, and return its process id.

        :param name: of the work, for what is printed when it fails.
        :raises OSError: the machine has no room for another process.
        """
        pid = os.fork()
        if pid:
            self._until_s[pid] = time.monotonic() + CHORE_S
            return pid
        code = 1
        try:
            self._let_go()
            signal.alarm(int(CHORE_S))  # the deadline holds even if the launcher dies
            work()
            code = 0
        except AirExecutorError as error:
            print(f"{name} failed: {error}", flush=True)
        except BaseException:
            print(f"{name} failed:", flush=True)
            traceback.print_exc()
        finally:
            system.exit_fork(code)

    def reaped(self, pid: int) -> None:
        """Take note that a child has ended."""
        self._until_s.pop(pid, None)

    def end_overdue(self) -> None:
        """Kill chores that are past their deadlines."""
        for pid, until_s in self._until_s.items():  # not reaped yet: no other process can have the id
            if time.monotonic() > until_s:
                print(f"process {pid} has taken more than {CHORE_S:g} s for its chore, and is killed", flush=True)
                os.kill(pid, signal.SIGKILL)
                self._until_s[pid] = math.inf
