"""The runs that an executor follows in Temporal, and their ends until it takes them."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import replace
from typing import Any

from air_executor.errors import AirExecutorError, RecordError, StateDirError
from air_executor.runs.ordered import OrderedRuns
from air_executor.runs.record import UNWANTED, RunRecord, RunState, queued
from air_executor.temporal import job_files
from air_executor.temporal.settings import Settings
from air_executor.temporal.watch import LiveRun


class Followed:
    """Followed runs. May be used in several threads."""

    def __init__(self, store: OrderedRuns, settings: Settings) -> None:
        """Follow nothing yet."""
        self._store, self._settings = store, settings
        self._lock = threading.Lock()
        self._live: dict[str, LiveRun] = {}
        self._ended: dict[str, RunRecord] = {}
        self._left: set[str] = set()
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)

    def close(self) -> None:
        """Close what :meth:`fileno` returns."""
        for end in (self._ours, self._theirs):
            end.close()

    def add(self, run_id: str, run: LiveRun) -> None:
        """Follow a run."""
        with self._lock:
            self._live[run_id] = run
            self._left.discard(run_id)

    def leave(self, run_id: str, run: LiveRun) -> None:
        """Leave a run to another executor, which has taken it over: here it ends, its document stays as it is."""
        reason = "another executor has taken it over"
        record = self._record(run_id, run, {"state": "lost", "reason": reason, "unwanted": True})
        with self._lock:
            self._left.add(run_id)
        self.end(record)

    def is_left(self, run_id: str) -> bool:
        """Tell whether a run was left to another executor."""
        return run_id in self._left

    def live(self) -> dict[str, LiveRun]:
        """Return the runs that have not ended, by their ids."""
        with self._lock:
            return dict(self._live)

    def get(self, run_id: str) -> LiveRun | None:
        """Return a run that has not ended; ``None``: it has, or is not followed."""
        return self._live.get(run_id)

    def ended(self) -> list[str]:
        """Return the ids of the runs whose ends can be taken."""
        return list(self._ended)

    def take(self) -> list[RunRecord]:
        """Return the records of the runs that have ended since the last call."""
        with contextlib.suppress(BlockingIOError):
            self._ours.recv(1 << 12)
        with self._lock:
            ended, self._ended = self._ended, {}
        return list(ended.values())

    def fileno(self) -> int:
        """Return what becomes readable when there are ends."""
        return self._ours.fileno()

    def end(self, record: RunRecord) -> None:
        """Note that a run has ended."""
        with self._lock:
            self._live.pop(record.id, None)
            self._ended[record.id] = record
        with contextlib.suppress(OSError):  # it is readable already, or closed
            self._theirs.send(b"!")

    def end_as_told(self, run_id: str, run: LiveRun, end: dict[str, Any]) -> None:
        """Record an end as a workflow tells it. One that can't be understood fails its run.

        :raises StateDirError: it can't be written.
        """
        try:
            record = self._record(run_id, run, end)
        except StateDirError:
            raise  # as with a full disk: it is told again
        except (AirExecutorError, KeyError, ValueError, TypeError, AttributeError) as error:
            reason = f"what its host says of its end can't be understood: {error}"
            record = self._record(run_id, run, {"state": "failed", "reason": reason})
        self.end(self._store.write(record))

    def _record(self, run_id: str, run: LiveRun, told: dict[str, Any]) -> RunRecord:
        end, files = job_files.without_files(told, self._settings)
        try:
            record = self._store.read(run_id)
        except RecordError:
            record = queued(run_id, run.identity, limits={}, log_file=None)
            if not self._store.has(run_id):  # somebody has removed it
                self._store.prepare()
                self._store.create(record)
        if "version" in end:
            memory_ends = end.pop("memory_ends", None)
            if files and not record.state.is_end:
                job_files.keep(files, self._store.path(run_id), record.log_file)
            record = replace(RunRecord.from_document(end), log_file=record.log_file)
            if memory_ends is not None:
                self._learn(record, memory_ends)
            return record
        if record.state.is_end:
            return record
        outcome = UNWANTED if end.get("unwanted") else None
        return record.advance(RunState(end["state"]), reason=end["reason"], outcome=outcome)

    def _learn(self, record: RunRecord, memory_ends: list[int]) -> None:
        """Remember how much memory a run has held, for the next one, wherever that is."""
        with contextlib.suppress(StateDirError):  # on a full disk: the next one has this one's limit
            self._store.learned.take(record.identity, {"ends": memory_ends, "peaks": []})
            if record.peak_memory_bytes:
                self._store.learned.note_peak(record.identity, record.peak_memory_bytes)
