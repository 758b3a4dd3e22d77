"""Runs that this machine's schedulers have ordered, and that other hosts execute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore

#: Where their records are, in the state directory.
_FOLDER = "temporal"


class OrderedRuns(RunStore):
    """Their records say what the hosts tell: whether a runner lives can't be seen from here."""

    @classmethod
    def of(cls, state_dir: str | Path) -> OrderedRuns:
        """Return those of a state directory. Its folder need not exist."""
        return cls(Path(state_dir) / _FOLDER)

    def has_runner(self, record: RunRecord) -> bool:
        """Return whether the run has begun, as far as is known, and has not ended."""
        return record.state in (RunState.STARTING, RunState.RUNNING)

    def is_runner(self, record: RunRecord) -> bool:  # noqa: ARG002
        """Return ``False``: no process of this machine is one's runner."""
        return False

    def note_wait(self, run_id: str, why: str | None) -> bool:
        """Record why a run that was ordered has not begun; ``None``: nothing is known to be wrong.

        :return: whether it has not begun, as far as is known.
        :raises RecordError: there is no such run, or its record can't be understood.
        :raises StateDirError: it can't be written.
        """
        record = self.read(run_id)
        if record.state is not RunState.QUEUED:
            return False
        reason = None if why is None else f"it waits: {why}"
        if record.reason != reason:
            self.write(replace(record, reason=reason))
        return True

    def note_host(self, run_id: str, host: str) -> None:
        """Record that a host has begun a run, or has it now.

        :raises RecordError: there is no such run, or its record can't be understood.
        :raises StateDirError: it can't be written.
        """
        record = self.read(run_id)
        if record.state is RunState.QUEUED:
            self.write(record.advance(RunState.STARTING, host=host, reason=None).advance(RunState.RUNNING))
        elif not record.state.is_end and record.host != host:
            self.write(replace(record, host=host))
