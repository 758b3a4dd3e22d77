"""Which jobs have ended, in one file, so that nobody needs to open the files of all jobs to find those that have not.

``<state_dir>/jobs/.ended/index`` has a line for each end of a job: its name, and the signature of its ``state.json``
then. The line holds as long as ``state.json`` has that signature; one that was edited, checked out or begun anew since
is looked at again. A lost line costs a look at the job, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import orjson

from air_executor.errors import AirExecutorError
from air_executor.machine.safe_files import replace_file

_FOLDER, _NAME = ".ended", "index"

#: The lines of jobs that are gone are removed whenever the file has grown by this many bytes.
_COMPACT_BYTES = 1 << 20

#: A longer file is not ours.
_MAX_BYTES = 256 << 20

#: What tells a ``state.json`` from others: its inode, time of change in nanoseconds, and size in bytes.
Mark = tuple[int, int, int]


def mark_of(folder: str | Path) -> Mark | None:
    """Return the signature of a job's ``state.json``; ``None`` when it can't be looked at."""
    try:
        status = os.lstat(os.path.join(folder, "state.json"))
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def note(folder: Path) -> None:
    """Note that the job in ``folder`` has ended, as its ``state.json`` says now. What can't be noted is not."""
    with contextlib.suppress(OSError):
        path = folder.parent / _FOLDER / _NAME
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            line = orjson.dumps([folder.name, mark_of(folder)]) + b"\n"
            size = os.fstat(fd).st_size
            os.write(fd, line)
        finally:
            os.close(fd)
        if (size + len(line)) // _COMPACT_BYTES > size // _COMPACT_BYTES:
            _compact(folder.parent, path)


def noted(jobs: Path) -> dict[str, Mark]:
    """Return the names of jobs that have ended once, with the signatures of their ``state.json`` then."""
    try:
        fd = os.open(jobs / _FOLDER / _NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        with open(fd, "rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError:
        return {}
    found: dict[str, Mark] = {}
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError, TypeError):
            name, (inode, changed_ns, size) = orjson.loads(line)
            if isinstance(name, str):
                found[name] = (inode, changed_ns, size)
    return found


def _compact(jobs: Path, path: Path) -> None:
    """Remove the lines that do not hold. Lines that others add meanwhile may be lost."""
    lines = (orjson.dumps([name, mark]) + b"\n" for name, mark in noted(jobs).items() if mark_of(jobs / name) == mark)
    with contextlib.suppress(AirExecutorError):
        replace_file(path, b"".join(lines))
