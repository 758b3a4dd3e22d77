"""Files in folders where somebody else may work too.

Reading follows no link and opens plain files only. Writing replaces a file as a whole, so no reader sees half of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from air_executor.errors import AirExecutorError, StateDirError

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
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(_plain(fd, path), "rb")


def read_document(
    path: str | Path, max_bytes: int, unfit: type[AirExecutorError], *, of: str | Path | None = None
) -> bytes | None:
    """Return what is in a file that anybody may have put there; ``None`` when there is none.

    :param unfit: raised if it is a link, no plain file (a pipe could be read for ever), longer than ``max_bytes``, or
        another user's than the folder ``of``, if that is given.
    :raises StateDirError: it can't be read now.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise unfit(f"{path} is a link, not a plain file") from None
        raise StateDirError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise unfit(f"{path} is not a plain file")
        if status.st_size > max_bytes:
            raise unfit(f"{path} is too long: it has {status.st_size} bytes, and at most {max_bytes} bytes are read")
        if of is not None and status.st_uid != (owner := os.lstat(of).st_uid):
            raise unfit(f"{path} belongs to user id {status.st_uid}, not {owner}")
        with open(fd, "rb", buffering=0, closefd=False) as file:
            return file.read()
    except OSError as error:
        raise StateDirError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)


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


def append_to_file(path: str | Path, data: bytes) -> int:
    """Write data at the end of a file for this user alone, and return how many bytes the file has.

    :raises OSError: it can't be written, is a link, or no plain file.
    """
    fd = open_to_append(path)
    try:
        os.write(fd, data)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _plain(fd: int, path: str | Path) -> int:
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(22, "it is not a plain file", str(path))


def replace_file(
    path: str | Path, data: bytes, *, is_durable: bool = False, check: Callable[[], None] | None = None
) -> os.stat_result:
    """Replace a file by one with ``data``, atomically, and return the new one's status.

    :param is_durable: atomically even if the machine loses power, which takes a wait for the disk.
    :param check: called right before the file is replaced, which what it raises prevents.
    :raises StateDirError: it can't be written.
    """
    folder, name = os.path.split(path)
    # A random name, not one with a pid: processes of several PID namespaces may share the folder.
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
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if check is not None:
            check()
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise StateDirError(f"cannot write {path}: {error.strerror}") from error
        raise
    return status


def modified_s(path: str | Path) -> float | None:
    """Return when a file was last changed, in seconds since the epoch; ``None`` if it is unknown."""
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return None


def is_fresh(moment_s: float | None, limit_s: float) -> bool:
    """Tell whether ``moment_s``, in seconds since the epoch, is less than ``limit_s`` seconds ago.

    A moment in the future is not fresh: the clock was set back, so nothing is known about how long ago it was.
    """
    return moment_s is not None and -CLOCK_STEP_S < time.time() - moment_s < limit_s
