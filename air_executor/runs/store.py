"""Runs on disk: who executes them, how they end when nobody does, and what was reported."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import orjson

from air_executor.errors import AirExecutorError, StateDirError
from air_executor.machine import leftovers, processes, system
from air_executor.machine.processes import Process, ProcessId
from air_executor.machine.safe_files import is_fresh
from air_executor.runs.lock import is_held
from air_executor.runs.record import RunRecord, RunState, now
from air_executor.runs.records import RunRecords
from air_executor.runs.remains import DeadRun, Undertaker

#: A runner touches its heartbeat file at least this often, in seconds.
_BEAT_S = 15.0


class RunStore(RunRecords):
    """The runs below one state directory: their files, their records, and their life."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._undertaker = Undertaker()

    def begin(self, record: RunRecord) -> RunRecord:
        """Record that the calling process is the runner of a run, and begins it; return its record.

        For a job's run, only the heartbeat file says so, which :meth:`read` takes into account: the run may be over in
        a moment, and some file systems wait for the disk whenever a file is replaced.

        :raises StateDirError: it cannot be written.
        """
        is_noted = False
        with contextlib.suppress(OSError):  # then the record says so
            fd = os.open(
                self.path(record.id, "heartbeat"),
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
            with open(fd, "wb", buffering=0) as file:
                file.write(orjson.dumps(ProcessId.own().to_document()))
            is_noted = True
        return record if is_noted and record.identity.kind == "job" else self.write(record)

    def mark_reported(self, record: RunRecord) -> RunRecord:
        """Note that whoever ordered a run knows its end, and return its record.

        For a job's run, only the link is removed: the job's own files say what became of its tasks.

        :raises StateDirError: it can't be noted.
        """
        if record.identity.kind != "job":
            self.note_reported(record.id)
            record = replace(record, reported_at=now())
        self.open.remove(record.id)
        return record

    def note_survivors(self, record: RunRecord, survivors: list[Process]) -> str:
        """Record for the next try which processes of this one could not be killed; return them as a sentence."""
        if survivors:
            with contextlib.suppress(StateDirError):
                self.leftovers.write(record.identity, survivors)
        return leftovers.name_survivors(survivors)

    # Whether a run has a runner

    def has_runner(self, record: RunRecord) -> bool:
        """Tell whether the run's workload has a runner.

        The lock is the evidence. If its file was deleted, perhaps by something that cleans up old files, the runner's
        process decides.
        """
        path = self.lock(record.identity.workload_id).path
        if is_held(path):
            return True
        if record.state.is_end:
            return False
        return self.is_runner(record) or (not os.path.lexists(path) and self._beats_elsewhere(record))

    def _beats_elsewhere(self, record: RunRecord) -> bool:
        """Tell whether a runner in another container, which can't be seen from here, has a fresh heartbeat."""
        known = self.runner(record)
        is_elsewhere = known is not None and known.boot_id == system.boot_id() and not known.is_of_here
        return is_elsewhere and is_fresh(self.last_heartbeat_s(record.id), _BEAT_S)

    def is_runner(self, record: RunRecord) -> bool:
        """Tell whether the process with the runner's pid lives, and is the runner."""
        if record.pid is None or record.boot_id != system.boot_id():
            return False
        if (known := self.runner(record)) is not None:
            return known.lives()
        # An earlier version began it, and its heartbeat file names no process.
        process = processes.look(record.pid)
        return process is not None and not process.is_dead and system.is_process(record.pid, record.pid_started)

    def signal_runner(self, record: RunRecord, signum: signal.Signals) -> bool:
        """Send a signal to a run's runner, and to no other process that has its pid by now.

        :return: whether it was sent.
        """
        return record.pid is not None and system.signal_if(record.pid, lambda: self.is_runner(record), signum)

    def signal_run(self, run_id: str, signum: signal.Signals) -> bool:
        """Send a signal to the runner of a run that has not ended, if the process with its pid is still that runner.

        :return: whether it was sent.
        """
        try:
            record = self.read(run_id)
        except AirExecutorError:
            return False
        return not record.state.is_end and self.signal_runner(record, signum)

    def runner(self, record: RunRecord) -> ProcessId | None:
        """Return the process that was the runner of a run; ``None`` when its heartbeat file does not say."""
        known = self.runner_process(record.id)
        return known if known is not None and known.pid == record.pid else None

    # Runs whose runner is gone

    def settle(self, record: RunRecord) -> RunRecord:
        """Return the record as it is now; one with neither a runner nor an end becomes ``lost``, with the reason.

        All processes that are left of it are killed first. Until they are gone, the record stays as it is, and a later
        call settles it. Only the owner of the state directory changes anything. A ``queued`` run is left alone: whoever
        queued it knows what became of its request.
        """
        if record.state.is_end or record.state is RunState.QUEUED or self.has_runner(record):
            return record
        record = self.read(record.id)  # it may have ended between the two looks
        if record.state.is_end or self.root.lstat().st_uid != os.geteuid():
            return record
        # Under the lock: nobody else begins or settles this workload.
        lock = self.lock(record.identity.workload_id)
        if not lock.acquire(timeout_s=0):
            return record
        try:
            return self._bury(record)
        finally:
            lock.release()

    def withdraw(self, record: RunRecord, reason: str, *, outcome: str | None = None) -> RunRecord:
        """Return the record of a queued run as it is now; it becomes ``lost``, unless its runner is just beginning.

        A runner that comes later finds that, and leaves.

        :raises RecordError: the record is gone, or can't be understood.
        :raises StateDirError: it can't be read or written.
        """
        lock = self.lock(record.identity.workload_id)
        if record.state is not RunState.QUEUED or not lock.acquire(timeout_s=0):
            return record
        try:
            record = self.read(record.id)
            if record.state is RunState.QUEUED:
                record = self.write(record.advance(RunState.LOST, reason=reason, outcome=outcome))
            return record
        finally:
            lock.release()

    def settled(self, record: RunRecord) -> RunRecord:
        """Return the record as :meth:`settle` would leave it, without killing or writing anything."""
        if record.state.is_end or record.state is RunState.QUEUED or self.has_runner(record):
            return record
        record = self.read(record.id)  # it may have ended between the two looks
        return record if record.state.is_end else record.advance(RunState.LOST, reason=_loss(record))

    def _bury(self, record: RunRecord) -> RunRecord:
        survivors: list[Process] | None = []
        if not _is_from_before_boot(record):
            dead = DeadRun(record.id, record.identity.workload_id, self.runner(record), record.task_pid)
            survivors = self._undertaker.end(dead)
        if survivors is None:
            return record
        reason = "; ".join(filter(None, (_loss(record), self.note_survivors(record, survivors))))
        return self.write(record.advance(RunState.LOST, reason=reason))


def _is_from_before_boot(record: RunRecord) -> bool:
    return record.boot_id != system.boot_id() and record.host == system.host()


def _loss(record: RunRecord) -> str:
    """Return why a run has no outcome."""
    if _is_from_before_boot(record):
        return f"{record.host} was rebooted while the run was {record.state.value}"
    return f"the runner (pid {record.pid} on {record.host}) is gone and left no outcome"
