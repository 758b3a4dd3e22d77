"""Runners as fresh Python processes: where a bare fork is not safe, and for tasks with an environment of their own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from air_executor import jsontext
from air_executor.config import Config
from air_executor.errors import LimitsError
from air_executor.launcher.address import module_command
from air_executor.runs import limits
from air_executor.runs.backend import RunRequest
from air_executor.runs.store import RunStore

#: Turns a request into a runner process and returns its pid.
Spawn = Callable[[RunRequest], int]

#: The environment that this process was born with, whatever has been imported since.
BIRTH_ENVIRONMENT = dict(os.environb)


def environment_of(request: RunRequest) -> dict[bytes, bytes]:
    """Return the variables that a task sets for itself. Python and libc read some of them when a process begins.

    Those of a job's command are set when it is executed. Those that can't be used are refused by the runner.
    """
    if request.identity.kind == "job" or not isinstance(request.air, dict) or not request.air.get("environment"):
        return {}
    try:
        variables = limits.parse(request.air).environment
    except LimitsError:
        return {}
    return {name.encode(errors="replace"): value.encode(errors="replace") for name, value in variables.items()}


def spawn_by_exec(store: RunStore, config: Config) -> Spawn:
    """Return a function that starts ``python -m air_executor.runner`` for a request.

    The request holds a token, so it goes through memory that has no name, not the command line.
    """

    def spawn(request: RunRequest) -> int:
        receiver = _readable(jsontext.dumps(request.to_message()))
        output = store.output_file(request.id)
        try:
            return os.posix_spawn(
                sys.executable,
                [*module_command("air_executor.runner"), config.to_json()],
                {**BIRTH_ENVIRONMENT, **environment_of(request)},
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
    """Return a descriptor from which another process reads ``data``, however much; nobody waits until it does."""
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
