"""Whose a process is: what it inherits says which run it belongs to, and whether it may outlive its task."""

from __future__ import annotations

import os
import resource
import uuid

from air_executor.machine.processes import read_proc

#: The environment of everything that a task starts has the id of its run in this variable.
RUN_VARIABLE = "AIR_EXECUTOR_RUN"

#: The limit that carries a run's mark; ``None`` where the system has no such limit.
_MARKED: int | None = getattr(resource, "RLIMIT_RTTIME", None)

#: A program that is started with this variable set to 1 outlives its task.
KEEP_VARIABLE = "AIR_EXECUTOR_KEEP"


def is_kept(pid: int) -> bool:
    """Tell whether a process may outlive its task, by the environment that it was started with."""
    return f"{KEEP_VARIABLE}=1".encode() in read_proc(f"/proc/{pid}/environ").split(b"\0")


def is_cleaner(pid: int) -> bool:
    """Tell whether a process is a helper of Python's that removes shared memory of the processes that have ended.

    It ends by itself when they have: :mod:`multiprocessing.resource_tracker`, and joblib's.
    """
    return b"resource_tracker import main" in read_proc(f"/proc/{pid}/cmdline")


def is_launcher(pid: int) -> bool:
    """Tell whether a process is a launcher: by its title, or by what it was started with."""
    words = read_proc(f"/proc/{pid}/cmdline").replace(b"\0", b" ").split()
    started = b"-m" in words and words[words.index(b"-m") + 1 :][:1] == [b"air_executor.launcher"]
    return (
        words[:2] == [b"air-executor", b"launcher"]
        or started
        or b"run_module('air_executor.launcher'" in b" ".join(words)
    )


def join(run_id: str) -> None:
    """Mark this process, and all that will descend from it, as the run's.

    They inherit a variable, which a program may leave out of another one's environment, and the run's mark: a soft
    limit that applies to real-time scheduling only, and is so high that it limits nothing. Forks, sessions and programs
    inherit the mark whatever their environment is.
    """
    os.environ[RUN_VARIABLE] = run_id
    if _MARKED is None:
        return
    soft, hard = resource.getrlimit(_MARKED)
    if hard == resource.RLIM_INFINITY and (soft == hard or _is_mark(soft)):  # else somebody has set that limit
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

    That is its mark, or else the variable in its environment, or else its title: a fork has that of its parent.
    """
    for line in read_proc(f"/proc/{pid}/limits").splitlines():
        if line.startswith(b"Max realtime timeout") and (soft := line.split()[3]).isdigit() and _is_mark(int(soft)):
            return soft.decode()
    for entry in read_proc(f"/proc/{pid}/environ").split(b"\0"):
        if entry.startswith(RUN_VARIABLE.encode() + b"="):
            return entry.partition(b"=")[2].decode(errors="replace")
    words = read_proc(f"/proc/{pid}/cmdline").replace(b"\0", b" ").split()
    for title in ((b"air-executor", b"runner"), (b"airflow", b"worker", b"--")):
        if tuple(words[: len(title)]) == title and len(words) > len(title):
            return words[len(title)].decode(errors="replace")
    return None
