"""Runs that were asked to end. One that does not is killed."""

from __future__ import annotations

import time

from air_executor.airflow.work import Work
from air_executor.machine.awake import AwakeClock

#: A run that was asked to end gets this many seconds more than its task has for ``on_kill``. Then it is killed.
STUBBORN_S = 15.0


class Stops:
    """Asks runs to end, and sees to it that they do."""

    def __init__(self, work: Work) -> None:
        self._work = work
        #: When each of these runs was asked, on the monotonic clock.
        self._asked_s: dict[str, float] = {}
        self._awake = AwakeClock()

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._asked_s

    def ask(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        """Ask a run to end.

        :param unwanted: Airflow has given it up already.
        """
        with self._work.guard(f"Stopping run {run_id}"):
            self._asked_s[run_id] = time.monotonic()
            self._work.backend.stop(run_id, reason, unwanted=unwanted)

    def has_ended(self, run_id: str) -> None:
        """Note that a run has ended."""
        self._asked_s.pop(run_id, None)

    def kill_the_stubborn(self) -> None:
        """Kill runs that were asked to end and have not. Done in each loop, as it needs no database."""
        now_s = self._awake.look()
        for run_id, since_s in list(self._asked_s.items()):
            grace_s = self._work.options.stop_grace_seconds
            if self._awake.since_s(since_s) <= grace_s + STUBBORN_S:
                continue
            with self._work.guard(f"Killing run {run_id}"):
                if self._work.backend.is_stopping(run_id):
                    self._work.executor.log.warning("Run %s does not end by itself and is killed", run_id)
                    self._asked_s[run_id] = now_s - grace_s  # so it is killed again after STUBBORN_S
                    self._work.backend.kill(run_id)
