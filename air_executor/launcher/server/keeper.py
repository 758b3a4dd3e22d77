"""The main process of a launcher service whose launcher has a successor: it lives as long as there is a launcher.

A service manager knows its service by the process that it has started: the first launcher. When that has a successor,
and its last run has ended, it executes this module. The process id stays; a tenth of the memory remains.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from air_executor.launcher.address import module_command
from air_executor.machine import children, marks, system

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR2)


def launchers() -> list[int]:
    """Return the children of this process that are launchers."""
    return [pid for pid in children.children() if marks.is_launcher(pid)]


def pass_on(signum: int) -> None:
    """Send a signal to the launchers below this process."""
    for pid in launchers():  # children that are not reaped: no other process can have these ids
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def become_keeper() -> None:
    """Execute this module in place of this process, if launchers are among its children. Signals wait meanwhile."""
    if launchers():
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        sys.stdout.flush()
        sys.stderr.flush()
        command = module_command("air_executor.launcher.server.keeper")
        os.execv(command[0], command)


def main() -> int:
    """Wait until the last launcher has ended; pass signals on to the launchers. Return the exit code."""
    asked = False

    def on_signal(signum: int, _: object) -> None:
        nonlocal asked
        asked |= signum == signal.SIGTERM
        pass_on(signum)

    system.set_title("air-executor keeper")
    for signum in _PASSED_ON:
        signal.signal(signum, on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while launchers():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)
    if not asked:
        print("the launcher has died", flush=True)
    return 0 if asked else 1


if __name__ == "__main__":
    sys.exit(main())
