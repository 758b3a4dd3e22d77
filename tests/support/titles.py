"""Processes by what they call themselves."""

from __future__ import annotations

import psutil


def title(process: psutil.Process) -> str:
    """Return what a process calls itself; nothing when it has gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_spare(process: psutil.Process) -> bool:
    """Tell whether a process is one that a launcher has forked ahead."""
    return title(process).startswith("air-executor spare")


def busy_children(process: psutil.Process) -> list[psutil.Process]:
    """Return the children of a launcher, without the one that it has forked ahead."""
    return [child for child in process.children() if not is_spare(child)]
