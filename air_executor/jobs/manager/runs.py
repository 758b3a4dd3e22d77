"""The runs of the manager's tasks, and all that the manager knows of runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from air_executor.errors import AirExecutorError, RecordError
from air_executor.runs import limits
from air_executor.runs import record as records
from air_executor.runs.backend import RunBackend, RunRequest
from air_executor.runs.record import Identity, RunRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The task that a run executes."""

    job: str
    task: str


class Runs:
    """The runs that execute tasks of this manager's jobs."""

    def __init__(self, backend: RunBackend) -> None:
        """Follow no run yet."""
        self._backend = backend
        #: The tasks that live runs execute, by the ids of the runs.
        self._live: dict[str, Owner] = {}

    def __len__(self) -> int:
        """Return how many runs are live."""
        return len(self._live)

    # Life

    def open(self) -> None:
        """Prepare the place where runs happen.

        :raises StateDirError: it can't be used.
        """
        self._backend.open(owner=None)

    def close(self) -> None:
        """Close the backend. Runs continue."""
        self._backend.close()

    def warm_up(self) -> None:
        """Have a launcher ready for the first run."""
        self._backend.warm_up()

    def fileno(self) -> int | None:
        """Return a descriptor that becomes readable when there may be news; ``None`` if there is none now."""
        return self._backend.fileno()

    def due_in_s(self) -> float | None:
        """Return in how many seconds to call :meth:`take_ends` even without news; ``None``: no need to."""
        return self._backend.due_in_s()

    # Runs

    def admit(self, who: Identity, limits: dict[str, Any]) -> bool:
        """Claim room on the machine for a run that is to be ordered now; tell whether there is any."""
        return self._backend.room.admit(who, limits, key=who.name)

    def give_up_room(self, who: Identity) -> None:
        """Give up the room of a run that was not ordered after all."""
        self._backend.room.release(who.workload_id)

    def order(self, request: RunRequest, owner: Owner) -> None:
        """Order a run.

        :raises ProtocolError: the request is too large for a runner, or no JSON.
        :raises StateDirError: the run can't be recorded, so it was not ordered.
        """
        public = limits.public(request.air)
        record = records.queued(request.id, request.identity, limits=public, log_file=request.log_file)
        self._backend.order(request, record)
        self._live[request.id] = owner

    def record(self, run_id: str) -> RunRecord:
        """Return the record of a run. If a dead manager ordered it, and it has not begun, it never will.

        :raises RecordError: there is none, or it can't be understood.
        :raises StateDirError: it can't be read now.
        """
        return self._backend.withdraw(self._backend.record(run_id), "its manager died before its runner was born")

    def was_begun(self, run_id: str) -> bool:
        """Tell whether anything of a run exists: if not, it could not be ordered, as on a full disk."""
        try:
            return self._backend.knows(run_id)
        except RecordError:
            return False

    def follow(self, record: RunRecord, owner: Owner) -> None:
        """Follow a run that another manager has ordered, unless it is followed already."""
        is_known = record.id in self._live
        self._live[record.id] = owner
        if not is_known:
            self._backend.follow(record)

    def take_ends(self) -> list[RunRecord]:
        """Return the records of the runs that have ended since the last call, each once."""
        return self._backend.take_ends()

    def forget(self, run_id: str) -> Owner | None:
        """Note that a run is not live any more; return the task that it executed, if it was followed here."""
        return self._live.pop(run_id, None)

    def acknowledge(self, record: RunRecord) -> None:
        """Record that the end of a run is known, so that its record may be pruned."""
        try:
            self._backend.acknowledge(record)
        except AirExecutorError as error:
            log.warning("The end of run %s could not be acknowledged: %s", record.id, error)

    def folder(self, run_id: str) -> str:
        """Return the folder in which a run leaves its result and the tasks that it queued."""
        return self._backend.folder(run_id)

    # Stopping

    def stop_all(self, reason: str) -> None:
        """Stop all runs. They are interrupted, and their tasks will be started again."""
        for run_id in self._live:
            self._backend.stop(run_id, reason, unwanted=True)

    def stop_job(self, job: str, reason: str, *, unwanted: bool = False) -> None:
        """Stop the runs of a job.

        :param unwanted: nobody needs their outcomes.
        """
        for run_id, owner in self._live.items():
            if owner.job == job:
                self._backend.stop(run_id, reason, unwanted=unwanted)

    def stop_others(self, job: str, known: set[str | None], reason: str) -> None:
        """Stop the runs of a job whose ids are not in ``known``, and forget them."""
        for run_id, owner in list(self._live.items()):
            if owner.job == job and run_id not in known:
                del self._live[run_id]
                self._backend.stop(run_id, reason, unwanted=True)

    def release(self, workload_ids: Iterable[str]) -> None:
        """Release what is kept for workloads of a job that has ended."""
        self._backend.release(workload_ids)
