"""A connection to one launcher: what is to be sent, what has come, and whether the launcher still answers."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from collections.abc import Iterator
from typing import Any

import psutil

from air_executor.launcher import protocol
from air_executor.launcher.address import Address
from air_executor.machine import system
from air_executor.machine.awake import AwakeClock

#: A launcher that owes an answer, and has said nothing for this many seconds, is asked whether it still works.
QUIET_S = 30.0

#: A launcher that starts says nothing for at most this many seconds, on the slowest machine.
START_S = 120.0

#: A launcher that does not answer that question within this many seconds hangs.
ANSWER_S = 10.0

#: Whoever talks to launchers looks at the clock at least this often, in seconds: a longer gap was a pause. It must be
#: shorter than :data:`ANSWER_S`.
LOOK_S = 5.0


class Link:
    """A connection to one launcher."""

    def __init__(
        self, connection: socket.socket, address: Address, selector: selectors.BaseSelector, awake: AwakeClock
    ) -> None:
        connection.setblocking(False)
        self.address = address
        self.launcher: dict[str, Any] = {}
        """What the launcher has said of itself; empty until it has."""
        self.attached: set[str] = set()
        """Runs whose ends this launcher reports."""
        self.asked: set[str] = set()
        """Runs that it was asked for, and has not answered for yet."""
        self.doubts: set[str] = set()
        """Orders that it has not confirmed for long, though it answers."""
        self.hangs = False
        """It does not answer, and is not replaced, as it is a service."""
        self.objection: str | None = None
        """Why it gets no orders: it speaks another protocol."""
        self._connection = connection
        self._decoder = protocol.Decoder()
        self._outbox = bytearray()
        self._selector = selector
        self._awake = awake
        self._heard_s = awake.look()
        self._asked_s: float | None = None
        self._process: tuple[int, float | None] | None = None
        peer = system.peer(connection)
        if peer is not None and peer.pid not in (0, os.getpid()):
            self.note_process(peer.pid)
        selector.register(connection, selectors.EVENT_READ)

    def note_process(self, pid: int) -> None:
        """Take note that process ``pid`` is the launcher."""
        self._process = pid, system.start_time(pid)

    @property
    def pid(self) -> int | None:
        """The launcher's process id, as far as it is known."""
        return self._process[0] if self._process else None

    def send(self, message: dict[str, Any]) -> None:
        """Send a message: what fits now, and the rest once the launcher reads it."""
        self.send_encoded(protocol.encode(message))

    def send_encoded(self, message: bytes) -> None:
        """Send a message that is encoded already, in the same way."""
        self._outbox += message
        self.flush()

    def follow(self, run_id: str) -> None:
        """Ask the launcher to report the end of a run that somebody else ordered, if it has that run."""
        self.asked.add(run_id)
        self.send({"type": "follow", "id": run_id})

    def flush(self) -> None:
        """Send as much of what waits as fits now."""
        if not self._outbox:
            return
        protocol.send(self._connection, self._outbox)
        self._selector.modify(self._connection, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0))

    def receive(self) -> Iterator[dict[str, Any]]:
        """Yield the messages that have come.

        :raises EOFError: the launcher has hung up; raised after its last message.
        :raises ProtocolError: it does not make sense.
        """
        self.flush()
        while True:
            try:
                data = self._connection.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                raise EOFError
            self._heard_s, self._asked_s, self.hangs = self._awake.look(), None, False
            yield from self._decoder.feed(data)

    def is_overdue(self, *, owes: bool) -> bool:
        """Tell whether the launcher hangs; ask it, when it has been quiet for too long.

        :param owes: it has something to report, sooner or later.
        """
        now_s = self._awake.look()
        if not owes:
            self._heard_s, self._asked_s = now_s, None
        elif self._asked_s is not None:
            return self._awake.since_s(self._asked_s) >= ANSWER_S
        elif self._awake.since_s(self._heard_s) >= (QUIET_S if self.launcher else START_S):
            self.ask()
        return False

    def ask(self) -> None:
        """Ask the launcher for its status, unless its answer is still due."""
        if self._asked_s is None:
            self._asked_s = self._awake.look()
            self.send({"type": "status"})

    def kill(self) -> bool:
        """Kill the launcher, if it is known which process it is.

        :return: whether it was killed.
        """
        if self._process is None:
            return False
        try:
            words = " ".join(psutil.Process(self._process[0]).cmdline())
        except psutil.Error:
            return False
        # The socket's maker may be another process: the executor that started the launcher.
        if self.address.key not in words or "launcher" not in words:
            return False
        return system.signal_process(*self._process, signal.SIGKILL)

    def close(self, timeout_s: float = 0.0) -> None:
        """Hang up, when what waits is sent, or after ``timeout_s``."""
        if self._outbox and timeout_s:
            self._connection.settimeout(timeout_s)
            with contextlib.suppress(OSError):
                self._connection.sendall(self._outbox)
        self._outbox.clear()
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self._connection)
        self._connection.close()
