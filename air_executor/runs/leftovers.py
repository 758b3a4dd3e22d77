"""What a try left behind and nobody could kill: the next try of the same work waits for its end."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from air_executor.errors import RecordError, StateDirError
from air_executor.machine.processes import Process, ProcessId
from air_executor.machine.safe_files import read_document, replace_file
from air_executor.runs.record import Identity

#: No document of this kind is longer than this many bytes.
_MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Leftover:
    """A process that an earlier try left behind."""

    id: ProcessId
    text: str
    """What it is, in words."""


class LeftoverNotes:
    """The notes below one folder, a file for each piece of work of which something is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, who: Identity, survivors: Sequence[Process]) -> None:
        """Note what a try left behind.

        :raises StateDirError: it can't be written.
        """
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateDirError(f"cannot make {self._folder}: {error.strerror}") from error
        document = [{**process.id.to_document(), "text": str(process)} for process in survivors]
        replace_file(self._path(who), orjson.dumps(document))

    def living(self, who: Identity) -> list[Leftover]:
        """Return what earlier tries of the same work left behind and still lives. If nothing does, remove the note."""
        if not os.path.lexists(self._folder):  # as nearly always: no name has to be computed for a short run
            return []
        return self._look(self._path(who))

    def prune(self) -> None:
        """Remove the notes of processes that have all ended."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                self._look(str(path))

    @staticmethod
    def _look(path: str) -> list[Leftover]:
        try:
            data = read_document(path, _MAX_BYTES, RecordError)
        except (RecordError, StateDirError):
            return []
        left = [] if data is None else _living(data)
        if not left:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return left

    def _path(self, who: Identity) -> str:
        # Not by the id of the workload: Airflow gives each try one of its own.
        same = (who.kind, who.job_name, who.dag_id, who.dag_run_id, who.task_id, who.map_index, who.team)
        return os.path.join(self._folder, hashlib.sha256(repr(same).encode()).hexdigest()[:32])


def _living(data: bytes) -> list[Leftover]:
    try:
        entries = orjson.loads(data)
        found = [(ProcessId.from_document(entry), str(entry["text"])) for entry in entries]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return []
    return [Leftover(process, text) for process, text in found if process is not None and process.lives()]
