"""Signals that wake the launcher's loop: Python writes each to a socket, which the loop watches."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections.abc import Callable
from types import FrameType

from air_executor.launcher.server.spares import STOPPING

Handler = Callable[[int, "FrameType | None"], object]


class Wakeups:
    """The launcher's signal handlers, and the socket through which they wake it."""

    def __init__(self, selector: selectors.BaseSelector, *, stop: Handler, renew: Handler) -> None:
        """Install the handlers.

        :param stop: handles SIGTERM.
        :param renew: handles SIGUSR2.
        """
        self._receiver, self._sender = socket.socketpair()
        for end in (self._receiver, self._sender):
            end.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, renew)
        selector.register(self._receiver, selectors.EVENT_READ, self._drain)

    def let_go(self) -> None:
        """In a forked child: put the signals back as they were, and close the socket."""
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGUSR2, *STOPPING):
            signal.signal(signum, signal.SIG_DFL)
        for end in (self._receiver, self._sender):
            end.close()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._receiver.recv(4096)
