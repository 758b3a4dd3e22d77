"""Files in folders where somebody else may work too.

Reading follows no link and opens plain files only. Writing replaces a file as a whole, so no reader sees half of it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from typing import BinaryIO

from air_executor.errors import StateDirError

#: The clocks of file systems and processes may differ by this many seconds.
CLOCK_STEP_S = 5.0


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


def replace_file(path: str | Path, data: bytes, *, is_durable: bool = False) -> None:
    """Put ``data`` in the place of a file, whole or not at all.

    :param is_durable: even if the machine loses power; the disk is waited for.
    :raises StateDirError: it can't be written.
    """
    folder, name = os.path.split(path)
    # By chance, and not to be there yet: processes of several PID namespaces may share the folder.
    temporary = os.path.join(folder, f".{name}.{os.urandom(8).hex()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateDirError(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if is_durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise StateDirError(f"cannot write {path}: {error.strerror}") from error


def modified_s(path: str | Path) -> float | None:
    """Return when a file was last changed, in seconds since the epoch; ``None`` if it is unknown."""
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return None


def is_fresh(moment_s: float | None, limit_s: float) -> bool:
    """Tell whether ``moment_s``, in seconds since the epoch, is less than ``limit_s`` seconds ago.

    A moment in the future is not fresh: the clock was set back, and what it says of the past is worth nothing.
    """
    return moment_s is not None and -CLOCK_STEP_S < time.time() - moment_s < limit_s
