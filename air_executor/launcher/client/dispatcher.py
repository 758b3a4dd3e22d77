"""The conversation with launchers: handing orders over, handling what they say, continuing without those that die."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from typing import Any

from air_executor.config import Config
from air_executor.errors import AirExecutorError, ProtocolError
from air_executor.guard import Guard
from air_executor.launcher import protocol
from air_executor.launcher.client.followed import Followed
from air_executor.launcher.client.launchers import Launchers
from air_executor.launcher.client.link import QUIET_S, Link
from air_executor.launcher.client.restarts import Restarts
from air_executor.runs.store import RunStore

log = logging.getLogger(__name__)

#: While an order is not confirmed, how often to check whether its launcher hangs, in seconds.
_WATCH_S = 1.0


class Dispatcher:
    """Gives one executor's, or job manager's, orders to launchers, and notes in ``followed`` what becomes of them."""

    def __init__(self, store: RunStore, config: Config, launchers: Launchers, followed: Followed) -> None:
        self._store = store
        self._config = config
        self._launchers = launchers
        self._followed = followed
        self._guard = Guard(log)
        self._restarts = Restarts(launchers, followed)
        #: Whether the other launchers have still to be asked for the unattended runs.
        self._seeks = False

    def hand_over(self, run_id: str) -> None:
        """Give an order to the launcher; without one, connect first, which hands over all orders."""
        if (link := self._launchers.current) is None:
            self._reconnect()
        else:
            self._hand_over(run_id, link)

    def seek(self, run_id: str) -> None:
        """Ask launchers for a run that was begun earlier: the current one now, the others at the next look."""
        self._seeks = True
        if (link := self._launchers.current) is not None and self._is_understood(link):
            link.follow(run_id)

    def signal(self, run_id: str, message: str, signum: signal.Signals) -> None:
        """Send a run's launcher the ``message`` stop or kill; if it can't act, send the runner the signal."""
        order = self._followed.orders.get(run_id)
        attached = (link for link in self._launchers.links() if run_id in link.attached)
        link = next(attached, order.link if order else self._launchers.current)
        if link is None or link.hangs or link.objection:
            self._store.signal_run(run_id, signum)
        else:
            link.send({"type": message, "id": run_id})

    def look(self) -> None:
        """Do what is due: connect, ask for runs, receive, and leave launchers that hang or are not needed."""
        if self._launchers.current is None and self._followed.orders:
            self._reconnect()
        if self._seeks:
            self._ask_others()
        self.receive()
        self._watch()
        self._launchers.reap()

    def due_in_s(self) -> float | None:
        """Return in how many seconds to look again; ``None`` when only messages matter."""
        if not self._followed.orders:
            return None
        return _WATCH_S if self._launchers.current is not None else self._restarts.due_in_s()

    def receive(self) -> None:
        """Handle the messages that have come."""
        for link in self._launchers.links():
            hung = link.hangs
            try:
                for message in link.receive():
                    with self._guard(f"Handling a message of the launcher about run {message.get('id')}"):
                        self._handle(link, message)
            except EOFError:
                self._lost_connection(link)
            except ProtocolError as error:
                log.error("Invalid message from the launcher; closing the connection: %s", error)
                self._lost_connection(link)
            if hung and not link.hangs:
                log.info("The launcher %s answers again", link.address.key)

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
            if self._store.stop_request(run_id) is not None:
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
