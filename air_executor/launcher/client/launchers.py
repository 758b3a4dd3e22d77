"""The launchers that an executor is connected to: the one that gets its orders, and others that have runs of it."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from filelock import FileLock, Timeout

from air_executor.config import Config
from air_executor.errors import AirExecutorError, LauncherAwayError
from air_executor.launcher import protocol
from air_executor.launcher.address import (
    Address,
    address,
    all_addresses,
    environment,
    module_command,
    service_address,
)
from air_executor.launcher.client.link import LOOK_S, Link
from air_executor.launcher.fingerprint import changed_code, code_version, packages_stamp
from air_executor.machine.awake import AwakeClock
from air_executor.runs.backend import LauncherCounts
from air_executor.runs.store import RunStore

log = logging.getLogger(__name__)

#: How often to look whether packages were installed or upgraded, in seconds.
_PACKAGES_S = 5.0

#: Seconds to wait for another process that starts the same launcher, and on close for queued orders to be sent.
_WAIT_S = 2.0

#: A log of more than this many bytes is removed before a launcher starts.
_MAX_LOG_BYTES = 1 << 20


class Launchers:
    """Starts launchers, finds them, and holds the connections to them."""

    def __init__(self, store: RunStore, config: Config) -> None:
        self._store = store
        self._config = config
        self.is_service = config.launcher == "service"
        """Somebody else starts the launcher."""
        self.address: Address = service_address(store) if self.is_service else address(store, config)
        """Where the launcher that gets orders listens."""
        self.current: Link | None = None
        """The connection to it."""
        self.former: list[Link] = []
        """Connections to launchers that get no new orders, and still tell of runs."""
        self.process: subprocess.Popen[bytes] | None = None
        """The launcher that was started here last, until it is reaped."""
        self.clock = AwakeClock(LOOK_S)
        """Measures how long launchers owe an answer."""
        self.counts = LauncherCounts()
        """What became of them; without those that live."""
        #: The launcher that was counted last, by its process id.
        self._counted: Any = None
        self._packages, self._code = packages_stamp(), code_version()
        self._has_compared = False
        self._checked_s = 0.0
        self._selector = selectors.DefaultSelector()

    def links(self) -> list[Link]:
        """Return all connections, the current one first."""
        return self.former if self.current is None else [self.current, *self.former]

    def count(self, link: Link) -> None:
        """Count a launcher that has just said who it is, once, if it gets orders."""
        pid = link.launcher.get("pid")
        if link is self.current and pid != self._counted:
            self._counted = pid
            self.counts.generations += 1

    def fileno(self) -> int | None:
        """Return a descriptor that is readable when a launcher has sent something, or can take more of what waits."""
        return self._selector.fileno() if self.links() else None  # type: ignore[attr-defined,no-any-return]

    def connect(self) -> None:
        """Connect to the launcher at the address, unless connected; start one if there is none.

        :raises AirExecutorError: there is none, and none can be started.
        :raises TimeoutError: there is one, and it accepts no connections.
        :raises OSError: it can't be reached.
        """
        if self.current is not None:
            return
        if not self._has_compared:
            self._leave_changed_code()
        launched = None
        try:
            connection = protocol.connect(self.address.socket)
        except (FileNotFoundError, ConnectionRefusedError):
            if self.is_service:
                raise LauncherAwayError("the launcher service does not run: start `air-executor launcher`") from None
            with FileLock(self.address.lock, timeout=_WAIT_S, mode=0o600):
                try:
                    connection = protocol.connect(self.address.socket)
                except (FileNotFoundError, ConnectionRefusedError):
                    connection = self._launch()
                    launched = self.process
        self.current = Link(connection, self.address, self._selector, self.clock)
        if launched is not None:
            self.current.note_process(launched.pid)

    def connect_to_others(self) -> Iterator[Link]:
        """Connect to all other launchers of the state directory, and yield each connection."""
        known = {link.address for link in self.links()} | {self.address}
        for other in all_addresses(self._store):
            if other not in known:
                with contextlib.suppress(OSError, AirExecutorError):  # nobody listens there any more
                    link = Link(protocol.connect(other.socket), other, self._selector, self.clock)
                    self.former.append(link)
                    yield link

    def supersede(self) -> None:
        """Give no more orders to the current launcher. It still reports the ends of its runs."""
        if self.current is not None:
            self.former.append(self.current)
            self.current = None

    def leave_outdated(self) -> None:
        """Go to another launcher if packages were installed, upgraded or removed: this one has the old ones in memory.

        Not if this very code, or Airflow's, has changed: that takes a restart of the scheduler.
        """
        now_s = time.monotonic()
        if self.is_service or now_s < self._checked_s + _PACKAGES_S:
            return
        self._checked_s = now_s
        if packages_stamp() == self._packages or code_version() != self._code:
            return
        self._packages = packages_stamp()
        self.address = address(self._store, self._config)
        log.info("Installed packages have changed; new runs go to a new launcher, %s", self.address.key)
        self.supersede()

    def leave_socket(self) -> None:
        """Remove the launcher's socket, so that nobody connects to it any more and the next launcher is started."""
        with contextlib.suppress(Timeout, OSError), FileLock(self.address.lock, timeout=_WAIT_S, mode=0o600):
            self.address.socket.unlink(missing_ok=True)

    def drop(self, link: Link) -> None:
        """Close a connection."""
        link.close()
        if link is self.current:
            self.current = None
        elif link in self.former:
            self.former.remove(link)

    def reap(self) -> None:
        """Collect the exit status of a launcher that was started here and has ended."""
        if self.process is not None and self.process.poll() is not None:
            self.process = None

    def close(self) -> None:
        """Close all connections, once what waits is sent."""
        for link in self.links():
            link.close(_WAIT_S)
        self.current, self.former = None, []
        self._selector.close()

    def _leave_changed_code(self) -> None:
        """Leave a launcher whose code has changed since it imported it: a scheduler is restarted to get new code.

        Only at the first connection: a scheduler that keeps running has the old code itself.
        """
        self._has_compared = True
        if (file := changed_code(self.address.code)) is None:
            return
        if self.is_service:
            log.warning("%s has changed since the launcher service has imported it: restart the service", file)
        elif self.address.socket.exists():
            log.info("%s has changed; new runs go to a new launcher", file)
            self.leave_socket()

    def _launch(self) -> socket.socket:
        """Start a launcher, and connect to it. It inherits its listening socket, so it need not be warm yet.

        Connecting succeeds even if it dies at once, as the socket is open here; its death is noticed like any other.
        """
        with contextlib.suppress(FileNotFoundError):
            if self.address.log.stat().st_size > _MAX_LOG_BYTES:
                self.address.log.unlink()
        with (
            protocol.listen(self.address.socket) as listener,
            open(self.address.log, "ab", opener=_private) as output,
        ):
            self.process = subprocess.Popen(
                [
                    *module_command("air_executor.launcher"),
                    str(listener.fileno()),
                    self.address.key,
                    self._config.to_json(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
            log.info("Started launcher %s with pid %d", self.address.key, self.process.pid)
            return protocol.connect(self.address.socket)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
