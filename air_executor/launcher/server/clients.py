"""The launcher's clients, executors and others: their connections, and the messages on them."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from air_executor.errors import ProtocolError
from air_executor.launcher import protocol
from air_executor.machine import system

#: How much is read from a client at once, in bytes, so that each gets its turn.
_READ_BYTES = 1 << 18


@dataclass(eq=False)
class Client:
    """One connection."""

    connection: socket.socket
    decoder: protocol.Decoder = field(default_factory=protocol.Decoder)
    outbox: bytearray = field(default_factory=bytearray)
    asks: bool = False
    """It has asked for the status."""
    orders: bool = False
    """It has ordered or followed runs."""

    @property
    def is_executor(self) -> bool:
        """Whether this may be an executor: any client but one that only asks for the status."""
        return self.orders or not self.asks


#: Handles a message: who sent it, what it says, and its bytes. Raises :class:`ProtocolError` if it makes no sense.
Handler = Callable[[Client, dict[str, Any], bytes], None]


class Clients:
    """Accepts connections, reads messages and sends answers, without waiting for anybody.

    Whatever a client does wrong ends its own connection, and no other.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        handle: Handler,
        *,
        greeting: Callable[[], dict[str, Any]],
        gone: Callable[[Client], None],
    ) -> None:
        """Begin without clients.

        :param greeting: returns the first message to a new client.
        :param gone: called with each client whose connection has ended.
        """
        self._selector = selector
        self._handle = handle
        self._greeting = greeting
        self._gone = gone
        self._clients: list[Client] = []

    def __len__(self) -> int:
        return len(self._clients)

    def accept(self, listener: socket.socket) -> None:
        """Accept all connections that wait at ``listener``. Those of other users are refused.

        :raises OSError: the machine has no room for another one.
        """
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    connection, _ = listener.accept()
                except ConnectionAbortedError:
                    continue
                peer = system.peer(connection)
                if peer is not None and peer.uid != os.geteuid():
                    print(f"refused a connection from user id {peer.uid}", flush=True)
                    connection.close()
                    continue
                self.tell(self.add(connection), self._greeting())

    def add(self, connection: socket.socket) -> Client:
        """Take in a connected socket as a client."""
        connection.setblocking(False)
        client = Client(connection)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._serve(client))
        return client

    def tell(self, client: Client | None, message: dict[str, Any]) -> None:
        """Send a message, if the client is still connected; what can't be sent at once waits in its outbox."""
        if client is not None and client in self._clients:
            client.outbox += protocol.encode(message)
            self._flush(client)

    def tell_all(self, message: dict[str, Any]) -> None:
        """Send a message to every client."""
        for client in list(self._clients):
            self.tell(client, message)

    def forget(self) -> None:
        """In a forked child: close all connections, and drop what came on them: it holds other tasks' tokens."""
        for client in self._clients:
            client.connection.close()
        self._clients = []

    def _serve(self, client: Client) -> None:
        """Send and read what is possible now."""
        if client.outbox:
            self._flush(client)
        self._read(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        try:
            for body in client.decoder.bodies(data):
                self._handle(client, protocol.parse(body), body)
        except ProtocolError as error:
            print(f"dropped a client: {error}", flush=True)
            self._drop(client)
        except Exception:
            print("dropped a client whose message cannot be handled:", flush=True)
            traceback.print_exc()
            self._drop(client)

    def _flush(self, client: Client) -> None:
        protocol.send(client.connection, client.outbox)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outbox else 0)
        key = self._selector.get_key(client.connection)
        if key.events != events:
            self._selector.modify(client.connection, events, key.data)

    def _drop(self, client: Client) -> None:
        self._clients.remove(client)
        self._selector.unregister(client.connection)
        client.connection.close()
        self._gone(client)
