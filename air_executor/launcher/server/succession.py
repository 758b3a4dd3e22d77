"""Generations: a launcher that serves prepares nothing. Its successor does, and takes over when it is ready.

Importing, rehearsing and laying out new modules in memory takes seconds, and may hang. So a fresh process does it
beside the launcher that serves, and inherits its listening socket. When the successor is ready, the former launcher
takes no new orders, and ends with its last run. When the successor fails, the former launcher serves on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from air_executor.config import Config
from air_executor.launcher.address import Address, module_command
from air_executor.launcher.exec import BIRTH_ENVIRONMENT

#: Wishes within this many seconds give one successor.
_SETTLE_S = 5.0

#: A launcher that is a successor itself starts the next one this many seconds after it began, at the earliest.
_GAP_S = 60.0

#: A successor that is not ready after this many seconds is killed.
_READY_S = 120.0

#: Backoff after a failed successor, in seconds: it begins with the first value, and doubles up to the second.
_AGAIN_S, _AGAIN_MOST_S = 60.0, 3600.0


class Succession:
    """The successor of a launcher: when it is started, and what becomes of it."""

    def __init__(self, address: Address, config: Config, *, is_successor: bool = False) -> None:
        self._address = address
        self._config = config
        self._earliest_s = time.monotonic() + (_GAP_S if is_successor else 0.0)
        #: When a successor is to be started, on the monotonic clock.
        self._due_s: float | None = None
        self._until_s = 0.0
        self._again_s = _AGAIN_S
        self._failed: str | None = None
        self._ready: socket.socket | None = None
        self.pid = 0
        """The successor's process; 0 when there is none."""
        self.is_over = False
        """The successor serves."""

    def wish(self, *, now: bool = False) -> None:
        """Ask for a successor: there is something new for it to prepare."""
        now_s = time.monotonic()
        self._due_s = now_s if now else max(now_s + _SETTLE_S, self._earliest_s)

    @property
    def is_under_way(self) -> bool:
        """Whether a successor prepares itself."""
        return self._ready is not None

    def due_in_s(self) -> float | None:
        """Return in how many seconds :meth:`look` has something to do; ``None``: nothing is due."""
        moment_s = self._until_s if self.is_under_way else self._due_s
        return None if moment_s is None or self.is_over else max(0.0, moment_s - time.monotonic())

    def look(self, listener: socket.socket, watch: Callable[[socket.socket], None]) -> None:
        """Start the successor when it is due, and kill it when it takes too long.

        :param watch: takes the successor's socket; :meth:`hear` is to be called when that is readable.
        """
        now_s = time.monotonic()
        if self.is_under_way:
            if now_s >= self._until_s and self.pid:
                self._failed = f"it was not ready after {_READY_S:g} s"
                os.kill(self.pid, signal.SIGKILL)  # the socket then tells its end
                self._until_s = now_s + _READY_S
        elif self._due_s is not None and now_s >= self._due_s and not self.is_over:
            self._due_s = None
            try:
                self._start(listener)
            except OSError as error:
                self._fail(f"it cannot be started: {error}")
            else:
                assert self._ready is not None
                watch(self._ready)

    def _start(self, listener: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        passed = (listener.fileno(), theirs.fileno())
        try:
            for fd in passed:
                os.set_inheritable(fd, True)
            command = module_command("air_executor.launcher")
            self.pid = os.posix_spawn(
                sys.executable,
                [*command, str(passed[0]), self._address.key, self._config.to_json(), str(passed[1])],
                BIRTH_ENVIRONMENT,
                setsigdef=[signal.SIGINT, signal.SIGPIPE],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            for fd in passed:
                os.set_inheritable(fd, False)
            theirs.close()
        self._ready, self._until_s, self._failed = ours, time.monotonic() + _READY_S, None
        print(f"process {self.pid} prepares itself to be the next launcher", flush=True)

    def hear(self) -> bool:
        """Tell whether the successor is ready. If it died instead, this launcher serves on."""
        if self._ready is None:
            return False
        with self._ready, contextlib.suppress(OSError):
            self.is_over = bool(self._ready.recv(1))
        self._ready = None
        if self.is_over:
            print(f"process {self.pid} is the launcher now; this one ends with its last run", flush=True)
        else:
            self._fail(self._failed or "it died")
        return self.is_over

    def _fail(self, why: str) -> None:
        self._failed = f"a successor was given up ({why}); the next is tried after {self._again_s:g} s"
        print(f"{self._failed}; this launcher serves on", flush=True)
        self._due_s = time.monotonic() + self._again_s
        self._again_s = min(2 * self._again_s, _AGAIN_MOST_S)

    @property
    def pids(self) -> set[int]:
        """The successor's process, if there is one that is not reaped."""
        return {self.pid} if self.pid else set()

    def reaped(self, pid: int) -> None:
        """Take note that a child has ended."""
        if pid == self.pid:
            self.pid = 0

    def status(self) -> dict[str, Any]:
        """Return what the launcher's status says of its successor."""
        if self.is_over:
            return {"superseded": True}
        return {"successor": self.pid} if self.is_under_way else {}

    def trouble(self) -> str | None:
        """Return what went wrong, for a person."""
        return self._failed


def let_go_of_address(address: Address) -> Address:
    """Return where a launcher listens once its successor has ``address``, for whoever follows its last runs."""
    return Address(f"{address.key}-{os.getpid()}", address.folder)
