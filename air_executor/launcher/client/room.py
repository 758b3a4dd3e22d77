"""The memory and CPUs of this machine, for those who order runs: see :class:`air_executor.runs.backend.Room`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from air_executor.config import Config
from air_executor.errors import LimitsError, StateDirError
from air_executor.guard import Guard
from air_executor.runs.budget import Budget, Need
from air_executor.runs.ledger import Ledger
from air_executor.runs.record import Identity, RunRecord
from air_executor.runs.store import RunStore

log = logging.getLogger(__name__)

#: How often the room of runs that are not born yet is kept, in seconds.
_KEEP_S = 20.0


class LocalRoom:
    """Runs that are ordered through one backend have claims in the machine's ledger; without a budget, they have none.

    If the ledger can't be read or written, as on a full disk, runs are ordered all the same.
    """

    def __init__(self, store: RunStore, config: Config, ended: Callable[[], Iterable[RunRecord]]) -> None:
        """Prepare, but open nothing.

        :param ended: returns the records of runs that have ended and of which nobody has been told yet. The scheduler
            looks for room before it takes ends, and sleeps after that: their room must be free by then.
        """
        self._store = store
        self._ended = ended
        #: Ids of ended runs whose room was given back before anybody was told.
        self._gone: set[str] = set()
        self._kept_s = 0.0
        self._budget = Budget.of(config.memory_budget, config.cpu_budget, config.over_budget)
        self._ledger = Ledger(self._budget, config.budget_dir) if self._budget else None
        self._guard = Guard(log)

    def open(self) -> None:
        """Make the ledger's folder.

        :raises StateDirError: it can't be used.
        """
        if self._ledger is not None:
            self._ledger.open()

    def admit(self, who: Identity, air: Any, *, key: str | None = None) -> bool:
        """See :meth:`air_executor.runs.backend.Room.admit`."""
        if self._ledger is None:
            return True
        with self._guard("Looking whether the machine has room"):
            for record in self._ended():
                if record.id not in self._gone:
                    self._gone.add(record.id)
                    self._release(record)
            need, lock = self._need(who, air), self._lock(who.workload_id)
            if self._budget.fails_large and self._budget.excess(need):
                return True  # :meth:`check` refuses it
            name = f"{who.name}{who.index}"
            return self._ledger.admit(lock, name, need, key=key or who.workload_id, dag_id=who.dag_id)
        return True

    def check(self, who: Identity, air: Any) -> None:
        """Refuse a run that never finds room, if those are to fail.

        :raises LimitsError: it is one.
        """
        if self._budget.fails_large and (excess := self._budget.excess(self._need(who, air))) is not None:
            raise LimitsError(f"{excess} ([air_executor] over_budget = fail)")

    def why(self, key: str) -> str | None:
        """See :meth:`air_executor.runs.backend.Room.why`."""
        waits = None if self._ledger is None else self._ledger.waits(key)
        return None if waits is None else waits.why

    def release(self, workload_id: str) -> None:
        """See :meth:`air_executor.runs.backend.Room.release`."""
        if self._ledger is not None:
            self._ledger.release(self._lock(workload_id))

    def waiting(self) -> int:
        """See :meth:`air_executor.runs.backend.Room.waiting`."""
        return 0 if self._ledger is None else len(self._ledger)

    def take(self, record: RunRecord) -> None:
        """Note that a run was ordered, or taken over: the claim of its workload is its own."""
        if self._ledger is None:
            return
        with self._guard("Noting what a run takes of the machine"):
            memory = record.limits.get("memory")
            need = Need(memory if isinstance(memory, int) else 0, float(record.limits.get("cpus") or 1))
            lock, name = self._lock(record.identity.workload_id), f"{record.identity.name}{record.identity.index}"
            self._ledger.order(lock, self._store.path(record.id), name, need)

    def has_ended(self, record: RunRecord) -> None:
        """Note that a run has ended, and that somebody is told."""
        if record.id in self._gone:
            self._gone.discard(record.id)
        else:
            self._release(record)

    def _release(self, record: RunRecord) -> None:
        if self._ledger is not None:
            self._ledger.release(self._lock(record.identity.workload_id), run=self._store.path(record.id))

    def keep(self, workload_ids: Iterable[str]) -> None:
        """Keep the room of workloads whose runs are ordered and not born yet."""
        if self._ledger is not None and time.monotonic() - self._kept_s > _KEEP_S:
            self._kept_s = time.monotonic()
            for workload_id in workload_ids:
                self._ledger.keep(self._lock(workload_id))

    def publish(self) -> None:
        """Show others what waits here."""
        if self._ledger is not None:
            with self._guard("Showing what waits for room"):
                self._ledger.publish()

    def close(self) -> None:
        """Wait for nothing any more."""
        if self._ledger is not None:
            with contextlib.suppress(StateDirError):
                self._ledger.close()

    def _need(self, who: Identity, air: Any) -> Need:
        return self._budget.need_of(air, self._store.learned, who)

    def _lock(self, workload_id: str) -> str:
        return str(self._store.lock(workload_id).path)
