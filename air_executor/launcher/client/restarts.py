"""Launchers that die, can't be started or accept no connections: when to try the next one, and when to give up."""

from __future__ import annotations

import logging
import time

from air_executor.launcher.client.followed import LOOK_S, Followed
from air_executor.launcher.client.launchers import Launchers
from air_executor.launcher.client.link import ANSWER_S, QUIET_S

log = logging.getLogger(__name__)

#: Backoff before a launcher is started after one that died, in seconds. When it is used up, the runs that wait for a
#: launcher fail.
_RESTART_S = (0.0, 1.0, 5.0)

#: The same for a launcher that is a service: its service manager may restart or upgrade it.
_SERVICE_S = (1.0,) * 60


class Restarts:
    """Starts launchers again for one executor, or manager of jobs."""

    def __init__(self, launchers: Launchers, followed: Followed) -> None:
        self._launchers = launchers
        self._followed = followed
        #: Launchers that died before they had confirmed an order, in a row.
        self._deaths = 0
        #: When to try the next one, on the monotonic clock.
        self._retry_s = 0.0
        #: Since when the launcher has accepted no connections, on the clock of :attr:`Launchers.clock`.
        self._shut_s: float | None = None

    def due_in_s(self) -> float:
        """Return in how many seconds the next attempt to connect is due."""
        return max(0.0, self._retry_s - time.monotonic())

    def note_connection(self) -> None:
        """Take note that a launcher has accepted a connection."""
        self._shut_s = None

    def note_confirmation(self) -> None:
        """Take note that a launcher has confirmed an order."""
        self._deaths = 0

    def count_death(self, why: str) -> None:
        """Take note that a launcher died or could not be started. Another is started, unless too many have died."""
        if not self._followed.orders:
            return
        waits_s = _SERVICE_S if self._launchers.is_service else _RESTART_S
        if self._deaths < len(waits_s):
            self._retry_s = time.monotonic() + waits_s[self._deaths]
            self._deaths += 1
            log.log(logging.WARNING if self._deaths == 1 else logging.DEBUG, "%s; trying again", why)
            return
        unclaimed = [run_id for run_id, order in self._followed.orders.items() if order.link is None]
        log.error("%s; giving up on %d runs that wait for it", why, len(unclaimed))
        for run_id in unclaimed:
            if self._followed.is_begun(run_id):
                self._followed.detach(run_id)
            else:
                where = self._launchers.address.log
                self._followed.fail(run_id, f"{why}. Its log is {where}; `air-executor doctor` tells more")
        self._deaths = 0

    def wait_for_room(self, error: TimeoutError) -> None:
        """Wait for a launcher that accepts no connections; after a while, it counts as hanging, and is replaced."""
        self._retry_s = time.monotonic() + LOOK_S
        if self._shut_s is None:
            self._shut_s = self._launchers.clock.look()
            log.warning("%s; trying again", error)
        elif self._launchers.clock.since_s(self._shut_s) >= QUIET_S + ANSWER_S and not self._launchers.is_service:
            log.error("%s: it hangs, and is replaced", error)
            self.replace()

    def replace(self) -> None:
        """Leave a launcher that hangs; the next one is started at once."""
        self._shut_s, self._retry_s = None, 0.0
        self._launchers.leave_socket()
