"""The files of a job as they were at one moment: ``state.json``, ``tasks.json``, and the journal that continues it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from air_executor import jsontext
from air_executor.errors import JobError
from air_executor.jobs.reading import MAX_TASKS_BYTES, parse, read

#: What tells the files of a job at one moment from those at another; see :func:`signature`.
Signature = tuple[Any, ...]


@dataclass(frozen=True)
class Snapshot:
    """The files of a job as they were at one moment."""

    signature: Signature
    state: bytes
    """``state.json``."""
    tasks: list[Any]
    """The tasks in ``tasks.json``, not checked yet."""
    base: str
    """The digest of ``tasks.json``."""
    changes: dict[int, dict[str, Any]]
    """The changed tasks in the journal, by the numbers of their lines."""
    spoilt_lines: list[int]
    """The numbers of lines in the journal that can't be understood."""

    def entries(self) -> list[dict[str, Any]]:
        """Return all tasks as they stand in the files, oldest first. A task that has changed is there several times."""
        return [each for each in (*self.tasks, *self.changes.values()) if isinstance(each, dict)]


def take(folder: Path) -> Snapshot:
    """Read the files of a job as they are at one moment, also while its manager writes them.

    :raises JobError: they are missing, or can't be understood.
    :raises StateDirError: they can't be read.
    """
    while True:
        before = signature(folder)
        state, tasks = read(folder / "state.json", MAX_TASKS_BYTES), read(folder / "tasks.json", MAX_TASKS_BYTES)
        if state is None or tasks is None:
            raise JobError(f"{folder / ('tasks.json' if state else 'state.json')} is missing")
        base = digest(tasks)
        changes, spoilt = _parse_journal(read(folder / "journal.jsonl", MAX_TASKS_BYTES) or b"", base)
        if signature(folder) == before:
            break  # otherwise the journal may continue a tasks.json that was written meanwhile
    document = parse(tasks, folder / "tasks.json")
    if not isinstance(document, list):
        raise JobError(f"{folder.name}/tasks.json must be a list of tasks")
    return Snapshot(before, state, document, base, changes, spoilt)


def signature(folder: Path) -> Signature:
    """Return what tells ``state.json`` and ``tasks.json`` as they are now from what they were or will be."""
    found: list[Any] = []
    for name in ("state.json", "tasks.json"):
        try:
            found.append(identity((folder / name).stat()))
        except OSError:
            found.append(None)
    return tuple(found)


def identity(status: os.stat_result) -> tuple[int, int, int]:
    """Return what tells a file from those that will replace it."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def digest(data: bytes) -> str:
    """Return the digest by which a journal names the ``tasks.json`` that it continues."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _parse_journal(data: bytes, base: str) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """Return the changes since the ``tasks.json`` with digest ``base``, and the lines that can't be understood.

    Each line holds a whole task, so the lines after a spoilt one are still valid. If the first one is spoilt, nobody
    knows which ``tasks.json`` the journal continues, so none of them counts.
    """
    # Nothing follows the last newline, or the start of a line whose writer died.
    lines = data.split(b"\n")[:-1]
    entries: dict[int, Any] = {}
    for number, line in enumerate(lines, 1):
        with contextlib.suppress(ValueError):
            entries[number] = jsontext.loads(line, is_kept=True)
        if number == 1 and entries.get(1) != {"continues": base}:
            head = entries.get(1)
            is_of_another = isinstance(head, dict) and head.keys() == {"continues"}
            return {}, [] if is_of_another else [1]
    changes = {number: each for number, each in entries.items() if number > 1 and isinstance(each, dict)}
    return changes, [number for number in range(2, len(lines) + 1) if number not in changes]
