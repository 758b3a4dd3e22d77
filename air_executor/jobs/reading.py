"""Reading the files of a job. People, tasks and repositories may have put anything there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

from air_executor import jsontext
from air_executor.errors import JobError, StateDirError

#: The greatest lengths in bytes: of a file with all tasks of a job, and of its other files.
MAX_TASKS_BYTES = 1 << 30
MAX_BYTES = 64 << 20


def read(path: Path | str, max_bytes: int = MAX_BYTES) -> bytes | None:
    """Return what is in a file; ``None`` when there is none.

    :raises JobError: it is not a plain file, or too long. (Reading a pipe could take for ever.)
    :raises StateDirError: it can't be read now.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise JobError(f"{path} is a link, not a plain file") from None
        raise StateDirError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise JobError(f"{path} is not a plain file")
        if status.st_size > max_bytes:
            raise JobError(f"{path} is too long: {status.st_size} bytes, and {max_bytes} is the limit")
        with open(fd, "rb", closefd=False) as file:
            return file.read(max_bytes)
    except OSError as error:
        raise StateDirError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)


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
