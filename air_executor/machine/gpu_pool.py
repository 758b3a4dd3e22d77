"""Which GPUs there are, what CUDA calls them, and by which lock each is leased.

CUDA numbers the GPUs that a process can see, from 0. In a container those are the ones that it was given, so its GPU 0
may be the machine's third, ``/dev/nvidia2``. What a task gets in ``CUDA_VISIBLE_DEVICES`` is CUDA's number; the lock is
named after the device, so that two containers that share a state directory do not lease it twice. An entry of a pool is
``NUMBER``, or ``NUMBER@DEVICE`` where the two differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence


def cuda_name(gpu: str) -> str:
    """Return what a task's ``CUDA_VISIBLE_DEVICES`` says for an entry of a pool."""
    return gpu.partition("@")[0]


def lock_name(gpu: str) -> str:
    """Return the name of the lock for an entry of a pool."""
    return gpu.rpartition("@")[2].replace("/", "_")  # older drivers name parts of GPUs MIG-GPU-<id>/1/2


def devices(folder: str = "/dev") -> list[int]:
    """Return the numbers of the NVIDIA devices that this process can see.

    The driver makes one ``/dev/nvidiaN`` per GPU. Asking the driver itself would load it into a scheduler.
    """
    found = (re.fullmatch(r"nvidia(\d+)", name) for name in os.listdir(folder))
    return sorted(int(match.group(1)) for match in found if match)


def pool(text: str, there: Sequence[int], visible: str | None) -> tuple[str, ...]:
    """Return the GPUs to offer.

    :param text: the option: numbers or UUIDs with commas, or ``auto`` for all.
    :param there: as :func:`devices` returns it.
    :param visible: ``CUDA_VISIBLE_DEVICES`` of this process, which restricts it; ``None`` when it is not set.
    :raises ValueError: the option can't be used.
    """
    shown = None if visible is None else _shown(visible, len(there))
    if text.strip() == "auto":
        names = [str(number) for number in range(len(there))] if shown is None else shown
    else:
        names = [part.strip() for part in text.split(",") if part.strip()]
        for name in names:
            # It becomes the name of a lock file.
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(f"{name!r} is not a GPU number or UUID")
        if len(set(names)) != len(names):
            raise ValueError("names a GPU twice")
        if shown is not None:
            names = [name for name in names if not _is_hidden(name, shown)]
    return tuple(_entry(name, there) for name in names)


def _entry(name: str, there: Sequence[int]) -> str:
    if not name.isdigit() or int(name) >= len(there) or str(there[int(name)]) == name:
        return name
    return f"{name}@{there[int(name)]}"


def _shown(visible: str, count: int) -> list[str]:
    """Return what CUDA reads in ``CUDA_VISIBLE_DEVICES``: the names up to the first invalid one."""
    shown: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        is_number = name.isdigit() and (not count or int(name) < count)
        if not is_number and not re.fullmatch(r"(GPU|MIG)-[A-Za-z0-9/_-]+", name):
            break
        if name not in shown:
            shown.append(name)
    return shown


def _is_hidden(name: str, shown: Sequence[str]) -> bool:
    """Tell whether a GPU is certainly not among those that are shown. A number and a UUID can't be compared."""
    if any(other.isdigit() != name.isdigit() for other in shown):
        return False
    if name.isdigit():
        return name not in shown
    return not any(name.startswith(other) or other.startswith(name) for other in shown)  # UUIDs may be shortened
