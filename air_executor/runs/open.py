"""Open runs: those that live, and those whose end has not been reported yet.

Each has a link in one folder, so that nobody has to read the records of all runs to find them.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from air_executor.errors import RecordError, StateDirError
from air_executor.runs.record import check_id

#: This file says that every open run has its link; its modification time says up to when that was checked.
_COMPLETE = ".complete"

#: A link is made before its run's folder, by at most this many seconds.
_BIRTH_S = 60.0


class OpenRuns:
    """The links of one state directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, run_id: str) -> None:
        """Note that a run is open. If the folder is missing, nobody relies on it, and nothing is noted.

        :raises StateDirError: it cannot be noted.
        """
        try:
            os.symlink(os.path.join(os.pardir, "runs", run_id), os.path.join(self.folder, run_id))
        except (FileExistsError, FileNotFoundError):
            return
        except OSError as error:
            raise StateDirError(f"cannot make {self.folder / run_id}: {error.strerror}") from error

    def remove(self, run_id: str) -> None:
        """Note that nobody waits for a run any more. A link that can't be removed only costs time."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.folder, run_id))

    def has(self, run_id: str) -> bool:
        """Tell whether a run has a link."""
        return os.path.lexists(os.path.join(self.folder, run_id))

    def ids(self) -> set[str]:
        """Return the ids of the runs that have a link."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return set()
        return {name for name in names if _is_id(name)}

    def checked_s(self) -> float | None:
        """Return up to when all open runs have links, in seconds since the epoch; ``None``: nobody has checked."""
        try:
            return os.lstat(self.folder / _COMPLETE).st_mtime
        except OSError:
            return None

    def note_checked(self, moment_s: float) -> None:
        """Note that all open runs of before ``moment_s`` have links.

        :raises StateDirError: it cannot be noted.
        """
        path = self.folder / _COMPLETE
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            os.utime(path, (moment_s, moment_s))
        except OSError as error:
            raise StateDirError(f"cannot write {path}: {error.strerror}") from error

    def remove_stale(self, run_ids: set[str]) -> None:
        """Remove the links of runs that no longer exist.

        :param run_ids: all runs that exist.
        """
        for run_id in self.ids() - run_ids:
            with contextlib.suppress(OSError):
                if time.time() - os.lstat(self.folder / run_id).st_mtime > _BIRTH_S:
                    os.unlink(self.folder / run_id)


def _is_id(name: str) -> bool:
    try:
        return check_id(name) == name
    except RecordError:
        return False
