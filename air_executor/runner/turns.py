"""Several commands in one runner, one after the other.

To fork a runner from its launcher, to let it begin and to let it end costs more than a short command. So the runner of
a job's command takes the next order when its run is over, if the run has left nothing in the process or below it. To
everybody else each run looks as if it had a process of its own: it has its own lock, record, log and title.
"""

from __future__ import annotations

import os

from air_executor.runs.backend import RunRequest

#: A runner executes at most this many commands, so that nothing can pile up in its memory.
MOST_RUNS = 500

#: What a runner sends to its launcher when the end of its run is on record, and it waits for the next order.
READY = b"+"


class Turns:
    """What a run changes in its runner's process, and how it is put back for the next one."""

    def __init__(self) -> None:
        self._runs = 0
        self._environment = dict(os.environ)
        try:
            self._folder: str | None = os.getcwd()
        except OSError:  # it was removed
            self._folder = None

    def may_follow(self, request: RunRequest) -> bool:
        """Begin a run, and tell whether another one may follow it in this process."""
        self._runs += 1
        is_command = request.identity.kind == "job" and "argv" in request.workload
        return is_command and self._folder is not None and self._runs < MOST_RUNS

    def restore(self) -> bool:
        """Put back the environment and the working folder; tell whether that was possible."""
        environment = dict(os.environ)
        for name in environment.keys() - self._environment.keys():
            del os.environ[name]
        for name, value in self._environment.items():
            if environment.get(name) != value:
                os.environ[name] = value
        try:
            os.chdir(self._folder or "")
        except OSError:
            return False
        return True
