"""The records of runs: written whole, read with suspicion, listed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from air_executor import jsontext
from air_executor.errors import RecordError, RecordVersionError, StateDirError
from air_executor.machine import system
from air_executor.machine.safe_files import CLOCK_STEP_S, replace_file
from air_executor.runs.files import RunFiles, is_id
from air_executor.runs.record import LATER, RunRecord, RunState, check_id, moment

#: Names of executors of the previous release, which does not link open runs.
_FORMER_NAME = re.compile(r"\d+\.[0-9a-f-]{36}")


class RunRecords(RunFiles):
    """The records of the runs below one state directory."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        #: Runs whose record is of a newer version. It is not replaced.
        self._newer: set[str] = set()

    def create(self, record: RunRecord) -> None:
        """Make a run's folder with its first record.

        :raises StateDirError: it cannot be written, or the run exists.
        """
        folder = self.path(record.id)
        self.open.add(record.id)
        try:
            os.mkdir(folder, mode=0o700)
        except OSError as error:
            if not isinstance(error, FileExistsError):
                self.open.remove(record.id)
            raise StateDirError(f"cannot make {folder}: {error.strerror}") from error
        try:
            self.write(record)
        except StateDirError:
            shutil.rmtree(folder, ignore_errors=True)
            self.open.remove(record.id)
            raise

    def write(self, record: RunRecord) -> RunRecord:
        """Replace a run's record as a whole, and return it.

        If :meth:`read` has met a record of a newer version, that one stays.

        :raises StateDirError: it cannot be written.
        """
        if record.id not in self._newer:
            replace_file(self.path(record.id, "state.json"), record.to_json())
        return record

    def set_aside(self, run_id: str) -> None:
        """Quarantine a record that can't be understood as ``state.json.unreadable``, before it is replaced.

        Only for whoever writes the run's end. Others must leave it alone: they may be of an older version.
        """
        path = self.path(run_id, "state.json")
        with contextlib.suppress(OSError):
            os.replace(path, path + ".unreadable")

    def read(self, run_id: str) -> RunRecord:
        """Return a run's record.

        :raises RecordError: there is none, or it can't be understood.
        """
        path = self.path(run_id, "state.json")
        data = self.read_document(path)
        if data is None:
            raise RecordError(f"there is no run {run_id} below {self.runs}")
        try:
            record = RunRecord.from_json(data)
            if record.id != check_id(run_id):
                raise RecordError(f"it is the document of run {record.id}")
            if record.state is RunState.QUEUED:
                return self._begun(record)
            return self._reported(record) if record.state.is_end else record
        except RecordVersionError:
            self._newer.add(check_id(run_id))
            raise
        except RecordError as error:
            raise RecordError(f"the record of run {run_id} can't be understood: {error}. See {path}") from None

    def _begun(self, record: RunRecord) -> RunRecord:
        """Return a job's queued run as ``starting`` if it has a heartbeat file: its runner writes no record yet."""
        if record.identity.kind != "job" or (runner := self.runner_process(record.id)) is None:
            return record
        return record.advance(RunState.STARTING, pid=runner.pid, boot_id=runner.boot_id, host=system.host())

    def _reported(self, record: RunRecord) -> RunRecord:
        """Add to an ended run's record when its end was reported. Earlier releases wrote that into the record."""
        if record.reported_at is None and (moment_s := self.reported_s(record.id)) is not None:
            return replace(record, reported_at=moment(moment_s))
        return record

    # Many records

    def records(self) -> Iterator[RunRecord]:
        """Yield every readable record, in no order."""
        return self._readable(self.ids())

    def open_records(self) -> Iterator[RunRecord]:
        """Yield the readable records of runs that live or whose end may not have been reported.

        The cost grows with the open runs, not with all, unless an executor of the previous release works here too.
        """
        return self._readable(self.open.ids() if self._marks_open() else self.ids())

    def _marks_open(self) -> bool:
        if self.open.checked_s() is None:
            return False
        try:
            return not any(_FORMER_NAME.fullmatch(name) for name in os.listdir(self.executors))
        except OSError:
            return False

    def mark_open(self) -> None:
        """Link all open runs, also those that the previous release has begun. The first call reads all runs.

        :raises StateDirError: the links cannot be made.
        """
        began_s, checked_s = time.time(), self.open.checked_s()
        marked = self.open.ids()
        for changed_s, run_id in self.changed():
            if run_id in marked or (checked_s is not None and changed_s < checked_s - CLOCK_STEP_S):
                continue
            for record in self._readable([run_id]):
                # A job's run has no `reported_at`: its link goes when its end is reported.
                if not (record.state.is_end and (record.reported_at or record.identity.kind == "job")):
                    self.open.add(run_id)
        self.open.note_checked(began_s)

    def changed(self) -> Iterator[tuple[float, str]]:
        """Yield when each run's folder last changed, in seconds since the epoch, and the run's id."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.runs) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # somebody is just removing it
                    if is_id(entry.name) and entry.is_dir(follow_symlinks=False):
                        yield entry.stat(follow_symlinks=False).st_mtime, entry.name

    def _readable(self, run_ids: Iterable[str]) -> Iterator[RunRecord]:
        for run_id in run_ids:
            try:
                yield self.read(run_id)
            except (RecordError, StateDirError):
                continue  # `doctor` counts them

    def unreadable(self) -> list[Path]:
        """Return the documents of open runs that can't be understood, and all that were quarantined."""
        run_ids = self.ids()
        aside = (self.folder(run_id) / "state.json.unreadable" for run_id in run_ids)
        found = [path for path in aside if os.path.lexists(path)]
        for run_id in self.open.ids() if self._marks_open() else run_ids:
            try:
                self.read(run_id)
            except (RecordVersionError, StateDirError):
                continue
            except RecordError:
                if self.has(run_id) and os.path.lexists(path := self.folder(run_id) / "state.json"):
                    found.append(path)
        return sorted(found)


def public(record: RunRecord) -> dict[str, Any]:
    """Return the record as plain data, for JSON output."""
    document: dict[str, Any] = jsontext.loads(record.to_json())
    document.update(document.get("limits", {}).pop(LATER, {}))
    if record.why is not None:
        document["reason"] = record.why
    return document
