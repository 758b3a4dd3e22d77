"""Reading the files of a job. People, tasks and repositories may have put anything there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from air_executor import jsontext
from air_executor.errors import JobError, StateDirError
from air_executor.machine.safe_files import read_document

#: The greatest lengths in bytes: of a file with all tasks of a job, and of its other files.
MAX_TASKS_BYTES = 1 << 30
MAX_BYTES = 64 << 20


def read(path: Path | str, max_bytes: int = MAX_BYTES) -> bytes | None:
    """Return what is in a file; ``None`` when there is none.

    :raises JobError: it is not a plain file, or too long. (Reading a pipe could take for ever.)
    :raises StateDirError: it can't be read now.
    """
    return read_document(path, max_bytes, JobError)


def status(path: Path) -> os.stat_result | None:
    """Return what ``lstat`` says of a path; ``None`` when nothing is there.

    :raises StateDirError: it can't be looked at, as a folder above it is closed.
    """
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateDirError(f"cannot look at {path}: {error.strerror}") from error


def parse(data: bytes, where: Path | str) -> Any:
    """Return the value of JSON text.

    :raises JobError: it is not JSON; the message says ``where``.
    """
    try:
        return jsontext.loads(data, is_kept=True)
    except ValueError as error:
        raise JobError(f"{where} is not JSON: {error}") from None


def entries(data: bytes, where: Path | str) -> list[dict[str, Any]]:
    """Return the objects of a file that has one on each line. A line without a newline is left out: its writer died.

    :raises JobError: a line is not an object with an ``id``; the message says which.
    """
    found = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        entry = parse(line, f"{where}, line {number},")
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            raise JobError(f"{where}, line {number}: a task must be an object with an id")
        found.append(entry)
    return found
