"""What an operating system offers to control processes: identity, signals, memory, sockets.

Each function contains its fallback for systems other than Linux, so that its promise is in one place. macOS works, but
reacts less promptly.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import functools
import io
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

#: What asks a command to end: Ctrl-C, timeout(1) or a service manager, and a terminal that is closed.
TO_END = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

#: From ``<linux/prctl.h>``.
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36

# From <linux/mman.h>.
_MADV_COLLAPSE = 25

#: The alignment of huge pages, in bytes, on x86-64 and most others.
_HUGE_BYTES = 1 << 21

#: For how long the launcher tries to start a process that the machine has no room for, in seconds.
NO_ROOM_S = 60.0

#: Two readings of one process's start time differ by less than this, in seconds.
_START_TIME_TOLERANCE_S = 0.05


@functools.cache
def boot_id() -> str:
    """Return an id that is new after every boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _boot_session() or f"booted-{int(psutil.boot_time())}"


def _boot_session() -> str | None:
    # macOS has an id, too. The last resort, the time of the boot, moves whenever the clock is set.
    try:
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def host() -> str:
    """Return this machine's name."""
    return socket.gethostname()


@functools.cache
def pid_namespace() -> int | None:
    """Return the PID namespace of this process: pids are valid only within one. ``None`` where there are none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None


def start_time(pid: int) -> float | None:
    """Return when process ``pid`` started, in seconds since the epoch; ``None`` when there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def signal_name(number: int) -> str:
    """Return the name of a signal, or its number in words if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def has_no_room(error: OSError) -> bool:
    """Tell whether a process could not be started for lack of memory, processes or files, which may be temporary."""
    return error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def is_process(pid: int, started: float | None) -> bool:
    """Tell whether process ``pid`` exists and is the one that started at ``started``."""
    now = start_time(pid)
    return now is not None and started is not None and abs(now - started) < _START_TIME_TOLERANCE_S


def signal_process(pid: int, started: float | None, signum: signal.Signals) -> bool:
    """Send ``signum`` to process ``pid`` if it is still the one that started at ``started``.

    :return: whether it was sent.
    """
    return signal_if(pid, lambda: is_process(pid, started), signum)


def signal_if(pid: int, is_it: Callable[[], bool], signum: signal.Signals) -> bool:
    """Send ``signum`` to process ``pid`` if ``is_it`` confirms its identity.

    :return: whether it was sent. It is not sent to a process that this user may not signal.
    """
    fd = open_pidfd(pid)
    try:
        # Once the pidfd is open, the id can't pass to another process between the check and the signal.
        if not is_it():
            return False
        if fd is not None:
            signal.pidfd_send_signal(fd, signum)
        else:
            os.kill(pid, signum)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if fd is not None:
            os.close(fd)


def descriptors() -> list[int]:
    """Return this process's open descriptors, including the one of the listing; none where the system lists none."""
    return [int(name) for name in os.listdir("/proc/self/fd")] if os.path.isdir("/proc/self/fd") else []


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when process ``pid`` ends; ``None`` where there is no such thing."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def prepare() -> None:
    """Load what the other functions need, for this process and its forks."""
    _libc()
    boot_id()
    host()
    pid_namespace()


def hear_signals() -> None:
    """Have ends of children and requests to end arrive here, though the caller may ignore the former, or block both."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # of children that are ignored, the kernel keeps no exit codes
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TO_END | {signal.SIGCHLD, signal.SIGUSR2})


@contextlib.contextmanager
def signals_held(signums: Iterable[int]) -> Iterator[Callable[[], None]]:
    """Within this, the signals wait in this thread, until what it gives is called."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)

    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signums)
        yield release
    finally:
        release()


def set_title(title: str) -> None:
    """Show ``title`` as this process's name."""
    if sys.platform == "darwin":
        return  # the call is not safe there after a fork
    import setproctitle

    setproctitle.setproctitle(title)


def use_huge_pages() -> None:
    """Move this process's memory into huge pages: then a fork copies, and an exit frees, smaller page tables.

    What a forked child writes to is copied in small pages as before. Does nothing where the kernel can't: see
    ``MADV_COLLAPSE`` in madvise(2), from Linux 6.1 on.
    """
    libc = _libc()
    if libc is None:
        return
    for line in Path("/proc/self/maps").read_text().splitlines():
        area, access, _offset, _device, inode, *name = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            begin, end = (int(each, 16) for each in area.split("-"))
            begin, end = -(-begin // _HUGE_BYTES) * _HUGE_BYTES, end // _HUGE_BYTES * _HUGE_BYTES
            if begin < end:
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_COLLAPSE)


def renew_random_state() -> None:
    """In a forked process: seed NumPy's random numbers anew. Python does so for its own."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when ``parent``, its parent, dies. Does nothing where the kernel can't."""
    libc = _libc()
    if libc is None:
        return
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the call.
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def is_crowded() -> bool:
    """Tell whether more than two processes for each CPU want to run just now; not where the kernel does not tell."""
    try:
        with open("/proc/loadavg", "rb") as file:
            running = int(file.read().split()[3].partition(b"/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running > 2 * (os.cpu_count() or 1)


def keep_memory_private() -> None:
    """Hide this process's memory from other processes of this user. Does nothing where the kernel can't."""
    libc = _libc()
    if libc is not None:
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """Make this process the parent of its descendants whose own parent dies. Does nothing where the kernel can't."""
    libc = _libc()
    if libc is not None:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def exit_fork(code: int) -> NoReturn:
    """End this forked process: flush what it has printed, but run none of its parent's exit handlers."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def has_ended(child: int) -> bool:
    """Tell whether a child of this process has ended, and leave it to be reaped."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return bool(psutil.Process(child).status() == psutil.STATUS_ZOMBIE)  # macOS before Python 3.13


def reap_orphans(task: int) -> None:
    """Reap adopted descendants that have ended; not the child ``task``.

    Where a process can't adopt, see :func:`adopt_orphans`, there are none.
    """
    if not hasattr(os, "waitid"):
        return
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == task:
                return
            os.waitpid(ended.si_pid, 0)


def peak_bytes() -> int:
    """Return the largest resident size that this process, or a child that it has waited for, has had, in bytes."""
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * (1 if sys.platform == "darwin" else 1024)


def oom_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory in this control group; ``None``: unknown."""
    try:
        line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        events = Path("/sys/fs/cgroup" + line.removeprefix("0::")) / "memory.events"
        counts = dict(line.split() for line in events.read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, StopIteration, KeyError, ValueError):
        return None


class _Lossy(io.RawIOBase):
    """Writes to a descriptor. What can't be written is lost."""

    def __init__(self, fd: int) -> None:
        self._descriptor = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, data)
        return len(data)


def outlive_full_disks() -> None:
    """Lose what this process prints when the disk is full, instead of raising: no run may fail for that."""
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(_Lossy(fd), errors="backslashreplace", line_buffering=True, write_through=True)  # type: ignore[type-var]
        for fd in (1, 2)
    )


def show_faults() -> None:
    """Have this process and its forks print the Python stack to descriptor 2 when a CPU fault ends them.

    In a task, descriptor 2 leads to its log.
    """
    faulthandler.enable(file=2)


@dataclass(frozen=True)
class Peer:
    """The process at the other end of a Unix socket. ``pid`` is 0 when it is in another namespace."""

    pid: int
    uid: int


def peer(connection: socket.socket) -> Peer | None:
    """Return who is at the other end of a Unix socket; ``None`` where the kernel can't tell."""
    if sys.platform == "linux":
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", data)
        return Peer(pid, uid)
    return None
