"""All runs that a state directory knows: those of this machine, and those that were ordered from it on other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from air_executor.errors import RecordError
from air_executor.runs.ordered import OrderedRuns
from air_executor.runs.record import RunRecord
from air_executor.runs.store import RunStore


class AllRuns:
    """Finds runs and the store that each is in. A run that is in both is taken from this machine's own."""

    def __init__(self, state_dir: str | Path) -> None:
        """Read nothing yet."""
        self.here = RunStore(state_dir)
        self._elsewhere = OrderedRuns.of(state_dir)

    def store_of(self, run_id: str) -> RunStore:
        """Return the store that has a run; of an unknown one, this machine's."""
        return self.here if self.here.has(run_id) or not self._elsewhere.has(run_id) else self._elsewhere

    def is_elsewhere(self, run_id: str) -> bool:
        """Tell whether another host executes a run."""
        return self.store_of(run_id) is self._elsewhere

    def settled(self, record: RunRecord) -> RunRecord:
        """Return a record as :meth:`.RunStore.settled` does."""
        return self.store_of(record.id).settled(record)

    def records(self) -> Iterator[RunRecord]:
        """Yield every readable record, in no order."""
        yield from self.here.records()
        yield from (record for record in self._elsewhere.records() if not self.here.has(record.id))

    def open_records(self) -> Iterator[RunRecord]:
        """Yield the records of runs that live, or whose end may not have been reported."""
        yield from self.here.open_records()
        yield from (record for record in self._elsewhere.open_records() if not self.here.has(record.id))

    def changed(self) -> Iterator[tuple[float, str]]:
        """Yield when each run's folder last changed, in seconds since the epoch, and the run's id."""
        yield from self.here.changed()
        yield from (each for each in self._elsewhere.changed() if not self.here.has(each[1]))

    def find(self, prefix: str) -> RunRecord:
        """Return the one run whose id starts with ``prefix``.

        :raises RecordError: there is none, or more than one.
        """
        known = {*self.here.ids(), *self._elsewhere.ids()}
        matches = [run_id for run_id in known if run_id.startswith(prefix.lower())] if prefix else []
        if not matches:
            raise RecordError(f"there is no run {prefix!r} below {self.here.runs}")
        if len(matches) > 1:
            raise RecordError(f"{len(matches)} runs start with {prefix!r}; give more of the id")
        return self.store_of(matches[0]).read(matches[0])
