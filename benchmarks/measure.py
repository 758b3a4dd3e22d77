"""What processes use, from the kernel, and figures made of many values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MB = 1_000_000


@dataclass(frozen=True)
class Memory:
    """Memory of processes together."""

    pss_bytes: int
    """Their own, and their share of what they share with others."""
    uss_bytes: int
    """Their own alone: what would be free if any one of them ended."""
    processes: int


def memory(processes: Iterable[psutil.Process]) -> Memory:
    """Return what processes hold now; those that have ended hold nothing."""
    pss_kb = uss_kb = count = 0
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        fields = {name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines()[1:])}
        pss_kb += int(fields["Pss"][0])
        uss_kb += int(fields["Private_Clean"][0]) + int(fields["Private_Dirty"][0])
        count += 1
    return Memory(pss_kb * 1024, uss_kb * 1024, count)


def cpu_s(processes: Iterable[psutil.Process], *, children: bool = True) -> float:
    """Return the CPU time in seconds of processes, with that of their children that have ended and were waited for."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
            if children:
                total += times.children_user + times.children_system
    return total


def family(*processes: psutil.Process) -> set[psutil.Process]:
    """Return processes with all that descend from them."""
    found = set(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found.update(process.children(recursive=True))
    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of ``values`` that at least ``percent`` of them do not exceed."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]
