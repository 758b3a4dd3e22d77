"""The launcher's log, kept short."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

#: A log of more than this many bytes is cut to its last part, of this many.
MAX_BYTES, _KEPT_BYTES = 1 << 20, 1 << 18

#: How often the length is checked, in seconds.
_LOOK_S = 1.0


class Log:
    """The file to which this process and its forks print."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked_s = 0.0

    def cut(self) -> None:
        """Cut the log to its last part if it is too long. If the output goes to another file, leave it alone."""
        if time.monotonic() - self._looked_s < _LOOK_S:
            return
        self._looked_s = time.monotonic()
        with contextlib.suppress(OSError):
            status = os.fstat(1)
            if not stat.S_ISREG(status.st_mode) or status.st_size <= MAX_BYTES:
                return
            with open(self._path, "r+b", opener=_plain) as file:
                if not os.path.samestat(os.fstat(file.fileno()), status):
                    return
                file.seek(-_KEPT_BYTES, os.SEEK_END)
                kept = file.read(_KEPT_BYTES).partition(b"\n")[2]
                # In place: other processes have the file open, and append to it.
                os.ftruncate(file.fileno(), 0)
            os.write(1, b"(what was here before was removed: the log had become too long)\n" + kept)


def _plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
