"""What a process and all its descendants use now."""

from __future__ import annotations

import psutil


def of_family(pid: int) -> tuple[int | None, float | None]:
    """Return the memory and the CPU time of a process and all its descendants: bytes and seconds.

    Memory is the proportional set size (a shared page counts for each process in part), or the resident one where the
    kernel does not tell. ``None`` for both when the process is gone.
    """
    memory, cpu = 0, 0.0
    try:
        top = psutil.Process(pid)
        family = [top, *top.children(recursive=True)]
    except psutil.Error:
        return None, None
    for process in family:
        try:
            memory += _memory_bytes(process)
            times = process.cpu_times()
            cpu += times.user + times.system
        except psutil.Error:
            continue  # it has ended meanwhile
    return memory, round(cpu, 2)


def _memory_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):
        return int(process.memory_info().rss)
