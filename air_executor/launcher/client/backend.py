"""Runs on this machine, each forked by a launcher.

The launcher's messages are only a shortcut. What counts is on disk, so a launcher that dies takes no run with it:
runs whose launcher is gone are followed through their records and locks.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from air_executor.config import Config
from air_executor.errors import AirExecutorError
from air_executor.guard import Guard
from air_executor.launcher import protocol
from air_executor.launcher.client.claims import Claims
from air_executor.launcher.client.dispatcher import Dispatcher
from air_executor.launcher.client.followed import Followed, Order
from air_executor.launcher.client.gpus import LocalGpus
from air_executor.launcher.client.launchers import Launchers
from air_executor.launcher.client.room import LocalRoom
from air_executor.runs.backend import LauncherCounts, RunRequest
from air_executor.runs.lock import is_held
from air_executor.runs.record import Identity, RunRecord
from air_executor.runs.store import RunStore

log = logging.getLogger(__name__)


class LocalBackend:
    """Implements :class:`air_executor.runs.backend.RunBackend`."""

    def __init__(self, config: Config) -> None:
        """Prepare, but open nothing.

        :param config: says where the runs are, and what launchers and runners do.
        """
        self._store = store = RunStore(config.state_dir)
        self._launchers = Launchers(store, config)
        self._followed = Followed(store, self._launchers.links)
        self._claims = Claims(store)
        self.gpus = LocalGpus(store, config.gpus)
        self.room = LocalRoom(store, config, lambda: self._followed.ended)
        self._guard = Guard(log)
        self._dispatcher = Dispatcher(store, config, self._launchers, self._followed)

    # Life

    def open(self, owner: str | None) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.open`."""
        self._store.prepare()
        self.room.open()
        with self._guard("Marking the runs that are open"):
            self._store.mark_open()
        if owner is not None:
            if not self._claims.begin(owner):
                return False
            self.gpus.open(owner)
        return True

    def warm_up(self) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.warm_up`."""
        try:
            self._launchers.connect()
        except (AirExecutorError, OSError, NotImplementedError) as error:  # the last one: no file locks here
            log.error("The launcher cannot be started yet: %s", error)

    def show_life(self) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.show_life`."""
        self._claims.show_life()

    def close(self) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.close`."""
        with contextlib.ExitStack() as stack:  # each of them, even if others fail; the last first
            stack.callback(self._claims.end)
            stack.callback(self.gpus.close)
            stack.callback(self.room.close)
            stack.callback(self._followed.clear)
            stack.callback(self._launchers.close)

    # Orders

    def order(self, request: RunRequest, record: RunRecord) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.order`."""
        order = Order(request, protocol.start(request.to_message()))  # raises before anything is begun
        self.room.check(request.identity, request.air)
        self._launchers.leave_outdated()
        self._store.create(record)
        self.room.take(record)
        self._followed.add_order(order, record)
        self._dispatcher.hand_over(request.id)
        self._claims.claim(record.id)

    def stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.stop`."""
        try:
            self._store.request_stop(run_id, reason, unwanted=unwanted)
        except AirExecutorError as error:
            log.warning("The reason for stopping run %s is not on record: %s", run_id, error)
        self._dispatcher.signal(run_id, "stop", signal.SIGTERM)

    def is_stopping(self, run_id: str) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.is_stopping`."""
        return self._store.stop_request(run_id) is not None

    def kill(self, run_id: str) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.kill`."""
        self._dispatcher.signal(run_id, "kill", signal.SIGKILL)

    def withdraw(self, record: RunRecord, reason: str) -> RunRecord:
        """See :meth:`air_executor.runs.backend.RunBackend.withdraw`."""
        return self._store.withdraw(record, reason)

    def release(self, workload_ids: Iterable[str]) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.release`."""
        for workload_id in workload_ids:
            lock = self._store.lock(workload_id)
            if lock.acquire(timeout_s=0, create=False):
                lock.release()

    # Taking over

    def adopt(self, run_id: str, identity: Callable[[], Identity]) -> RunRecord | None:
        """See :meth:`air_executor.runs.backend.RunBackend.adopt`."""
        return self._claims.adopt(run_id, identity)

    def follow(self, record: RunRecord) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.follow`."""
        self._claims.claim(record.id)
        self.room.take(record)
        self._followed.add(record)
        self._dispatcher.seek(record.id)

    def orphans(self, is_ours: Callable[[str], bool]) -> Iterator[RunRecord]:
        """See :meth:`air_executor.runs.backend.RunBackend.orphans`."""
        return self._claims.orphans(is_ours)

    def settle_owners(self, settle: Callable[[str, float], bool]) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.settle_owners`."""
        self._claims.settle_owners(settle)

    # Questions

    def knows(self, run_id: str) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.knows`."""
        return self._store.has(run_id)

    def record(self, run_id: str) -> RunRecord:
        """See :meth:`air_executor.runs.backend.RunBackend.record`."""
        return self._store.read(run_id)

    def folder(self, run_id: str) -> str:
        """See :meth:`air_executor.runs.backend.RunBackend.folder`."""
        return self._store.path(run_id)

    def is_mine(self, run_id: str) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.is_mine`."""
        return self._claims.is_mine(run_id)

    def is_alive(self, workload_id: str) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.is_alive`."""
        return is_held(self._store.lock(workload_id).path)

    def last_beat_s(self, run_id: str) -> float | None:
        """See :meth:`air_executor.runs.backend.RunBackend.last_beat_s`."""
        return self._store.last_heartbeat_s(run_id)

    def launchers(self) -> LauncherCounts:
        """See :meth:`air_executor.runs.backend.RunBackend.launchers`."""
        return replace(self._launchers.counts, live=len(self._launchers.links()))

    # News

    def ends(self) -> list[str]:
        """See :meth:`air_executor.runs.backend.RunBackend.ends`."""
        self._dispatcher.receive()
        return [record.id for record in self._followed.ended]

    def take_ends(self) -> list[RunRecord]:
        """See :meth:`air_executor.runs.backend.RunBackend.take_ends`."""
        self._dispatcher.look()
        self._followed.look()
        ended, self._followed.ended = self._followed.ended, []
        for record in ended:
            self.room.has_ended(record)
        self.room.keep(order.request.identity.workload_id for order in self._followed.orders.values())
        self.room.publish()
        return ended

    def acknowledge(self, record: RunRecord) -> RunRecord:
        """See :meth:`air_executor.runs.backend.RunBackend.acknowledge`."""
        if record.id in self._followed.unwritten:
            self._store.write(record)
            self._followed.unwritten.discard(record.id)
        return self._store.mark_reported(record)

    def has_news(self) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.has_news`."""
        was_connected = self._launchers.current is not None
        return bool(self.ends()) or (was_connected and self._launchers.current is None)

    def fileno(self) -> int | None:
        """See :meth:`air_executor.runs.backend.RunBackend.fileno`."""
        return self._launchers.fileno()

    def due_in_s(self) -> float | None:
        """See :meth:`air_executor.runs.backend.RunBackend.due_in_s`."""
        due_s = (self._followed.due_in_s(), self._dispatcher.due_in_s())
        return min((each_s for each_s in due_s if each_s is not None), default=None)
