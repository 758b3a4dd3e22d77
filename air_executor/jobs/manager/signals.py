"""Waking the manager's loop when a signal comes."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def waking(on_signal: Callable[[], None] | None) -> Iterator[socket.socket]:
    """Yield a socket that becomes readable when a signal comes.

    :param on_signal: called for SIGTERM and SIGINT, in the main thread; ``None``: signals do what they did before.
    """
    receiver, sender = socket.socketpair()
    with receiver, sender:
        receiver.setblocking(False)
        sender.setblocking(False)
        if on_signal is None:
            yield receiver
            return
        handle = on_signal
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: handle()) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield receiver
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
