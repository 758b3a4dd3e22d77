"""Which executor follows which run: the claims that executors of one state directory have on its runs."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

from air_executor.errors import RecordError, StateDirError
from air_executor.guard import Guard
from air_executor.machine.safe_files import modified_s
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.record import UNWANTED, Identity, RunRecord, RunState, queued
from air_executor.runs.store import RunStore

log = logging.getLogger(__name__)


class Claims:
    """The claims of one owner, once it has begun; before that, it owns nothing."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        #: Held for the owner's life. Its file's time says when it last reconciled its runs.
        self._life: KernelLock | None = None
        self._guard = Guard(log)

    @property
    def owner(self) -> str | None:
        """The owner's name."""
        return None if self._life is None else self._life.name

    def begin(self, owner: str) -> bool:
        """Begin an owner's life; ``False`` if somebody holds its name, if only to look at it."""
        life = KernelLock(self._store.executors / owner)
        if not life.acquire(timeout_s=0):
            return False
        self._life = life
        return True

    def end(self) -> None:
        """End the owner's life: others may take its runs over."""
        if self._life is not None:
            self._life.release()

    def show_life(self) -> None:
        """Show that the owner reconciles its runs."""
        if self._life is not None:
            with contextlib.suppress(OSError):
                os.utime(self._life.path)

    def claim(self, run_id: str) -> None:
        """Own a run from now on. If that can't be noted, its runner sends its heartbeats itself."""
        if self.owner is None:
            return
        try:
            self._store.set_owner(run_id, self.owner)
        except Exception as error:
            log.warning("Run %s will send its heartbeats itself: %s", run_id, error)

    def is_mine(self, run_id: str) -> bool:
        """Tell whether no other owner has claimed a run."""
        return self._store.owner(run_id) in (None, self.owner)

    def orphans(self, is_ours: Callable[[str], bool]) -> Iterator[RunRecord]:
        """See :meth:`air_executor.runs.backend.RunBackend.orphans`."""
        for record in self._store.open_records():
            with self._guard(f"Looking up who follows run {record.id}") as look:
                is_orphan = not record.reported_at and self._is_orphan(record.id, is_ours)
            if look.error is None and is_orphan:
                yield record

    def _is_orphan(self, run_id: str, is_ours: Callable[[str], bool]) -> bool:
        owner = self._store.owner(run_id)
        return owner is None or (not is_held(self._store.executors / owner) and is_ours(owner))

    def settle_owners(self, settle: Callable[[str, float], bool]) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.settle_owners`."""
        for path in self._store.executors.glob("*"):
            lock = KernelLock(path)
            try:
                if is_held(path) or not lock.acquire(timeout_s=0, create=False):  # its holder may just have removed it
                    continue
            except (StateDirError, OSError) as error:  # as on a full disk; living owners are not affected
                log.warning("Whether a scheduler is dead can't be told now: %s", error)
                continue
            keeps = True
            try:
                keeps = settle(path.name, modified_s(path) or 0.0)
            finally:
                lock.release(keep_file=keeps)

    def adopt(self, run_id: str, identity: Callable[[], Identity]) -> RunRecord | None:
        """See :meth:`air_executor.runs.backend.RunBackend.adopt`."""
        if not self._store.has(run_id):
            return None
        try:
            record = self._store.settle(self._store.read(run_id))
            is_unborn = record.state is RunState.QUEUED
            record = self._store.withdraw(record, "its scheduler died before it began", outcome=UNWANTED)
        except RecordError as error:
            # If the run has a runner, that one writes a new record in the end.
            who = identity()
            if not is_held(self._store.lock(who.workload_id).path):
                raise RecordError(f"the record of run {run_id} is lost, and it has no runner: {error}") from error
            record = queued(run_id, who, limits={}, log_file=None)
            return record.advance(RunState.STARTING).advance(RunState.RUNNING)
        if is_unborn and record.state is RunState.LOST:
            self._store.mark_reported(record)
            return None
        return record
