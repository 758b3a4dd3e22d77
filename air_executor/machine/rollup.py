"""The exact account of a process's memory: each page divided by the number of processes that have it.

The kernel shows it to the process itself, to root, and to others of the same user unless the process is private
(see :func:`air_executor.machine.system.keep_memory_private`), as task processes and their forks are. These open their
own ``/proc/self/smaps_rollup`` and send it to their runner. The file shows the process that opened it, until that
executes another program, which would not be private any more.
"""

from __future__ import annotations

import array
import contextlib
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

#: A fork waits at most this long for its runner to receive its file, in seconds.
_SEND_S = 2.0

#: The runner keeps files of at most this many processes open.
_MAX_VIEWS = 256

_FILE_BYTES = 1 << 14

#: Missing on macOS, where no process sends its file, as there is none.
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


@dataclass(frozen=True)
class Rollup:
    """What one process holds, in bytes, without pages of files."""

    proportional: int
    """Anonymous, shared and swapped pages, each divided by the number of processes that have it."""
    anonymous: int
    """Anonymous pages in memory, undivided."""
    anonymous_proportional: int
    anonymous_private: int
    """Anonymous pages that no other process has."""


def parse(data: bytes) -> Rollup | None:
    """Read the text of a ``smaps_rollup``; ``None`` if the kernel is too old (before 5.4) to show what is needed."""
    sizes: dict[bytes, int] = {}
    try:
        for line in data.splitlines()[1:]:
            name, _, value = line.partition(b":")
            sizes[name] = int(value.split()[0]) * 1024
        anonymous, proportional = sizes[b"Anonymous"], sizes[b"Pss_Anon"]
        # Nearly all anonymous pages are dirty; the other dirty ones are of files that are mapped to be written, shared.
        other_dirty = max(0, sizes.get(b"Pss_Dirty", proportional) - proportional)
        private = min(proportional, max(0, sizes[b"Private_Dirty"] - other_dirty))
        return Rollup(proportional + sizes[b"Pss_Shmem"] + sizes[b"SwapPss"], anonymous, proportional, private)
    except (KeyError, ValueError, IndexError):
        return None


def own() -> Rollup | None:
    """Return this process's account; ``None`` where the kernel keeps none."""
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:
            return parse(file.read())
    except OSError:
        return None


class Views:
    """Lets a runner read the accounts of its task's processes, which are private."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._inode = os.fstat(self._sender.fileno()).st_ino
        self._fds: dict[int, int] = {}

    def grant(self, *, waits: bool) -> None:
        """In the task process: let the runner see this process, and each that Python forks from it from now on.

        :param waits: whether a fork waits for a runner that is behind, so that nothing escapes a limit.
        """
        self._receiver.close()
        self._sender.settimeout(_SEND_S if waits else 0)
        os.register_at_fork(after_in_child=self._send)
        self._send()

    def _send(self) -> None:
        # Without the file, the runner uses the plain sum.
        with contextlib.suppress(OSError):
            if os.fstat(self._sender.fileno()).st_ino != self._inode:
                return  # a daemon has closed all that it inherited, and reused this number for a file of its own
            fd = os.open("/proc/self/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
            try:
                socket.send_fds(self._sender, [b"+"], [fd])
            finally:
                os.close(fd)

    def close(self) -> None:
        """Close everything."""
        self.keep_only(())
        self._receiver.close()
        self._sender.close()

    def receive(self) -> None:
        """Receive the files that processes have sent."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, fds = _receive(self._receiver)
                for fd in fds:
                    self._take(fd)
                if not data:
                    return

    def _take(self, fd: int) -> None:
        # A task may send any descriptor; only such a file is safe to read.
        shown = re.fullmatch(r"/proc/(\d+)/smaps_rollup", os.readlink(f"/proc/self/fd/{fd}"))
        if shown is None or len(self._fds) >= _MAX_VIEWS:
            os.close(fd)
            return
        self._drop(int(shown.group(1)))
        self._fds[int(shown.group(1))] = fd

    def keep_only(self, pids: Iterable[int]) -> None:
        """Close the files of all other processes: they have ended."""
        for pid in self._fds.keys() - set(pids):
            self._drop(pid)

    def look(self, pid: int) -> Rollup | None:
        """Return the account of a process; ``None`` when it has ended, or can't be seen."""
        fd = self._fds.get(pid)
        try:
            if fd is not None:
                with contextlib.suppress(ProcessLookupError):
                    if data := os.pread(fd, _FILE_BYTES, 0):
                        return parse(data)
                self._drop(pid)  # it has executed another program
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                return parse(file.read())
        except OSError:
            return None

    def _drop(self, pid: int) -> None:
        fd = self._fds.pop(pid, None)
        if fd is not None:
            os.close(fd)


def make_views() -> Views | None:
    """Return new views; ``None``: this process, or the machine, has no descriptors to spare."""
    try:
        return Views()
    except OSError:
        return None


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    data, ancillary, _flags, _address = sock.recvmsg(1, socket.CMSG_SPACE(4 * fds.itemsize), _CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
