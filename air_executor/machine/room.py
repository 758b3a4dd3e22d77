"""How much memory and CPU this machine has for the processes here, and whether it runs short of memory now.

A container, or a service of systemd, may have less than the machine: the limits of its control groups count, of version
1 and 2, those of all groups above it included, as far as they can be seen from here.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

#: In version 1, a group without a limit has nearly 2**63.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class _Names:
    """What a version of control groups calls its files."""

    limit: str
    used: str
    cache: tuple[str, str]
    """In ``memory.stat``: what is in memory of files, which the kernel can take back at any time."""
    events: str
    """Has a line ``oom_kill`` with the number of processes that were killed."""


_V2 = _Names("memory.max", "memory.current", ("inactive_file", "active_file"), "memory.events")
_V1 = _Names(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
    "memory.oom_control",
)


def memory_bytes() -> int:
    """Return how much memory there is."""
    limits = (_number(folder / names.limit) for folder, names in _memory_groups())
    return int(min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)]))


def available_bytes() -> int:
    """Return how much memory new processes could have now without making others swap."""
    left = [psutil.virtual_memory().available]
    for folder, names in _memory_groups():
        limit, used = _number(folder / names.limit), _number(folder / names.used)
        if limit is not None and used is not None:
            left.append(max(0, int(limit - used) + _cache_bytes(folder, names)))
    return min(left)


def cpus() -> float:
    """Return how many CPUs there are; a control group may have a part of one."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quotas = (_cpu_quota(folder) for folder in (*_folders("cpu"), *_folders("")))
    return min([count, *(quota for quota in quotas if quota is not None)])


def oom_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory; ``None``: unknown.

    Where a control group has a limit, only those in the group count: others' trouble is not ours.
    """
    limited = ((folder / names.events) for folder, names in _limited_groups())
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(_table(next(limited, Path("/proc/vmstat")))["oom_kill"])
    return None


def memory_stall() -> float | None:
    """Return for which part of the last ten seconds some process waited for memory, from 0 to 1; ``None``: unknown.

    The kernel calls it pressure stall information. Control groups of version 2 have their own.
    """
    limited = (folder / "memory.pressure" for folder, names in _limited_groups() if names is _V2)
    with contextlib.suppress(OSError, ValueError, KeyError, StopIteration):
        lines = next(limited, Path("/proc/pressure/memory")).read_text().splitlines()
        some = next(line for line in lines if line.startswith("some "))
        return float(dict(part.split("=") for part in some.split()[1:])["avg10"]) / 100
    return None


def _limited_groups() -> Iterator[tuple[Path, _Names]]:
    return ((folder, names) for folder, names in _memory_groups() if _number(folder / names.limit) is not None)


def _memory_groups() -> Iterator[tuple[Path, _Names]]:
    for folder in _folders(""):
        yield folder, _V2
    for folder in _folders("memory"):
        yield folder, _V1


@functools.lru_cache(maxsize=4)
def _folders(controller: str) -> list[Path]:
    """Return the folders of this process's control group and of those above it.

    :param controller: of version 1; empty for version 2.
    """
    group = _group(controller)
    mount = _mount(controller)
    if group is None or mount is None:
        return []
    root, top = mount
    # In a container the mount may show only a part of the tree, of which the group's path says the whole.
    inside = group.removeprefix(root) if root != "/" and group.startswith(root) else group
    folder = Path(str(top) + "/" + inside.strip("/"))
    if not folder.is_dir():
        folder = top
    return [each for each in (folder, *folder.parents) if each == top or top in each.parents]


def _group(controller: str) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == controller or (controller and controller in controllers.split(",")):
                return path
    return None


def _mount(controller: str) -> tuple[str, Path] | None:
    """Return which part of the tree is mounted, and where."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, after = line.split(" - ", 1)
            kind, _, options = after.split(" ", 2)
            if kind == ("cgroup" if controller else "cgroup2") and (not controller or controller in options.split(",")):
                root, where = before.split()[3:5]
                return root, Path(where)
    return None


def _number(path: Path) -> float | None:
    """Return the number in a file; ``None``: there is none, or it stands for no limit."""
    with contextlib.suppress(OSError, ValueError):
        value = float(path.read_text())
        return value if math.isfinite(value) and value < _NO_LIMIT else None
    return None


def _cache_bytes(folder: Path, names: _Names) -> int:
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = _table(folder / "memory.stat")
        return sum(int(found[name]) for name in names.cache)
    return 0


def _cpu_quota(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(float, (folder / "cpu.max").read_text().split())  # "max" is no number
        return quota / period
    quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def _table(path: Path) -> dict[str, str]:
    return dict(line.split(None, 1) for line in path.read_text().splitlines())
