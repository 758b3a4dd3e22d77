"""Entry point of a runner that is started by exec: the request comes through standard input."""

from __future__ import annotations

import os
import sys

from air_executor import jsontext
from air_executor.config import Config
from air_executor.machine import system
from air_executor.runner.main import run
from air_executor.runs.backend import RunRequest
from air_executor.runs.store import RunStore


def main(argv: list[str]) -> int:
    """Execute the run that is described on standard input."""
    os.setsid()
    system.hear_signals()
    system.keep_memory_private()  # before the token comes into it
    config = Config.from_json(argv[0])
    request = RunRequest.from_message(jsontext.loads(sys.stdin.buffer.read()))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    system.prepare()
    system.outlive_full_disks()
    system.show_faults()
    return run(request, RunStore(config.state_dir), config)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
