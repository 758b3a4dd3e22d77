"""The address of a launcher: the socket at which it listens, and its file.

A connection that can't be accepted, for lack of descriptors or memory, does no harm: it waits, and so do later ones.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable

from air_executor.launcher import protocol
from air_executor.launcher.address import Address

#: After a connection could not be accepted, the next attempt comes this many seconds later.
_PAUSE_S = 1.0


class Listening:
    """A listening socket and its address, which a successor can take over."""

    def __init__(
        self,
        listener: socket.socket,
        address: Address,
        selector: selectors.BaseSelector,
        accept: Callable[[socket.socket], None],
    ) -> None:
        """Take a socket that listens at ``address`` already.

        :param accept: called with the socket when somebody connects.
        """
        self.socket = listener
        self.address = address
        self._selector = selector
        self._accept = accept
        #: When to accept connections again, on the monotonic clock; ``None`` while they are accepted.
        self._again_s: float | None = None
        #: Identifies the socket's file, as a later launcher may have replaced it.
        self._file = self._at_address()

    def watch(self) -> None:
        """Have the loop accept connections from now on."""
        self.socket.setblocking(False)
        self._selector.register(self.socket, selectors.EVENT_READ, self._serve)

    def _serve(self) -> None:
        try:
            self._accept(self.socket)
        except OSError as error:
            print(f"a connection can't be accepted now: {error.strerror}", flush=True)
            self._selector.unregister(self.socket)
            self._again_s = time.monotonic() + _PAUSE_S

    def due_in_s(self) -> float | None:
        """Return in how many seconds to call :meth:`look`; ``None``: no need to."""
        return None if self._again_s is None else max(0.0, self._again_s - time.monotonic())

    def look(self) -> None:
        """Accept connections again, if it is time to."""
        if self.due_in_s() == 0.0:
            self._again_s = None
            self.watch()

    def move(self, address: Address) -> None:
        """Listen at another address; the file at the former one stays, for the successor that listens there.

        :raises OSError: it can't listen there, or :class:`StateDirError`; then this launcher listens nowhere.
        """
        self._close()
        self.address, self._file = address, None
        self.socket = protocol.listen(address.socket)
        self._file = self._at_address()
        self.watch()

    def close(self) -> None:
        """Stop listening, and remove the file."""
        self.remove_file()
        self._close()

    def _close(self) -> None:
        self._again_s = None
        with contextlib.suppress(KeyError, ValueError):  # not watched now, or closed before
            self._selector.unregister(self.socket)
        self.socket.close()

    def remove_file(self) -> None:
        """Remove the socket's file, unless another launcher has replaced it."""
        if self._file is not None and self._at_address() == self._file:
            self.address.socket.unlink(missing_ok=True)

    def _at_address(self) -> tuple[int, int] | None:
        try:
            status = self.address.socket.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino
