"""The journal of a job: one line for each change to a task since ``tasks.json`` was written."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import orjson

from air_executor.errors import StateDirError


class Journal:
    """Writes ``journal.jsonl``. Its first line names the ``tasks.json`` that it continues, by its digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether lines were appended since it was opened here."""
        return self._fd is not None

    def append(self, lines: bytes, base: str) -> None:
        """Append whole lines, in a new journal unless one is open.

        :param base: the digest of the ``tasks.json`` that a new journal continues.
        :raises StateDirError: they can't be written; then none of them is.
        """
        is_new = self._fd is None
        try:
            if self._fd is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fd = os.open(self.path, flags, 0o600)
                lines = orjson.dumps({"continues": base}) + b"\n" + lines
            written = os.write(self._fd, lines)
            if written < len(lines):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if is_new:
                self.close()  # it has no first line
            raise StateDirError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; the next lines begin a new journal."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):  # what was written is written
                os.close(fd)
