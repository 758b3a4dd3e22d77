"""Runners as fresh Python processes: where a bare fork is not safe, and for tasks with an environment of their own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from air_executor.config import Config
from air_executor.launcher.address import module_command
from air_executor.launcher.order import Order
from air_executor.runs.store import RunStore

#: Turns an order into a runner process and returns its pid.
Spawn = Callable[[Order], int]

#: The environment that this process was born with, whatever has been imported since.
BIRTH_ENVIRONMENT = dict(os.environb)


def spawn_by_exec(store: RunStore, config: Config) -> Spawn:
    """Return a function that starts ``python -m air_executor.runner`` for an order.

    The request holds a token, so it goes through memory that has no name, not the command line.
    """

    def spawn(order: Order) -> int:
        output = store.output_file(order.id)
        receiver = _readable(order.request_json())
        try:
            return os.posix_spawn(
                sys.executable,
                [*module_command("air_executor.runner"), config.to_json()],
                {**BIRTH_ENVIRONMENT, **order.environment},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, receiver, 0),
                    (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsigdef=[signal.SIGINT, signal.SIGPIPE],  # what is ignored stays ignored through an exec
            )
        finally:
            os.close(receiver)

    return spawn


def _readable(data: bytes) -> int:
    """Return a descriptor from which another process can read ``data``, of any length. Does not wait for it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("request")
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd
    receiver, sender = os.pipe()

    def write() -> None:
        try:
            with open(sender, "wb") as pipe:
                pipe.write(data)
        except BrokenPipeError:
            pass  # the runner died before it had read

    threading.Thread(target=write, daemon=True).start()
    return receiver
