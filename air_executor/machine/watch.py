"""Watching folders for changes, with inotify where there is one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from pathlib import Path

# From <sys/inotify.h>.
_IN_CLOSE_WRITE = 0x8
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_Q_OVERFLOW = 0x4000
_IN_IGNORED = 0x8000
_IN_ONLYDIR = 0x01000000
_EVENTS = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_ONLYDIR

#: The head of an event: the folder's number, what happened, a cookie, and the length of the name that follows.
_EVENT = struct.Struct("iIII")


class Watch:
    """Becomes readable when a file appears in, leaves, or is written in one of the watched folders.

    Without inotify it never does, so its users have to poll as well.
    """

    def __init__(self) -> None:
        self._fd: int | None = None
        self._folders: dict[Path, int] = {}
        self._numbers: dict[int, Path] = {}
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            self._fd = fd if fd >= 0 else None

    def fileno(self) -> int | None:
        """Return the descriptor to wait on, if there is one."""
        return self._fd

    def add(self, folder: Path) -> None:
        """Watch a folder from now on, if it exists and is not watched yet."""
        if self._fd is not None:
            number = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _EVENTS)
            if number >= 0:
                self._folders[folder], self._numbers[number] = number, folder

    def remove(self, folder: Path) -> None:
        """Stop watching a folder."""
        number = self._folders.pop(folder, None)
        if self._fd is not None and number is not None:
            self._numbers.pop(number, None)
            self._libc.inotify_rm_watch(self._fd, number)

    def drain(self) -> set[tuple[Path | None, str]]:
        """Return what has changed: each folder, with a name in it. A folder ``None`` means that events were lost."""
        changed: set[tuple[Path | None, str]] = set()
        if self._fd is not None:
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self._fd, 1 << 16):
                    changed |= self._understand(data)
        return changed

    def _understand(self, data: bytes) -> set[tuple[Path | None, str]]:
        changed: set[tuple[Path | None, str]] = set()
        position = 0
        while position < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, position)
            begin = position + _EVENT.size
            position = begin + length
            name = os.fsdecode(data[begin:position].rstrip(b"\0"))
            if mask & _IN_Q_OVERFLOW:
                changed.add((None, ""))
            elif (folder := self._numbers.get(number)) is None:
                continue
            elif mask & _IN_IGNORED:  # the folder is gone, and its watch with it
                del self._numbers[number]
                if self._folders.get(folder) == number:
                    del self._folders[folder]
                changed.add((folder, ""))
            else:
                changed.add((folder, name))
        return changed

    def close(self) -> None:
        """Stop watching."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
