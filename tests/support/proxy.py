"""A TCP proxy that can fail in the ways in which a server, or the way to it, fails."""

from __future__ import annotations

import contextlib
import random
import re
import selectors
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

Mode: TypeAlias = Literal["pass", "refuse", "black hole", "error 500", "slow", "cut"]

#: A TCP address, or the path of a Unix socket.
Upstream: TypeAlias = "tuple[str, int] | str"

#: Below the ports that the kernel gives to outgoing connections: nobody takes ours while nothing listens on it, and no
#: client is by accident connected to itself.
_PORTS = range(20_000, 30_000)

_CHUNK_BYTES = 1 << 16
_REQUEST = re.compile(rb"(?:^|\n)(?:GET|HEAD|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.[01]\r\n")
_LENGTH = re.compile(rb"\ncontent-length: *(\d+)", re.IGNORECASE)
_BODY = b'{"detail": "out of order, says the proxy"}'
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
_ERROR += b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


class Proxy:
    """Listens on a loopback port that stays the same, before a server.

    ``pass``: as if it were not there. ``refuse``: nobody listens. ``black hole``: connections are taken, and nothing is
    ever said. ``error 500``: every request is answered so. ``slow``: every chunk is late. ``cut``: the server gets its
    requests, and the connection is closed as soon as it answers one whose path ends in :attr:`cut_at`. A change of mode
    cuts the connections that are open.
    """

    def __init__(self, upstream: Upstream | None = None) -> None:
        self.upstream = upstream
        self.delay_s = 0.5
        self.cut_at = ""
        self._mode: Mode = "pass"
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._paths: list[tuple[Mode, str]] = []
        #: Number of answers that clients did not get because of the mode ``cut``.
        self.lost_answers = 0
        self._is_closed = False
        self._listener = self._listen_anywhere()
        self.port: int = self._listener.getsockname()[1]
        self._serve(self._listener)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def mode(self) -> Mode:
        return self._mode

    def set(self, mode: Mode) -> None:
        """Change what happens to connections, and cut those that are open."""
        with self._lock:
            before, self._mode = self._mode, mode
            if mode == "refuse" and before != "refuse":
                _close(self._listener)
            elif mode != "refuse" and before == "refuse":
                self._listener = self._listen(self.port)
                self._serve(self._listener)
            connections = list(self._connections)
        for connection in connections:
            connection.close()

    def close(self) -> None:
        self.set("refuse")
        self._is_closed = True

    def requests(self, ending: str = "", mode: Mode | None = None) -> int:
        """Return how many HTTP requests have come whose path ends in ``ending``, in all modes or in one."""
        with self._lock:
            return sum(path.endswith(ending) and mode in (None, was) for was, path in self._paths)

    def open_connections(self) -> int:
        with self._lock:
            return len(self._connections)

    # Listening

    @staticmethod
    def _listen(port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        return listener

    def _listen_anywhere(self) -> socket.socket:
        for port in random.sample(_PORTS, 100):
            with contextlib.suppress(OSError):
                return self._listen(port)
        raise AssertionError("no free port for the proxy")

    def _serve(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True, name="proxy").start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                if self._mode == "refuse":
                    _close(client)
                    continue
                connection = _Connection(self, client, self._mode)
                self._connections.add(connection)
            threading.Thread(target=connection.run, daemon=True, name="proxied").start()

    # What connections tell

    def note(self, mode: Mode, data: bytes) -> list[str]:
        """Count the requests in what a client has sent, and return their paths."""
        paths = [path.decode().partition("?")[0] for path in _REQUEST.findall(data)]
        with self._lock:
            self._paths += [(mode, path) for path in paths]
        return paths

    def forget(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)


class _Connection:
    def __init__(self, proxy: Proxy, client: socket.socket, mode: Mode) -> None:
        self._proxy = proxy
        self._client = client
        self._mode = mode
        self._server: socket.socket | None = None
        self._closed = threading.Event()

    def close(self) -> None:
        self._closed.set()
        for sock in (self._client, self._server):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # wakes who reads from it

    def run(self) -> None:
        try:
            if self._mode == "error 500":
                self._answer()
            elif self._mode == "black hole":
                self._swallow()
            else:
                self._pass_on()
        except OSError:
            pass
        finally:
            self._proxy.forget(self)
            for sock in (self._client, self._server):
                if sock is not None:
                    _close(sock)

    def _swallow(self) -> None:
        while data := self._client.recv(_CHUNK_BYTES):
            self._proxy.note(self._mode, data)

    def _answer(self) -> None:
        request = b""
        while not _is_whole(request):
            data = self._client.recv(_CHUNK_BYTES)
            if not data:
                return
            request += data
        self._proxy.note(self._mode, request.partition(b"\r\n\r\n")[0] + b"\r\n")
        self._client.sendall(_ERROR)

    def _pass_on(self) -> None:
        self._server = self._connect()
        path = ""
        with selectors.DefaultSelector() as selector:
            selector.register(self._client, selectors.EVENT_READ, self._server)
            selector.register(self._server, selectors.EVENT_READ, self._client)
            while not self._closed.is_set():
                for key, _ in selector.select():
                    data = key.fileobj.recv(_CHUNK_BYTES)  # type: ignore[union-attr]
                    if not data:
                        return
                    if key.fileobj is self._client:
                        path = (self._proxy.note(self._mode, data) or [path])[-1]
                    elif self._mode == "cut" and path.endswith(self._proxy.cut_at):
                        self._proxy.lost_answers += 1
                        return
                    if self._mode == "slow" and self._closed.wait(self._proxy.delay_s):
                        return
                    key.data.sendall(data)

    def _connect(self) -> socket.socket:
        upstream = self._proxy.upstream
        if isinstance(upstream, str):
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(Path(upstream)))
            return server
        if upstream is None:
            raise OSError("there is no server behind the proxy yet")
        return socket.create_connection(upstream)


def _is_whole(request: bytes) -> bool:
    head, separator, body = request.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return bool(separator) and len(body) >= (int(length.group(1)) if length else 0)


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
    sock.close()
