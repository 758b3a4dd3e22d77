"""The children of this process, including those that it has adopted."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from air_executor.machine.processes import all_pids, look, read_proc

#: A process id, and the children that this process had before it executed this program.
_older: tuple[int, set[int]] = (0, set())


def leave_older_alone() -> None:
    """Do not count the children that this process has now: a script started them, and then executed this program."""
    global _older
    _older = (os.getpid(), set(_children()))


def has_older() -> bool:
    """Tell whether this process has children from before :func:`leave_older_alone`."""
    return _older[0] == os.getpid() and bool(_older[1])


def reaped(pid: int) -> None:
    """Take note that a child is gone: its process id may be another's from now on."""
    _older[1].discard(pid)


def children() -> list[int]:
    """Return the children of this process, including those that have ended and wait to be reaped."""
    older = _older[1] if _older[0] == os.getpid() else ()
    return [pid for pid in _children() if pid not in older]


def _children() -> list[int]:
    try:
        return [
            int(pid)
            for thread in os.listdir("/proc/self/task")
            for pid in Path(f"/proc/self/task/{thread}/children").read_bytes().split()
        ]
    except (FileNotFoundError, NotADirectoryError):  # a kernel without CONFIG_PROC_CHILDREN, or no Linux
        me = os.getpid()
        found = [pid for pid in all_pids() if (process := look(pid)) is not None and process.parent == me]
        if hides_processes():
            found += [pid for pid in _candidates() if pid not in found and _is_child(pid)]
        return found


@functools.cache
def hides_processes() -> bool:
    """Tell whether ``/proc`` hides processes from their own user: ``hidepid``, systemd's ``ProtectProc``."""
    mounts = read_proc("/proc/self/mounts").decode(errors="replace").splitlines()
    options = [line.split()[3] for line in mounts if line.split()[1:3] == ["/proc", "proc"]]
    hidepid = [option.partition("=")[2] for option in (options or [""])[-1].split(",") if option.startswith("hidepid=")]
    return any(value not in ("0", "off") for value in hidepid)


def _candidates() -> Iterator[int]:
    """Yield the pids that processes younger than this one can have. Costs half a second for a million."""
    me, last = os.getpid(), int((read_proc("/proc/loadavg").split() or [b"0"])[-1])
    if last >= me:
        yield from range(me + 1, last + 1)
        return
    yield from range(me + 1, int(read_proc("/proc/sys/kernel/pid_max") or b"32768") + 1)
    yield from range(2, last + 1)


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True
