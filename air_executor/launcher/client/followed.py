"""The runs that an executor follows. A launcher reports the end of a run; if none does, the run's files are watched."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from air_executor.errors import AirExecutorError, RecordError, RecordVersionError
from air_executor.guard import Guard
from air_executor.launcher.client.link import Link
from air_executor.machine.awake import AwakeClock
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import append_to_log

log = logging.getLogger(__name__)

#: How often to look at runs without a launcher, in seconds.
LOOK_S = 1.0

#: One call looks at them for at most this many seconds.
_LOOK_BUDGET_S = 0.004

#: A run that can't be read for this many seconds, and has no runner, is lost.
_OBSCURE_S = 60.0

#: A runner has its lock at most this many seconds after the order, on the slowest machine.
_BIRTH_S = 30.0


@dataclass
class Order:
    """A run that was ordered, and that no launcher has confirmed yet."""

    request: RunRequest
    message: bytes
    """The order as it goes over the socket, for every launcher but those of protocol 1."""
    link: Link | None = None
    """To the launcher that has the order."""
    sent_s: float = 0.0
    """When it was sent, on the clock of :attr:`Launchers.clock`."""


class Followed:
    """Each run is ordered, attached to a launcher (see :attr:`Link.attached`), or unattended."""

    def __init__(self, store: RunStore, links: Callable[[], Iterable[Link]]) -> None:
        """Follow nothing yet.

        :param links: returns the connections to launchers.
        """
        self._store = store
        self._links = links
        self.records: dict[str, RunRecord] = {}
        """Every run that is followed, as it was last known here."""
        self.orders: dict[str, Order] = {}
        """Ordered, and not confirmed by a launcher."""
        self.unattended: dict[str, float] = {}
        """Runs that no launcher reports, and since when, on the monotonic clock."""
        self.ended: list[RunRecord] = []
        """Ends that nobody has taken yet."""
        self.unwritten: set[str] = set()
        """Runs whose ends are known only here, as they could not be written."""
        self.looked_s = 0.0
        """When the last round of looks at unattended runs began, on the monotonic clock."""
        #: Unattended runs that are still to be looked at in this round.
        self._unseen: list[str] = []
        #: Unattended runs that can't be read, and since when, on the monotonic clock.
        self._obscure: dict[str, float] = {}
        self._guard = Guard(log)
        self._awake = AwakeClock()

    def add(self, record: RunRecord) -> None:
        """Follow a run that somebody else ordered."""
        self.records[record.id] = record
        self.unattended[record.id] = time.monotonic()
        self.looked_s = 0.0

    def add_order(self, order: Order, record: RunRecord) -> None:
        """Follow a run that is being ordered."""
        self.records[record.id] = record
        self.orders[record.id] = order

    def confirm(self, run_id: str, link: Link) -> None:
        """Note that a launcher has taken an order."""
        if self.orders.pop(run_id, None) is not None:
            link.attached.add(run_id)

    def attach(self, run_id: str, link: Link) -> None:
        """Note that a launcher will report the end of a run."""
        link.asked.discard(run_id)
        if self.unattended.pop(run_id, None) is not None:
            link.attached.add(run_id)

    def detach(self, run_id: str) -> None:
        """Follow a run through its record and lock: no launcher reports its end."""
        if run_id in self.records:
            self._forget(run_id)
            self.unattended[run_id] = time.monotonic()

    def detach_all(self, link: Link) -> None:
        """Detach all runs of one launcher, and take back its unconfirmed orders.

        The launcher may have taken such an order. Orders are idempotent, so the run is ordered again: a runner that
        finds it begun, by its lock or its record, leaves it alone.
        """
        now_s = time.monotonic()
        for run_id in link.attached:
            self.unattended.setdefault(run_id, now_s)
        if link.attached:
            self.looked_s = 0.0
        for order in self.orders.values():
            if order.link is link:
                order.link = None

    def is_begun(self, run_id: str) -> bool:
        """Tell whether a launcher took an order before it died."""
        try:
            record = self._store.read(run_id)
            return record.state is not RunState.QUEUED or self._store.has_runner(record)
        except AirExecutorError:
            return False

    def due_in_s(self) -> float | None:
        """Return in how many seconds :meth:`look` wants to be called; ``None``: there is nothing to look at."""
        if not self.unattended:
            return None
        return 0.0 if self._unseen else max(0.0, self.looked_s + LOOK_S - time.monotonic())

    def look(self) -> None:
        """Look at unattended runs for a short time; the next call goes on with the others."""
        began_s = self._awake.look()
        if not self.unattended or not (self._unseen or began_s - self.looked_s >= LOOK_S):
            return
        if not self._unseen:
            self.looked_s = began_s
            self._unseen = list(self.unattended)
        while self._unseen and time.monotonic() - began_s < _LOOK_BUDGET_S:
            run_id = self._unseen.pop()
            if (since_s := self.unattended.get(run_id)) is None:
                continue
            with self._guard(f"Looking at run {run_id}") as look:
                self._look_at(run_id, since_s)
            if look.error is None:
                self._obscure.pop(run_id, None)
            elif self._awake.since_s(self._obscure.setdefault(run_id, began_s)) >= _OBSCURE_S:
                with self._guard(f"Looking for the runner of run {run_id}"):
                    if not self._store.has_runner(self.records[run_id]):
                        self.fail(run_id, f"the run can no longer be followed: {look.error}", RunState.LOST)

    def _look_at(self, run_id: str, since_s: float) -> None:
        try:
            record = self._store.settle(self._store.read(run_id))
            if record.state is RunState.QUEUED and self._awake.since_s(since_s) > _BIRTH_S:
                record = self._store.withdraw(record, "its launcher died before the runner was born")
        except RecordError as error:
            if not self._store.has_runner(self.records[run_id]):
                self.fail(run_id, f"the run can no longer be followed: {error}")
            # Otherwise its runner writes the record anew with its end.
        else:
            if record.state.is_end:
                self._end(record)

    def exited(self, run_id: str, exit_code: int | None, document: Any = None) -> None:
        """Take the end of a run whose runner has exited, and which its launcher has recorded.

        :param document: the record as the launcher sends it; if it is missing or invalid, the file is read.
        """
        if run_id not in self.records:
            return
        try:
            record = self._sent(run_id, document) or self._store.read(run_id)
        except AirExecutorError as error:
            self.fail(run_id, f"the runner ended with exit code {exit_code}, and its record can't be read: {error}")
            return
        if record.state.is_end:
            self._end(record)
        else:
            reason = f"the runner ended with exit code {exit_code}, and its end could not be recorded"
            self.fail(run_id, reason, RunState.LOST)

    @staticmethod
    def _sent(run_id: str, document: Any) -> RunRecord | None:
        try:
            record = RunRecord.from_document(document)
        except RecordError:
            return None
        return record if record.id == run_id else None

    def fail(self, run_id: str, reason: str, state: RunState = RunState.FAILED) -> None:
        """End a run that nobody else can end: it has no runner, or its record can't be read or written."""
        if (record := self.records.get(run_id)) is None:
            return
        with contextlib.suppress(Exception):  # what is known here has to do
            try:
                record = self._store.read(run_id)
            except RecordError as error:
                if not isinstance(error, RecordVersionError):  # a newer version's record stays
                    self._store.set_aside(run_id)
                raise
            if record.state.is_end:
                self._end(record)
                return
            if self._store.has_runner(record):
                self.detach(run_id)
                return
        if record.state.is_end:  # it had ended when it was taken over; its folder has gone since
            self._end(record)
            return
        record = record.advance(state, reason=reason)
        try:
            append_to_log(record.log_file, reason, kind=record.identity.kind)
            self._store.write(record)
        except Exception as error:
            log.error("Run %s failed (%s), which can't be recorded: %s", run_id, reason, error)
            self.unwritten.add(run_id)
        self._end(record)

    def _end(self, record: RunRecord) -> None:
        self.records.pop(record.id, None)
        self._forget(record.id)
        self._obscure.pop(record.id, None)
        self.ended.append(record)

    def _forget(self, run_id: str) -> None:
        """Expect nothing more of a run from anybody."""
        self.orders.pop(run_id, None)
        self.unattended.pop(run_id, None)
        for link in self._links():
            link.attached.discard(run_id)
            link.asked.discard(run_id)

    def clear(self) -> None:
        """Follow nothing any more."""
        for runs in (self.records, self.orders, self.unattended):
            runs.clear()
