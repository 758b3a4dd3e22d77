"""The processes of a run, and their end: nothing of a try that is over may live beside the next one.

A runner is the reaper of all that its task started, and the launcher that of its runners: what its parent's death
leaves comes to them as a child. So each kills its children, and theirs as they come, until none is left. When runner
and launcher have died together, whoever finds that out looks for the run's processes in the whole machine.
"""

from __future__ import annotations

import functools
import math
import os
import resource
import select
import signal
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from air_executor.machine import system

#: In the environment of everything that a task starts: the id of its run. It tells whose a process is.
RUN_VARIABLE = "AIR_EXECUTOR_RUN"

#: The limit that carries a run's mark; ``None`` where there is no such limit.
_MARKED: int | None = getattr(resource, "RLIMIT_RTTIME", None)

#: A program that was started with this variable set to 1 outlives its task.
KEEP_VARIABLE = "AIR_EXECUTOR_KEEP"

#: A process that was killed is waited for so many seconds. One that is in the kernel for longer (uninterruptible
#: sleep: a network file system, a driver) executes nothing of the task any more, and an end does not wait for it.
STUCK_S = 10.0

#: One that may not be killed, as it belongs to another user, is waited for so many seconds: its parent may end it.
_FORBIDDEN_S = 2.0

#: A process that is to outlive its task says so from its ``exec`` on. So while the task has ended for less than so many
#: seconds, what is not older than that is not judged.
_YOUNG_S = 0.5

#: Without pidfds, how often it is looked whether a process has ended, in seconds.
_LOOK_S = 0.02

#: No environment or command line that is longer than this many bytes is looked at.
_MAX_BYTES = 1 << 20


# Which process it is


@dataclass(frozen=True)
class ProcessId:
    """A process as a document names it: by what no later process has in common with it, and no clock can change."""

    pid: int
    ticks: int | None
    """When it started, in ticks of the kernel's clock since the boot."""
    boot_id: str
    namespace: int | None
    """The PID namespace in which it has that pid."""

    @classmethod
    def own(cls) -> ProcessId:
        """Return that of the calling process."""
        process = look(os.getpid())
        return cls(os.getpid(), process.ticks if process else None, system.boot_id(), system.pid_namespace())

    @classmethod
    def from_document(cls, document: Any) -> ProcessId | None:
        """Read it from what :meth:`to_document` returned; ``None`` where it is not there, as in older documents."""
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
        """Tell whether the process lives. One that only waits to be reaped does not."""
        process = look(self.pid) if self.is_of_here else None
        return process is not None and process.ticks == self.ticks and not process.is_dead

    def send(self, signum: signal.Signals) -> bool:
        """Send a signal to the process, and to no other that has its pid by now.

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
        """Whether it only waits to be reaped."""
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
    data = _read(f"/proc/{pid}/stat")
    if not data:
        return None
    # The name stands in brackets and may hold anything, brackets too.
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


def _read(path: str) -> bytes:
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
    # From the file, not through getpwuid(): a directory service that hangs would hang whoever asks.
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"Uid:"):
            uid = line.split()[1].decode()
            names = (entry.split(":") for entry in _read("/etc/passwd").decode(errors="replace").splitlines())
            return next((f"user {name[0]}" for name in names if len(name) > 2 and name[2] == uid), f"user id {uid}")
    return "an unknown user"


def all_pids() -> list[int]:
    """Return the pids of all processes that this one can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if _has_proc() else psutil.pids()


# Children

#: Children of the process with the first pid that it had before it was what it is now.
_older: tuple[int, set[int]] = (0, set())


def leave_older_alone() -> None:
    """Count what this process has for children now as none: a script started it, and became this process."""
    global _older
    _older = (os.getpid(), set(_children()))


def has_older() -> bool:
    """Tell whether this process has children of before :func:`leave_older_alone`."""
    return _older[0] == os.getpid() and bool(_older[1])


def reaped(pid: int) -> None:
    """Take note that a child is gone, so that its pid may be another's."""
    _older[1].discard(pid)


def children() -> list[int]:
    """Return the children of this process, also those that have ended and wait to be reaped."""
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
    """Tell whether ``/proc`` shows users not all of their own processes: ``hidepid``, systemd's ``ProtectProc``."""
    mounts = _read("/proc/self/mounts").decode(errors="replace").splitlines()
    options = [line.split()[3] for line in mounts if line.split()[1:3] == ["/proc", "proc"]]
    hidepid = [option.partition("=")[2] for option in (options or [""])[-1].split(",") if option.startswith("hidepid=")]
    return any(value not in ("0", "off") for value in hidepid)


def _candidates() -> Iterator[int]:
    """Yield the pids that processes younger than this one can have. Costs half a second for a million."""
    me, last = os.getpid(), int((_read("/proc/loadavg").split() or [b"0"])[-1])
    if last >= me:
        yield from range(me + 1, last + 1)
        return
    yield from range(me + 1, int(_read("/proc/sys/kernel/pid_max") or b"32768") + 1)
    yield from range(2, last + 1)


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


def is_kept(pid: int) -> bool:
    """Tell whether a process is to outlive its task, by the environment that it was started with."""
    return f"{KEEP_VARIABLE}=1".encode() in _read(f"/proc/{pid}/environ").split(b"\0")


def is_launcher(pid: int) -> bool:
    """Tell whether a process is a launcher: by its title, or by what it was started with."""
    words = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").split()
    started = b"-m" in words and words[words.index(b"-m") + 1 :][:1] == [b"air_executor.launcher"]
    return (
        words[:2] == [b"air-executor", b"launcher"]
        or started
        or b"run_module('air_executor.launcher'" in b" ".join(words)
    )


def join(run_id: str) -> None:
    """Make this process, and all that will descend from it, the run's.

    Beside the variable, which a program may leave out of the environment of another, they carry the run's mark: a soft
    limit that only real-time scheduling heeds, and so high that it limits nothing. Forks, sessions and programs inherit
    it whatever their environment is.
    """
    os.environ[RUN_VARIABLE] = run_id
    if _MARKED is None:
        return
    soft, hard = resource.getrlimit(_MARKED)
    if hard == resource.RLIM_INFINITY and (soft == hard or _is_mark(soft)):  # else somebody wants that limit
        resource.setrlimit(_MARKED, (_mark_of(run_id), hard))


def _mark_of(run_id: str) -> int:
    return 1 << 62 | uuid.UUID(run_id).int & ((1 << 62) - 1)


def _is_mark(limit: int) -> bool:
    return limit >> 62 == 1


def signs_of(run_id: str, workload_id: str) -> tuple[str, ...]:
    """Return what :func:`whose` may return for a process of a run."""
    return run_id, workload_id, str(_mark_of(run_id))


def whose(pid: int) -> str | None:
    """Return the sign by which a process is a run's, see :func:`signs_of`; ``None``: it has none.

    That is its mark, or else the variable in its environment. A fork of before the mark has its parent's title.
    """
    for line in _read(f"/proc/{pid}/limits").splitlines():
        if line.startswith(b"Max realtime timeout") and (soft := line.split()[3]).isdigit() and _is_mark(int(soft)):
            return soft.decode()
    for entry in _read(f"/proc/{pid}/environ").split(b"\0"):
        if entry.startswith(RUN_VARIABLE.encode() + b"="):
            return entry.partition(b"=")[2].decode(errors="replace")
    words = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").split()
    for title in ((b"air-executor", b"runner"), (b"airflow", b"worker", b"--")):
        if tuple(words[: len(title)]) == title and len(words) > len(title):
            return words[len(title)].decode(errors="replace")
    return None


def kill(pid: int) -> bool:
    """Kill a process that can't be another by now: a child, or one that was just told from all others.

    :return: whether it may be killed.
    """
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True


def name_survivors(survivors: Iterable[Process]) -> str:
    """Return what is wrong with processes that could not be killed, as a sentence; nothing when there are none."""
    said = [
        f"{process} {'is in uninterruptible sleep' if process.state == 'D' else 'may not be killed by this user'}"
        for process in survivors
    ]
    return f"left behind, as it can't be killed: {', '.join(said)}" if said else ""


class Leftovers:
    """What is left below this process when its task has ended."""

    def __init__(self) -> None:
        self.killed: set[int] = set()
        """Those that were killed so far."""
        self.survivors: list[Process] = []
        """Those that could not be killed, and still live."""
        self._kept: set[int] = set()
        self._given_up: set[int] = set()

    @property
    def are_any(self) -> bool:
        """Whether something still lives: it was kept, or could not be killed."""
        return bool(self._kept or self._given_up)

    def end(self, patience_s: float = STUCK_S) -> None:
        """Kill every child of this process, and theirs as they come to it, until none is left that may be killed.

        :param patience_s: how long to wait for one that was killed, in seconds.
        """
        began_s = time.monotonic()
        forbidden: set[int] = set()
        while self._reap():
            left, are_young = [], False
            for pid in children():
                if pid in self._kept or pid in self._given_up:
                    continue
                if pid not in self.killed and is_kept(pid):
                    self._kept.add(pid)
                elif pid not in self.killed and time.monotonic() < began_s + _YOUNG_S and self._is_young(pid):
                    are_young = True
                else:
                    (self.killed if kill(pid) else forbidden).add(pid)
                    left.append(pid)
            until_s = began_s + (patience_s if set(left) - forbidden else min(patience_s, _FORBIDDEN_S))
            if are_young:
                time.sleep(_LOOK_S)
            elif not left or not _wait_for_any(left, until_s - time.monotonic()):
                self._given_up |= set(left)
                break
        self.survivors = [p for p in map(look, self._given_up) if p is not None and not p.is_dead]

    def _is_young(self, pid: int) -> bool:
        process = look(pid)
        return process is not None and process.age_s() < _YOUNG_S

    def _reap(self) -> bool:
        """Reap what has ended, and tell whether there are children left."""
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                reaped(pid)
                self._kept.discard(pid)
                self._given_up.discard(pid)
        except ChildProcessError:
            return False
        return True


def _wait_for_any(pids: Collection[int], timeout_s: float) -> bool:
    """Wait until one of these children has ended; ``False``: none has, and the time is over."""
    if timeout_s <= 0:
        return False
    fds = [fd for pid in pids if (fd := system.open_pidfd(pid)) is not None]
    try:
        if len(fds) < len(pids):
            time.sleep(_LOOK_S)
            return True  # that is to be looked at
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        for fd in fds:
            os.close(fd)
