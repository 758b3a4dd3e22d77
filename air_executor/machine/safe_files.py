"""Opening files that somebody else may have put there: links are not followed, and only plain files are opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from air_executor.errors import StateDirError


def read_plain(path: str | Path) -> bytes:
    """Return what is in a file.

    :raises OSError: it can't be read, is a link, or no plain file.
    """
    with open_plain(path) as file:
        return file.read()


def open_plain(path: str | Path) -> BinaryIO:
    """Open a file to read it.

    :raises OSError: it can't be read, is a link, or no plain file.
    """
    # A pipe without a writer would be waited for without O_NONBLOCK.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(_plain(fd, path), "rb")


def open_log(path: str | Path) -> BinaryIO:
    """Open a log to read it.

    :raises FileNotFoundError: it is not there.
    :raises StateDirError: it can't be read, is a link, or no plain file.
    """
    try:
        return open_plain(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateDirError(f"cannot read {path}: {error.strerror}") from error


def open_to_append(path: str | Path) -> int:
    """Open a file for this user alone, to write at its end, and return its descriptor.

    :raises OSError: it can't be written, is a link, or no plain file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return _plain(os.open(path, flags, 0o600), path)


def _plain(fd: int, path: str | Path) -> int:
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(22, "it is not a plain file", str(path))
