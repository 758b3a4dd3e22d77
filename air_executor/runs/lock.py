"""A lock that the kernel frees when its holder dies: the evidence that a runner lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from air_executor.errors import StateDirError

#: Who looks whether a lock is held has it for a moment, at most this many seconds. Who wants it waits that long.
LOOKERS_S = 0.5

#: How often a lock that is held is tried again while waiting for it, in seconds.
_RETRY_S = 0.02

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class KernelLock:
    """An exclusive ``flock`` on a file, for the life of the process that took it.

    A forked child shares its parent's lock. To leave it to the parent alone, the child's copy is closed right
    after every fork; after an exec it is closed already.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._fd: int | None = None

    @property
    def name(self) -> str:
        """The name of the lock's file."""
        return os.path.basename(self.path)

    def acquire(self, timeout_s: float, *, create: bool = True) -> bool:
        """Take the lock, waiting at most ``timeout_s`` seconds for it.

        :param create: whether to make its file if there is none; otherwise, without a file, the lock is not taken.
        :return: whether it was taken.
        :raises StateDirError: the lock file cannot be opened, or its file system has no locks.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fd = os.open(self.path, _FLAGS | (os.O_CREAT if create else 0), 0o600)
            except OSError as error:
                if not create and isinstance(error, FileNotFoundError):
                    return False
                raise StateDirError(f"cannot open the lock file {self.path}: {error.strerror}") from error
            if self._try(fd):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_RETRY_S)

    def _try(self, fd: int) -> bool:
        """Take the lock through ``fd``, which is closed if that is not possible now."""
        is_taken = False
        try:
            is_taken = _flock(fd, fcntl.LOCK_EX, self.path) and self._is_at_path(fd)
        finally:
            if not is_taken:
                os.close(fd)
        if is_taken:
            self._fd = fd
            _held.add(self)
        return is_taken

    def _renew(self) -> None:
        if self._fd is None:
            return
        if self._is_at_path(self._fd):
            os.utime(self._fd)  # so that nothing that deletes old files takes it for one
            return
        former = self._fd
        if self.acquire(timeout_s=0):
            os.close(former)

    def _is_at_path(self, fd: int) -> bool:
        # The former holder may have removed the file between our open and our lock: then it guards nothing.
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def release(self, *, keep_file: bool = False) -> None:
        """Free the lock, and remove its file first, unless others are to find it."""
        if self._fd is not None:
            # Another file may be there by now: the lock of somebody who found none.
            if not keep_file and self._is_at_path(self._fd):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            _held.discard(self)


#: The locks that this process holds.
_held: set[KernelLock] = set()


def renew_held() -> None:
    """Recreate the files of the locks that this process holds, where somebody has deleted them.

    :raises OSError: it is not possible, or :class:`StateDirError`.
    """
    for lock in list(_held):
        lock._renew()


def _leave_to_parent() -> None:
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_leave_to_parent)


def is_held(path: str | Path) -> bool:
    """Tell whether a process holds the lock at ``path``. To look takes a shared lock for a moment."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # it may be a pipe
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StateDirError(f"cannot open the lock file {path}: {error.strerror}") from error
    try:
        # Shared, so that two who look at the same moment do not take each other for the holder.
        return not _flock(fd, fcntl.LOCK_SH, path)
    finally:
        os.close(fd)


def _flock(fd: int, how: int, path: str | Path) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StateDirError(
            f"cannot lock {path}: {error.strerror}. The state directory must be on a local disk"
        ) from error
    return True
