"""What becomes of a launcher's runs when the launcher is asked to end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from air_executor.config import Config
from air_executor.errors import AirExecutorError
from air_executor.machine import system
from air_executor.runs.store import RunStore

#: A runner that was asked to stop is killed this many seconds after its task's grace time.
_TELL_S = 15.0

#: The PID namespace of the machine itself, see ``PROC_PID_INIT_INO`` in the kernel.
_MACHINE = 0xEFFFFFFC

REASON = "its launcher was stopped"


def is_main_of_container() -> bool:
    """Tell whether this process is a container's main process, with which all others of it die.

    A small init, such as ``dumb-init`` or ``tini``, may be its parent.
    """
    if os.getpid() == 1:
        return True
    if os.getppid() != 1 or system.pid_namespace() in (None, _MACHINE):
        return False
    try:
        return Path("/proc/1/comm").read_text().strip() not in ("systemd", "init")
    except OSError:
        return False


class Farewell:
    """Requests to end, and what they ask for."""

    def __init__(self, store: RunStore, config: Config) -> None:
        self._store = store
        self._grace_s = config.stop_grace_seconds
        self.policy = config.on_launcher_stop
        if self.policy == "auto":
            self.policy = "stop" if is_main_of_container() else "detach"
        self._requests = 0
        self._has_begun = False
        self._kill_s: float | None = None

    def ask(self, *_: object) -> None:
        """Take a request to end. Safe in a signal handler."""
        self._requests += 1

    @property
    def is_near(self) -> bool:
        """Whether the launcher was asked to end."""
        return self._requests > 0

    @property
    def is_immediate(self) -> bool:
        """Whether the launcher ends without waiting for its runs: a second request, or the policy says so."""
        return self._requests > 1 or (self.is_near and self.policy == "detach")

    def begin(self) -> bool:
        """Say in the launcher's log that it ends.

        :return: whether this was the first call.
        """
        is_first, self._has_begun = not self._has_begun, True
        if is_first:
            print(f"asked to end, with on_launcher_stop = {self.policy}", flush=True)
        return is_first

    def stop(self, runs: Mapping[int, str]) -> None:
        """Stop runs, if the policy is to stop them, and kill those that do not end in time.

        :param runs: the runs' ids by the process ids of their runners: children of this process that are not reaped.
        """
        if self.policy != "stop":
            return
        if self._kill_s is None:
            self._kill_s = time.monotonic() + self._grace_s + _TELL_S
            for pid, run_id in runs.items():
                with contextlib.suppress(AirExecutorError):
                    if self._store.stop_request(run_id) is None:
                        self._store.request_stop(run_id, REASON)
                os.kill(pid, signal.SIGTERM)
        elif time.monotonic() >= self._kill_s:
            for pid in runs:
                os.kill(pid, signal.SIGKILL)
