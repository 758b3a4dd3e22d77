"""What is remembered of tasks whose memory limit depends on earlier tries or runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from air_executor.errors import RecordError, StateDirError
from air_executor.machine.safe_files import append_to_file, read_document, replace_file
from air_executor.runs.record import Identity

#: This many of the last runs count.
RUNS = 50

#: A file with more bytes is shortened to the last runs.
_LONG_BYTES = 1 << 12

_MAX_BYTES = 1 << 20

#: A longer line is no number of bytes.
_DIGITS = 18

_KEEP_S = 400 * 86400.0


class Learned:
    """The files below one folder: a line for each end for lack of memory, and one for each measured run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def memory_ends(self, who: Identity) -> int:
        """Return how many earlier tries of the same work ended for lack of memory. A first try begins anew."""
        path = self._of_work(who)
        if who.try_number in (None, 1):
            with contextlib.suppress(OSError):
                os.unlink(path)
            return 0
        return len(self._numbers(path))

    def note_memory_end(self, who: Identity, peak_bytes: int) -> None:
        """Note that a try ended for lack of memory.

        :raises StateDirError: that can't be written.
        """
        self._append(self._of_work(who), peak_bytes)

    def ends(self, who: Identity) -> list[int]:
        """Return what the tries of the same work, up to this one, held that ended for lack of memory."""
        return self._numbers(self._of_work(who))

    def document(self, who: Identity) -> dict[str, list[int]]:
        """Return what is known before a try, for a host that knows less."""
        return {"ends": self.ends(who) if self.memory_ends(who) else [], "peaks": self.peaks(who)}

    def take(self, who: Identity, document: Mapping[str, Any]) -> None:
        """Take over what another host knows, unless more is known here.

        :raises StateDirError: that can't be written.
        """
        for path, numbers in ((self._of_work(who), document["ends"]), (self._of_task(who), document["peaks"])):
            if len(numbers) > len(self._numbers(path)[-RUNS:]):
                self._make_folder()
                replace_file(path, b"".join(b"%d\n" % int(each) for each in numbers))

    def peaks(self, who: Identity) -> list[int]:
        """Return how many bytes the last runs of the same task have held at most, whatever DAG run they were in."""
        return self._numbers(self._of_task(who))[-RUNS:]

    def note_peak(self, who: Identity, peak_bytes: int) -> None:
        """Note how many bytes a run has held at most.

        :raises StateDirError: that can't be written.
        """
        self._append(self._of_task(who), peak_bytes)

    def seen(self, who: Identity) -> list[int]:
        """Return the same of runs that were looked at only now and then: without a limit that depends on it."""
        return self._numbers(self._of_task(who, "seen"))[-RUNS:]

    def note_seen(self, who: Identity, peak_bytes: int) -> None:
        """Note that of such a run.

        :raises StateDirError: that can't be written.
        """
        self._append(self._of_task(who, "seen"), peak_bytes)

    def prune(self) -> None:
        """Remove what has not changed for more than a year: some tasks run once a year."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                with contextlib.suppress(OSError):
                    if path.lstat().st_mtime < time.time() - _KEEP_S:
                        path.unlink()

    def _of_work(self, who: Identity) -> str:
        # Not by the id of the workload: Airflow gives each try one of its own.
        return self._path(
            "ends", who.kind, who.job_name, who.dag_id, who.dag_run_id, who.task_id, who.map_index, who.team
        )

    def _of_task(self, who: Identity, what: str = "peaks") -> str:
        return self._path(what, who.kind, who.job_name, who.dag_id, who.task_id, who.team)

    def _path(self, *key: object) -> str:
        return os.path.join(self._folder, hashlib.sha256(repr(key).encode()).hexdigest()[:32])

    def _numbers(self, path: str) -> list[int]:
        try:
            data = read_document(path, _MAX_BYTES, RecordError)
        except (RecordError, StateDirError):
            return []
        return [int(line) for line in (data or b"").splitlines() if line.isdigit() and len(line) <= _DIGITS]

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateDirError(f"cannot make {self._folder}: {error.strerror}") from error

    def _append(self, path: str, number: int) -> None:
        line = b"%d\n" % number
        self._make_folder()
        try:
            is_long = append_to_file(path, line) > _LONG_BYTES
        except OSError as error:
            raise StateDirError(f"cannot write {path}: {error.strerror}") from error
        if is_long:  # what another process adds meanwhile is lost, which does no harm
            replace_file(path, b"".join(b"%d\n" % each for each in self._numbers(path)[-RUNS:]))
