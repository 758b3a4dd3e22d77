"""Questions to launchers from outside an executor: the command line's side of the socket."""

from __future__ import annotations

import os
from typing import Any

from air_executor.errors import AirExecutorError
from air_executor.launcher import protocol
from air_executor.launcher.address import Address, all_addresses
from air_executor.machine.safe_files import is_fresh, modified_s
from air_executor.runs.store import RunStore

#: How long a launcher may take to answer, in seconds: one that starts up answers when it is warm.
_ANSWER_S = 5.0

#: The log of a launcher that has ended by itself is kept for this many seconds.
_KEEP_S = 86_400.0


def _exchange(address: Address, message: dict[str, Any], answers: frozenset[str]) -> dict[str, Any] | None:
    """Send ``message`` and return the first answer of a type in ``answers``; ``None`` when none comes in time."""
    try:
        with protocol.connect(address.socket) as connection:
            connection.settimeout(_ANSWER_S)
            connection.sendall(protocol.encode(message) + protocol.encode({"type": "status"}))
            decoder = protocol.Decoder()
            while data := connection.recv(1 << 16):
                for answer in decoder.feed(data):
                    if answer.get("type") in answers:
                        return answer
    except (OSError, AirExecutorError):
        return None
    return None


def status(address: Address) -> dict[str, Any] | None:
    """Return what a launcher says of itself, or ``None`` when nobody answers there."""
    return _exchange(address, {"type": "status"}, frozenset({"status"}))


def remove_dead_launchers(store: RunStore, asking: Address | None = None) -> None:
    """Remove the files of launchers that were killed, and those that others left more than a day ago.

    :param asking: the launcher that asks, and so lives.
    """
    from filelock import FileLock, Timeout  # imported late: see Launcher._retire

    for address in {Address(path.stem, store.launchers) for path in store.launchers.iterdir()}:
        has_socket = address.socket.exists()
        if address == asking or not (has_socket or _is_old(address)):
            continue
        try:
            with FileLock(address.lock, timeout=0, mode=0o600):
                try:
                    protocol.connect(address.socket).close()
                except (ConnectionRefusedError, FileNotFoundError):
                    for path in (address.socket, address.code, address.log):
                        path.unlink(missing_ok=True)
                    # If the lock file were removed while somebody is about to lock it, to replace the dead launcher,
                    # two could hold the lock. So it stays for as long as a log does.
                    if has_socket:
                        os.utime(address.lock)
                    else:
                        address.lock.unlink(missing_ok=True)
        except (Timeout, OSError):
            continue  # somebody is busy with it


def _is_old(address: Address) -> bool:
    return not any(is_fresh(modified_s(path), _KEEP_S) for path in (address.log, address.lock))


def ask_to_stop(store: RunStore, run_id: str) -> bool:
    """Ask all launchers to stop a run.

    :return: whether one of them has it. Works across PID namespaces, as no process id is used.
    """
    for address in all_addresses(store):
        # A launcher that has the run says nothing to `stop`; the status that follows shows that it was heard.
        answer = _exchange(address, {"type": "stop", "id": run_id}, frozenset({"unknown", "status"}))
        if answer is not None and answer["type"] == "status":
            return True
    return False
