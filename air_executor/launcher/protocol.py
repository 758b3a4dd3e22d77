"""What an executor and a launcher say to each other: JSON documents, each after its length in four bytes.

From the executor:

- ``start`` with a run's ``request``: start a runner for it. The launcher forwards the bytes as they came.
- ``follow``, ``stop`` and ``kill`` with a run's ``id``: tell me of its end; stop it; kill it.
- ``keep`` with ``keep_days``, ``keep_runs`` and ``keep_jobs``: prune by these options from now on. From version 3 on.
- ``status``: tell me about yourself.

From the launcher:

- ``hello``, once, and ``status``: what the launcher says of itself, with the version of the protocol that it speaks
  (``protocol``) and the oldest that it understands (``understands``).
- ``started`` with the runner's ``pid``, or ``refused`` with the ``reason``: the answer to ``start``.
- ``followed``, or ``unknown`` with what was ``asked``: whether the run is a child of this launcher.
- ``exited`` with the runner's ``exit_code``, and as ``record`` the run's document, as the runner or the launcher has
  written it to ``state.json``. Without ``record``, as from former launchers, the executor reads the file.
- ``elsewhere``: another runner executes this run, or another executor follows it now.
- ``superseded``: another launcher takes new orders at this address.
- ``spare_died``: a process that was forked ahead has died before its order came.

Either side passes over fields that it does not know, and the executor also messages. The launcher drops who sends a
message of a type that it does not know.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from air_executor import __version__, jsontext
from air_executor.config import Config
from air_executor.errors import ProtocolError, StateDirError

#: Version of this protocol. It rises when a former peer would do the wrong thing with what is new. 2: requests may have
#: fields that the launcher does not know. 3: the message ``keep``.
VERSION = 3

#: The oldest version that this code understands. Launchers that name no version speak 1.
OLDEST = 1

#: The fields of a run request in version 1, whose launchers refuse requests with others; and those of its identity.
_FIELDS_1 = frozenset({"id", "identity", "workload", "air", "server", "log_file"})
_IDENTITY_1 = frozenset(
    {"kind", "workload_id", "name", "dag_id", "task_id", "dag_run_id", "map_index", "try_number", "team", "queue"}
    | {"job_name"}
)

#: The options by which a launcher prunes, and the first version in which an executor sends them. A launcher that was
#: started with others need not be replaced for them.
RETENTION, _KEEP_VERSION = ("keep_days", "keep_runs", "keep_jobs"), 3

#: A message is at most this many bytes long. Workloads are a few thousand.
MAX_MESSAGE_BYTES = 8 << 20

#: At most this many connections wait for a busy launcher; more are refused.
BACKLOG = 64

#: Errors of file systems that have no sockets.
_NO_SOCKETS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENXIO)

_LENGTH_BYTES = 4

#: A connection waits at most this long for a place in the launcher's queue, in seconds.
_CONNECT_S = 1.0


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``, for this user alone.

    :raises OSError: the socket cannot be made there.
    :raises StateDirError: the path is too long, or the file system has no sockets.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with reachable(path) as short:
            listener.bind(short)
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno not in _NO_SOCKETS:
            raise
        raise StateDirError(
            f"no socket can be made at {path}: {error.strerror}. Its file system may have none, as vfat, 9p and some "
            "bind mounts have not: set [air_executor] state_dir to a folder on a local disk of this machine"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def encode(message: dict[str, Any]) -> bytes:
    """Return ``message`` as it goes over the socket.

    :raises ProtocolError: it is not JSON, or too long.
    """
    try:
        body = jsontext.dumps(message)
    except TypeError as error:
        raise ProtocolError(f"a message is not JSON: {error}") from None
    if len(body) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {len(body)} bytes is longer than {MAX_MESSAGE_BYTES}")
    return framed(body)


def framed(body: bytes) -> bytes:
    """Return an encoded message as it goes over the socket: after its length."""
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def objection(launcher: Mapping[str, Any]) -> str | None:
    """Return why an executor of this version gives no orders to ``launcher``, and what to restart; ``None``: it can.

    :param launcher: what it says of itself.
    """
    version, oldest = _number(launcher, "protocol", 1), _number(launcher, "understands", None)
    who = (
        f"the launcher is of AirExecutor {launcher.get('version')} (protocol {version}), "
        f"and this is AirExecutor {__version__} (protocol {VERSION})"
    )
    if version < OLDEST:
        return f"{who}: restart the launcher (`air-executor launcher`), so that it is of this version too"
    if (oldest if oldest is not None else version) > VERSION and version > VERSION:
        return f"{who}: restart the scheduler, so that it is of the launcher's version too"
    return None


def _number(launcher: Mapping[str, Any], name: str, default: Any) -> Any:
    value = launcher.get(name, default)
    return value if isinstance(value, int) else default


def start(request: dict[str, Any]) -> bytes:
    """Return the order of a run as it goes over the socket.

    :raises ProtocolError: it is not JSON, or too long.
    """
    return encode({"type": "start", "request": request})


def start_for(launcher: Mapping[str, Any], request: dict[str, Any]) -> bytes | None:
    """Return the order of a run for a launcher that would refuse :func:`start`'s; ``None`` for all others."""
    if not launcher or _number(launcher, "protocol", 1) != 1:
        return None
    known = {name: value for name, value in request.items() if name in _FIELDS_1}
    known["identity"] = {name: value for name, value in request["identity"].items() if name in _IDENTITY_1}
    return start(known)


def keep_message(config: Config, launcher: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the message about the options of pruning; ``None`` for a launcher that would not understand it."""
    if _number(launcher, "protocol", 1) < _KEEP_VERSION:
        return None
    return {"type": "keep", **{name: getattr(config, name) for name in RETENTION}}


class Decoder:
    """Puts messages together from the pieces in which they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take in ``data`` and yield each message that it completes.

        :raises ProtocolError: the peer does not speak this protocol; nothing more can be read from it.
        """
        return map(parse, self.bodies(data))

    def bodies(self, data: bytes) -> Iterator[bytes]:
        """Take in ``data`` and yield each message that it completes, as it came, without its length.

        :raises ProtocolError: the peer does not speak this protocol; nothing more can be read from it.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if length > MAX_MESSAGE_BYTES:
                raise ProtocolError(f"a message of {length} bytes is announced; {MAX_MESSAGE_BYTES} is the limit")
            end = _LENGTH_BYTES + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH_BYTES:end])
            del self._buffer[:end]
            yield body


def parse(body: bytes) -> dict[str, Any]:
    """Return the message that ``body`` holds.

    :raises ProtocolError: it is not a JSON object.
    """
    try:
        message = jsontext.loads(body)
    except ValueError as error:
        raise ProtocolError(f"a message is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message is not a JSON object")
    return message


def send(connection: socket.socket, outbox: bytearray) -> None:
    """Send what waits, as much as goes without blocking, and take it off ``outbox``.

    To a peer that has hung up nothing goes any more. What it sent before may still wait to be read, and reading finds
    the end.
    """
    try:
        sent = connection.send(outbox)
    except BlockingIOError:
        sent = 0
    except OSError:
        sent = len(outbox)
    del outbox[:sent]


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Wait for one message and return it; ``None`` when the peer closes the connection without having sent one.

    :raises ProtocolError: the peer does not speak this protocol.
    """
    decoder = Decoder()
    while data := connection.recv(1 << 18):
        for message in decoder.feed(data):
            return message
    return None


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """Yield an address for the Unix socket at ``path`` that fits in the kernel's 107 bytes.

    On Linux a longer path is reached through a descriptor of its folder.

    :raises StateDirError: it is too long for this system.
    """
    if len(os.fsencode(path)) < 104:  # the least of the platforms' limits, macOS's
        yield str(path)
        return
    if not os.path.isdir("/proc/self/fd"):
        raise StateDirError(
            f"the path of the launcher's socket is too long for this system: {path}. "
            "Set [air_executor] state_dir to a shorter path"
        )
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def connect(path: Path) -> socket.socket:
    """Return a connection to the launcher that listens at ``path``.

    :raises OSError: nobody listens there.
    :raises TimeoutError: somebody listens, but accepts no connections.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux waits this long for a place in a full queue if the socket may block, and otherwise not at all.
        seconds, fraction = divmod(_CONNECT_S, 1)
        until = struct.pack("ll", int(seconds), int(fraction * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, until)
        with reachable(path) as address:
            connection.connect(address)
        connection.settimeout(_CONNECT_S)
    except BlockingIOError:
        connection.close()
        raise TimeoutError(f"the launcher at {path} takes no connections") from None
    except BaseException:
        connection.close()
        raise
    return connection
