"""The address of a launcher: the socket at which it listens, and its file."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable

from air_executor.launcher import protocol
from air_executor.launcher.address import Address


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
        #: Tells the socket's file from that of a launcher that came later.
        self._file = self._at_address()

    def watch(self) -> None:
        """Have the loop accept connections from now on."""
        self.socket.setblocking(False)
        self._selector.register(self.socket, selectors.EVENT_READ, lambda: self._accept(self.socket))

    def move(self, address: Address) -> None:
        """Listen at another address; the file at the former one stays, for the successor that listens there.

        :raises OSError: nobody can listen there, or :class:`StateDirError`; then this launcher listens nowhere.
        """
        self._close()
        self.address, self._file = address, None
        self.socket = protocol.listen(address.socket)
        self._file = self._at_address()
        self.watch()

    def close(self) -> None:
        """Listen no more, and remove the file."""
        self.remove_file()
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(KeyError, ValueError):  # not watched yet, or closed before
            self._selector.unregister(self.socket)
        self.socket.close()

    def remove_file(self) -> None:
        """Remove the socket's file, unless another launcher listens at its place by now."""
        if self._file is not None and self._at_address() == self._file:
            self.address.socket.unlink(missing_ok=True)

    def _at_address(self) -> tuple[int, int] | None:
        try:
            status = self.address.socket.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino
