"""Runs on this machine, each forked by a launcher.

The launcher's messages are only a shortcut. What counts is on disk, so a launcher that dies takes no run with it:
runs whose launcher is gone are followed through their records and locks.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from air_executor.config import Config
from air_executor.errors import AirExecutorError, ProtocolError
from air_executor.guard import Guard
from air_executor.launcher import protocol
from air_executor.launcher.client.claims import Claims
from air_executor.launcher.client.followed import Followed, Order
from air_executor.launcher.client.gpus import LocalGpus
from air_executor.launcher.client.launchers import Launchers
from air_executor.launcher.client.link import QUIET_S, Link
from air_executor.launcher.client.restarts import Restarts
from air_executor.launcher.client.room import LocalRoom
from air_executor.runs.backend import LauncherCounts, RunRequest
from air_executor.runs.lock import is_held
from air_executor.runs.record import Identity, RunRecord
from air_executor.runs.store import RunStore

log = logging.getLogger(__name__)

#: While an order is not confirmed, how often to check whether its launcher hangs, in seconds.
_WATCH_S = 1.0


class LocalBackend:
    """Implements :class:`air_executor.runs.backend.RunBackend`."""

    def __init__(self, config: Config) -> None:
        """Prepare, but open nothing.

        :param config: says where the runs are, and what launchers and runners do.
        """
        self._store = store = RunStore(config.state_dir)
        self._config = config
        self._launchers = Launchers(store, config)
        self._followed = Followed(store, self._launchers.links)
        self._claims = Claims(store)
        self.gpus = LocalGpus(store, config.gpus)
        self.room = LocalRoom(store, config, lambda: self._followed.ended)
        self._guard = Guard(log)
        self._restarts = Restarts(self._launchers, self._followed)
        #: Whether the other launchers have still to be asked for the unattended runs.
        self._seeks = False

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
        if (link := self._launchers.current) is None:
            self._reconnect()  # hands over all orders
        else:
            self._hand_over(request.id, link)
        self._claims.claim(record.id)

    def stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.stop`."""
        try:
            self._store.request_stop(run_id, reason, unwanted=unwanted)
        except AirExecutorError as error:
            log.warning("The reason for stopping run %s is not on record: %s", run_id, error)
        self._signal(run_id, "stop", signal.SIGTERM)

    def is_stopping(self, run_id: str) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.is_stopping`."""
        return self._store.stop_request(run_id) is not None

    def kill(self, run_id: str) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.kill`."""
        self._signal(run_id, "kill", signal.SIGKILL)

    def _signal(self, run_id: str, message: str, signum: signal.Signals) -> None:
        order = self._followed.orders.get(run_id)
        attached = (link for link in self._launchers.links() if run_id in link.attached)
        link = next(attached, order.link if order else self._launchers.current)
        if link is None or link.hangs or link.objection:
            self._store.signal_run(run_id, signum)
        else:
            link.send({"type": message, "id": run_id})

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
        self._seeks = True
        if (link := self._launchers.current) is not None and self._is_understood(link):
            link.follow(record.id)

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
        self._receive()
        return [record.id for record in self._followed.ended]

    def take_ends(self) -> list[RunRecord]:
        """See :meth:`air_executor.runs.backend.RunBackend.take_ends`."""
        if self._launchers.current is None and self._followed.orders:
            self._reconnect()
        if self._seeks:
            self._ask_others()
        self._receive()
        self._watch()
        self._launchers.reap()
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
        due_s = [] if (look_s := self._followed.due_in_s()) is None else [look_s]
        if self._followed.orders:
            is_connected = self._launchers.current is not None
            due_s.append(_WATCH_S if is_connected else self._restarts.due_in_s())
        return min(due_s, default=None)

    # Handing orders over

    def _reconnect(self) -> None:
        """Connect, and hand over the orders; when that keeps failing, fail them."""
        if self._restarts.due_in_s():
            return
        try:
            self._launchers.connect()
        except TimeoutError as error:
            self._restarts.wait_for_room(error)
            return
        except (AirExecutorError, OSError, NotImplementedError) as error:  # the last one: no file locks here
            self._restarts.count_death(f"no launcher can be started: {error}")
            return
        self._restarts.note_connection()
        if (link := self._launchers.current) is not None:
            self._hand_over_all(link)

    def _is_understood(self, link: Link) -> bool:
        """Tell whether a launcher's version is known: that of a service is not before its hello."""
        return not self._launchers.is_service or bool(link.launcher)

    def _hand_over_all(self, link: Link) -> None:
        """Give a launcher the orders that no other has, and ask it for the unattended runs."""
        if not self._is_understood(link):
            return
        for run_id in list(self._followed.orders):
            self._hand_over(run_id, link)
        for run_id in self._followed.unattended:
            link.follow(run_id)

    def _hand_over(self, run_id: str, link: Link) -> None:
        """Give an order to a launcher, unless another has it, or this one does not understand it."""
        order = self._followed.orders[run_id]
        if order.link is not None or link.objection or not self._is_understood(link):
            return
        order.link, order.sent_s = link, self._launchers.clock.look()
        link.send_encoded(protocol.start_for(link.launcher, order.request.to_message()) or order.message)

    def _ask_others(self) -> None:
        """Ask all other launchers for the unattended runs: former launchers may still have them."""
        self._seeks = False
        if self._followed.unattended:
            for link in self._launchers.connect_to_others():
                for run_id in self._followed.unattended:
                    link.follow(run_id)

    # Launchers that die or hang

    def _lose(self, link: Link) -> None:
        """Continue without a launcher that is gone or given up."""
        self._launchers.drop(link)
        self._followed.detach_all(link)
        for run_id in link.attached:
            if self.is_stopping(run_id):
                self._store.signal_run(run_id, signal.SIGTERM)  # the launcher may have died with the request unread
        if (current := self._launchers.current) is not None:
            self._hand_over_all(current)

    def _lost_connection(self, link: Link) -> None:
        was_current = link is self._launchers.current
        self._lose(link)
        if was_current:
            self._restarts.count_death("the launcher died")

    def _watch(self) -> None:
        """Check that every order gets confirmed, and that each launcher that owes an answer still works."""
        for link in self._launchers.links():
            orders = {run_id: order for run_id, order in self._followed.orders.items() if order.link is link}
            owes = bool(orders or link.attached or link.asked)
            clock = self._launchers.clock
            late = {run_id for run_id, order in orders.items() if clock.since_s(order.sent_s) >= QUIET_S}
            if link.is_overdue(owes=owes):
                self._leave_hanging(link)
            elif not owes and link is not self._launchers.current:
                self._lose(link)
            elif link.launcher and late - link.doubts:  # one that still begins has more time to say hello
                link.doubts |= late
                link.ask()  # the answer tells whether it still has them

    def _leave_hanging(self, link: Link) -> None:
        """Give up a launcher that does not answer. Its runs continue, and are followed by their records and locks."""
        if link.hangs:
            return
        who = f"The launcher {link.address.key}" + (f" (pid {link.pid})" if link.pid else "")
        if link.address.is_service:
            log.error("%s hangs: it does not answer. What is ordered waits; restart the launcher service", who)
            link.hangs = True
            for run_id in link.attached:
                self._followed.unattended.setdefault(run_id, time.monotonic())
            return
        was_current = link is self._launchers.current
        fate = "killed" if link.kill() else "left"
        log.error("%s hangs: it does not answer, and is %s. Its %d runs continue", who, fate, len(link.attached))
        self._lose(link)
        if was_current:
            self._restarts.replace()

    # Messages

    def _receive(self) -> None:
        for link in self._launchers.links():
            hung = link.hangs
            try:
                for message in link.receive():
                    with self._guard(f"Handling a message of the launcher about run {message.get('id')}"):
                        self._handle(link, message)
            except EOFError:
                self._lost_connection(link)
            except ProtocolError as error:
                log.error("The launcher does not make sense: %s", error)
                self._lost_connection(link)
            if hung and not link.hangs:
                log.info("The launcher %s answers again", link.address.key)

    def _handle(self, link: Link, message: dict[str, Any]) -> None:
        kind, run_id = message.get("type"), str(message.get("id"))
        if kind == "hello":
            self._meet(link, message)
        elif kind == "started":
            self._restarts.note_confirmation()
            self._followed.confirm(run_id, link)
        elif kind == "followed":
            self._followed.attach(run_id, link)
        elif kind == "refused" and run_id in self._followed.orders:
            self._followed.fail(run_id, str(message.get("reason")))
        elif kind == "elsewhere":
            self._followed.detach(run_id)
        elif kind == "unknown":
            link.asked.discard(run_id)
            if message.get("asked") in ("stop", "kill"):
                signum = signal.SIGTERM if message["asked"] == "stop" else signal.SIGKILL
                self._store.signal_run(run_id, signum)
        elif kind == "exited":
            self._followed.exited(run_id, message.get("exit_code"), message.get("record"))
        elif kind == "spare_died":
            self._launchers.counts.spare_deaths += 1
        elif kind == "superseded" and link is self._launchers.current:
            self._launchers.supersede()
            with contextlib.suppress(AirExecutorError, OSError):  # the next order tries again
                self._launchers.connect()
        elif kind == "status" and message.get("waiting") == 0:
            for doubtful in link.doubts & self._followed.orders.keys():
                self._followed.orders[doubtful].link = None  # the order got lost
                self._hand_over(doubtful, self._launchers.current or link)
            link.doubts.clear()

    def _meet(self, link: Link, launcher: dict[str, Any]) -> None:
        """Note what a launcher says of itself, and give it orders if the two understand each other."""
        link.launcher = launcher
        self._launchers.count(link)
        if isinstance(pid := launcher.get("pid"), int) and not self._launchers.is_service:
            link.note_process(pid)
        link.objection = protocol.objection(launcher)
        if (keep := protocol.keep_message(self._config, launcher)) and not link.address.is_service:
            link.send(keep)  # a service has options of its own
        if link.objection:
            log.error("Orders wait: %s", link.objection)
        elif link is self._launchers.current:
            self._hand_over_all(link)
