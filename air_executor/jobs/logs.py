"""The logs of a job's tasks, which several generations of the job may share."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from air_executor.errors import StateDirError
from air_executor.jobs.files import JobFiles
from air_executor.runs.record import now


def separate_logs(files: JobFiles) -> None:
    """Append a line to each log: a new generation of the job begins. A log that can't be written is skipped.

    :raises StateDirError: the folder of the logs can't be read.
    """
    line = f"-- generation {files.job.generation}, begun {now()}\n".encode()
    for name in names_in(files.logs):
        path = files.logs / name
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder of a job; none if there is no such folder.

    :raises StateDirError: it can't be read.
    """
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StateDirError(f"cannot read {folder}: {error.strerror}") from error
