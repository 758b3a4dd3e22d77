"""A note of the package that a launcher is importing, so that later launchers know on which one it died."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from types import TracebackType

from air_executor.errors import StateDirError
from air_executor.machine.safe_files import replace_file
from air_executor.runs.lock import KernelLock

_PREFIX = "importing."

#: No package's name is longer than this many characters.
_LONGEST = 1000


class ImportNote:
    """The note of one launcher, from its first import to its last. Its lock tells whether the launcher lives.

    A note that can't be written is left out: it matters only when an import goes wrong.
    """

    def __init__(self, folder: Path) -> None:
        """:param folder: the state directory."""
        self._folder = folder
        name = f"{_PREFIX}{uuid.uuid4()}"
        self._lock = KernelLock(folder / f"{name}.lock")
        self._note = folder / name
        self.fatal: list[str] = []
        """The packages that launchers were importing when they died."""

    def __enter__(self) -> ImportNote:
        self.fatal = self._take_those_of_the_dead()
        with contextlib.suppress(StateDirError):
            self._lock.acquire(timeout_s=0)
        return self

    def begin(self, package: str) -> None:
        """Note that a package is about to be imported."""
        with contextlib.suppress(StateDirError):
            replace_file(self._note, package.encode())

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        # This process has survived the imports.
        self._note.unlink(missing_ok=True)
        self._lock.release()

    def _take_those_of_the_dead(self) -> list[str]:
        packages = []
        for path in self._folder.glob(f"{_PREFIX}*.lock"):
            lock = KernelLock(path)
            with contextlib.suppress(OSError, StateDirError, UnicodeDecodeError):
                if not lock.acquire(timeout_s=0, create=False):
                    continue  # its launcher lives, or has just removed it
                try:
                    note = path.with_suffix("")
                    fd = os.open(note, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                    with open(fd, "rb") as file:
                        packages.append(file.read(_LONGEST).decode())
                    note.unlink()
                finally:
                    lock.release()
        return packages
