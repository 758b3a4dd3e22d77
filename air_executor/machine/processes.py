"""Processes as the kernel shows them, and how a document names one so that no later process is taken for it."""

from __future__ import annotations

import functools
import math
import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from air_executor.machine import system

#: At most this much is read of a file of the kernel, such as an environment or a command line, in bytes.
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class ProcessId:
    """A process as a document names it: no later process has the same name, and no change of the clock changes it."""

    pid: int
    ticks: int | None
    """When it started, in ticks of the kernel's clock since the boot."""
    boot_id: str
    namespace: int | None
    """The PID namespace in which it has that pid."""

    @classmethod
    def own(cls) -> ProcessId:
        """Return the calling process's id."""
        process = look(os.getpid())
        return cls(os.getpid(), process.ticks if process else None, system.boot_id(), system.pid_namespace())

    @classmethod
    def from_document(cls, document: Any) -> ProcessId | None:
        """Read an id from what :meth:`to_document` returned; ``None`` if it is missing, as in older documents."""
        try:
            pid, ticks, boot_id, namespace = (document[name] for name in ("pid", "ticks", "boot_id", "namespace"))
        except (KeyError, TypeError):
            return None
        is_one = isinstance(pid, int) and isinstance(ticks, int | None) and isinstance(boot_id, str)
        return cls(pid, ticks, boot_id, namespace) if is_one else None

    def to_document(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @property
    def is_of_here(self) -> bool:
        """Whether its pid means the same to this process: same boot, same namespace."""
        return self.boot_id == system.boot_id() and self.namespace == system.pid_namespace()

    def lives(self) -> bool:
        """Tell whether the process lives. One that waits to be reaped does not."""
        process = look(self.pid) if self.is_of_here else None
        return process is not None and process.ticks == self.ticks and not process.is_dead

    def send(self, signum: signal.Signals) -> bool:
        """Send a signal to the process, never to a later one with its process id.

        :return: whether it was sent.
        """
        return self.is_of_here and system.signal_if(self.pid, self.lives, signum)


@dataclass(frozen=True)
class Process:
    """A process as the kernel shows it."""

    pid: int
    name: str
    state: str
    """One letter, see proc(5): ``D`` is uninterruptible sleep, ``Z`` and ``X`` are dead."""
    parent: int
    group: int
    session: int
    ticks: int | None
    """When it started, in ticks of the kernel's clock since the boot; ``None`` where there is no such thing."""

    @property
    def is_dead(self) -> bool:
        """Whether it waits to be reaped."""
        return self.state in ("Z", "X")

    @property
    def id(self) -> ProcessId:
        """The process as a document names it."""
        return ProcessId(self.pid, self.ticks, system.boot_id(), system.pid_namespace())

    def age_s(self) -> float:
        """Return for how many seconds it has lived."""
        if self.ticks is None:
            return math.inf
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.ticks / os.sysconf("SC_CLK_TCK")

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name}) of {_user(self.pid)}"


def look(pid: int) -> Process | None:
    """Return a process; ``None`` when there is none, or the kernel hides it."""
    if not _has_proc():
        return _look_without_proc(pid)
    data = read_proc(f"/proc/{pid}/stat")
    if not data:
        return None
    # The name is in brackets and may contain anything, brackets too.
    name, _, rest = data.partition(b"(")[2].rpartition(b") ")
    fields = rest.split()
    return Process(
        pid=pid,
        name=name.decode(errors="replace"),
        state=fields[0].decode(),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        ticks=int(fields[19]),
    )


def _look_without_proc(pid: int) -> Process | None:
    try:
        process = psutil.Process(pid)
        state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "S"
        return Process(pid, process.name(), state, process.ppid(), os.getpgid(pid), os.getsid(pid), None)
    except (psutil.Error, OSError):
        return None


@functools.cache
def _has_proc() -> bool:
    return os.path.exists("/proc/self/stat")


def read_proc(path: str) -> bytes:
    """Return the content of a file below ``/proc``; nothing if it is missing, or this user may not read it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""  # it has ended, or the kernel does not show it to us
    try:
        data = bytearray()
        while len(data) < _MAX_BYTES and (piece := os.read(fd, 1 << 16)):
            data += piece
        return bytes(data)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _user(pid: int) -> str:
    # From the file, not by getpwuid(): a directory service that hangs would hang this process.
    for line in read_proc(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"Uid:"):
            uid = line.split()[1].decode()
            names = (entry.split(":") for entry in read_proc("/etc/passwd").decode(errors="replace").splitlines())
            return next((f"user {name[0]}" for name in names if len(name) > 2 and name[2] == uid), f"user id {uid}")
    return "an unknown user"


def all_pids() -> list[int]:
    """Return the pids of all processes that this one can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if _has_proc() else psutil.pids()


def kill(pid: int) -> bool:
    """Kill a process whose id can't be another's by now: a child, or one that was identified just before.

    :return: whether this user may kill it.
    """
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True
