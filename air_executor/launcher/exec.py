"""Runners as fresh Python processes, for platforms where a bare fork is not safe."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import orjson

from air_executor.config import Config
from air_executor.launcher.address import module_command
from air_executor.runs.backend import RunRequest
from air_executor.runs.store import RunStore

#: Turns a request into a runner process and returns its pid.
Spawn = Callable[[RunRequest], int]


def spawn_by_exec(store: RunStore, config: Config) -> Spawn:
    """Return a function that starts ``python -m air_executor.runner`` for a request.

    The request holds a token, so it goes through a pipe, not the command line.
    """

    def spawn(request: RunRequest) -> int:
        receiver, sender = os.pipe()
        output = store.output_file(request.id)
        try:
            pid = os.posix_spawn(
                sys.executable,
                [*module_command("air_executor.runner"), config.to_json()],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, receiver, 0),
                    (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsigdef=[signal.SIGINT, signal.SIGPIPE],  # what is ignored stays ignored through an exec
            )
        except BaseException:
            os.close(sender)
            raise
        finally:
            os.close(receiver)  # so that a runner that dies before it has read breaks the pipe
        with open(sender, "wb") as pipe:
            pipe.write(orjson.dumps(request.to_message()))
        return pid

    return spawn
