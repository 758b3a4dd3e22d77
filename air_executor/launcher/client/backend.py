"""An executor's side of the launcher: orders runs, and tells when they have ended.

The launcher's messages are only the quick way. What counts is on disk, so a launcher that dies takes no run with
it: runs whose launcher is gone are followed through their records and locks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from air_executor.config import Config
from air_executor.errors import AirExecutorError, LauncherAwayError, ProtocolError, RecordError, RecordVersionError
from air_executor.guard import Guard
from air_executor.launcher import protocol
from air_executor.launcher.address import (
    Address,
    address,
    all_addresses,
    environment,
    module_command,
    service_address,
)
from air_executor.launcher.client.link import ANSWER_S, LOOK_S, QUIET_S, Link
from air_executor.launcher.fingerprint import changed_code, code_version, packages_stamp
from air_executor.machine.awake import AwakeClock
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import append_to_log

log = logging.getLogger(__name__)

#: How often runs without a launcher are looked at, in seconds.
_LOOK_S = 1.0

#: While an order is not confirmed, how often it is looked whether its launcher hangs, in seconds.
_WATCH_S = 1.0

#: How often it is looked whether packages were installed or upgraded, in seconds.
_PACKAGES_S = 5.0

#: A run of which nothing can be read for so many seconds, and that has no runner, is lost.
_OBSCURE_S = 60.0

#: So long they are looked at in one call, in seconds.
_LOOK_BUDGET_S = 0.004

#: From the order to the runner's lock it takes at most this many seconds, on the slowest machine.
_BIRTH_S = 30.0

#: Waiting times before a launcher is started again after one that died, in seconds. When they are used up, the
#: runs that wait for one fail.
_RESTART_S = (0.0, 1.0, 5.0)

#: The same for a launcher that is a service: it may be restarted, or upgraded, by its own manager.
_SERVICE_S = (1.0,) * 60

#: How long :meth:`LocalBackend.close` may take to hand over what was ordered, in seconds.
_CLOSE_S = 2.0

#: A launcher's log that is longer than this many bytes is started anew with the next launcher.
_MAX_LOG_BYTES = 1 << 20


@dataclass
class _Order:
    """A run that was ordered, and that no launcher has confirmed yet."""

    request: RunRequest
    link: Link | None = None
    """The launcher that was told of it."""
    sent_s: float = 0.0
    """When, in seconds of work."""


class LocalBackend:
    """Runs on this machine, each forked by a launcher. Implements :class:`air_executor.runs.backend.RunBackend`."""

    def __init__(self, store: RunStore, config: Config) -> None:
        self._store = store
        self._config = config
        self._is_service = config.launcher == "service"
        self._address: Address = service_address(store) if self._is_service else address(store, config)
        self._packages, self._code = packages_stamp(), code_version()
        self._has_compared = False
        self._checked_s = 0.0
        #: Of what launchers owe an answer for.
        self._work = AwakeClock(LOOK_S)
        self._selector = selectors.DefaultSelector()
        #: To the launcher that gets new orders.
        self._link: Link | None = None
        #: To launchers that get no new orders, and still tell of runs.
        self._former: list[Link] = []
        self._launcher: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self._retry_s = 0.0
        #: Since when the launcher has taken no connections, in seconds of work.
        self._shut_s: float | None = None
        #: Every run that is followed, as it was last known here.
        self._records: dict[str, RunRecord] = {}
        #: Ordered, but no launcher has said yet that it has them.
        self._ordered: dict[str, _Order] = {}
        #: No launcher tells of them; the value is when this became so, on the monotonic clock.
        self._alone: dict[str, float] = {}
        #: Other launchers may know some of them, and were not asked yet.
        self._seeks = False
        self._looked_s = 0.0
        #: Since when those of which nothing can be read are so, on the monotonic clock.
        self._obscure: dict[str, float] = {}
        self._guard = Guard(log)
        self._awake = AwakeClock()
        #: Those among them that are still to be looked at in this round.
        self._unseen: list[str] = []
        self._ended: list[RunRecord] = []

    def warm_up(self) -> None:
        """Have a launcher ready for the first run. A failure is logged; the first run meets it again."""
        try:
            self._connect()
        except (AirExecutorError, OSError, NotImplementedError) as error:  # the last one: no locks
            log.error("The launcher cannot be started yet: %s", error)

    # The interface

    def order(self, request: RunRequest, record: RunRecord) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.order`."""
        protocol.encode({"type": "start", "request": request.to_message()})  # raises before anything is begun
        self._leave_outdated_launcher()
        self._store.create(record)
        self._records[request.id] = record
        self._ordered[request.id] = _Order(request)
        if self._link is None:
            self._reconnect()  # hands over all that is ordered
        else:
            self._hand_over(request.id, self._link)

    def follow(self, record: RunRecord) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.follow`."""
        self._records[record.id] = record
        self._alone[record.id] = time.monotonic()
        self._looked_s = 0.0
        self._seeks = True
        if self._link is not None and not (self._is_service and not self._link.launcher):
            self._link.follow(record.id)

    def take_ends(self) -> list[RunRecord]:
        """See :meth:`air_executor.runs.backend.RunBackend.take_ends`."""
        self._awake.look()
        if self._link is None and self._ordered:
            self._reconnect()
        if self._seeks:
            self._ask_others()
        self._receive()
        self._watch()
        if self._launcher is not None and self._launcher.poll() is not None:
            self._launcher = None  # reaped
        if self._alone and (self._unseen or time.monotonic() - self._looked_s >= _LOOK_S):
            self._look_after_the_lonely()
        ended, self._ended = self._ended, []
        return ended

    def fileno(self) -> int | None:
        """See :meth:`air_executor.runs.backend.RunBackend.fileno`."""
        # One for all launchers, readable also when one of them can take more of what was ordered.
        return self._selector.fileno() if self._links() else None  # type: ignore[attr-defined,no-any-return]

    def has_news(self) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.has_news`."""
        was_connected = self._link is not None
        return bool(self.ends()) or (was_connected and self._link is None)

    def ends(self) -> list[str]:
        """See :meth:`air_executor.runs.backend.RunBackend.ends`."""
        self._receive()
        return [record.id for record in self._ended]

    def due_in_s(self) -> float | None:
        """See :meth:`air_executor.runs.backend.RunBackend.due_in_s`."""
        now_s, due_s = time.monotonic(), []
        if self._ordered:
            due_s.append(self._retry_s if self._link is None else now_s + _WATCH_S)
        if self._alone:
            due_s.append(now_s if self._unseen else self._looked_s + _LOOK_S)
        return max(0.0, min(due_s) - now_s) if due_s else None

    def stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.stop`."""
        try:
            self._store.request_stop(run_id, reason, unwanted=unwanted)
        except AirExecutorError as error:
            log.warning("The reason for stopping run %s is not on record: %s", run_id, error)
        self._signal(run_id, "stop", signal.SIGTERM)

    def kill(self, run_id: str) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.kill`."""
        self._signal(run_id, "kill", signal.SIGKILL)

    def _signal(self, run_id: str, message: str, signum: signal.Signals) -> None:
        order = self._ordered.get(run_id)
        link = next((link for link in self._links() if run_id in link.attached), order.link if order else self._link)
        if link is None or link.hangs or link.objection:
            signal_by_pid(self._store, run_id, signum)
        else:
            link.send({"type": message, "id": run_id})

    def close(self) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.close`."""
        for link in self._links():
            link.close(_CLOSE_S)
        self._link, self._former = None, []
        self._selector.close()
        for runs in (self._records, self._ordered, self._alone):
            runs.clear()

    # Launchers

    def _links(self) -> list[Link]:
        return self._former if self._link is None else [self._link, *self._former]

    def _leave_outdated_launcher(self) -> None:
        """Go to another launcher when packages were installed, upgraded or removed: this one has the former in memory.

        Not when this very code, or Airflow's, was: that takes a new scheduler.
        """
        now_s = time.monotonic()
        if self._is_service or now_s < self._checked_s + _PACKAGES_S:
            return
        self._checked_s = now_s
        if packages_stamp() == self._packages or code_version() != self._code:
            return
        self._packages = packages_stamp()
        self._address = address(self._store, self._config)
        log.info("Installed packages have changed; going on with a new launcher, %s", self._address.key)
        self._supersede()

    def _supersede(self) -> None:
        """Give no more orders to the present launcher. It tells what becomes of those that it has."""
        if self._link is not None:
            self._former.append(self._link)
            self._link = None

    def _reconnect(self) -> None:
        """Connect, and hand over what was ordered; if there is no way, fail it."""
        if time.monotonic() < self._retry_s:
            return
        try:
            self._connect()
        except TimeoutError as error:
            self._wait_for_room(error)
            return
        except (AirExecutorError, OSError, NotImplementedError) as error:  # the last one: no locks
            self._count_death(f"no launcher can be started: {error}")
            return
        if self._link is None:
            return
        self._hand_over_all(self._link)

    def _hand_over_all(self, link: Link) -> None:
        """Give a launcher what no other has, and ask it for the runs of which none tells."""
        if self._is_service and not link.launcher:
            return  # whether it understands is not known yet
        for run_id in list(self._ordered):
            self._hand_over(run_id, link)
        for run_id in self._alone:
            link.follow(run_id)

    def _hand_over(self, run_id: str, link: Link) -> None:
        """Give an order to a launcher, unless another has it. One of another version is listened to first."""
        order = self._ordered[run_id]
        if order.link is not None or link.objection or (self._is_service and not link.launcher):
            return
        order.link, order.sent_s = link, self._work.look()
        link.send(protocol.start_message(order.request.to_message(), link.launcher))

    def _connect(self) -> None:
        if self._link is not None:
            return
        if not self._has_compared:
            self._compare_code()
        launched = None
        try:
            connection = protocol.connect(self._address.socket)
        except (FileNotFoundError, ConnectionRefusedError):
            if self._is_service:
                raise LauncherAwayError("the launcher service does not run: start `air-executor launcher`") from None
            with FileLock(self._address.lock, timeout=_CLOSE_S, mode=0o600):
                try:
                    connection = protocol.connect(self._address.socket)
                except (FileNotFoundError, ConnectionRefusedError):
                    connection = self._launch()
                    launched = self._launcher
        self._shut_s = None
        self._link = Link(connection, self._address, self._selector, self._work)
        if launched is not None:
            self._link.note_process(launched.pid)

    def _compare_code(self) -> None:
        """Leave a launcher that has code in memory which was changed since: whoever restarts a scheduler wants the new.

        Not while the scheduler runs: it has the former code itself.
        """
        self._has_compared = True
        if (file := changed_code(self._address.code)) is None:
            return
        if self._is_service:
            log.warning("%s has changed since the launcher service has imported it: restart the service", file)
        elif self._address.socket.exists():
            log.info("%s has changed; going on with a new launcher", file)
            self._leave_socket()

    def _launch(self) -> socket.socket:
        """Start a launcher, and connect to it. It inherits its listening socket, so it need not be warm for that.

        Nor need it live: one that dies at once is noticed as any other, while its socket is still open here.
        """
        with contextlib.suppress(FileNotFoundError):
            if self._address.log.stat().st_size > _MAX_LOG_BYTES:
                self._address.log.unlink()
        with (
            protocol.listen(self._address.socket) as listener,
            open(self._address.log, "ab", opener=_private) as output,
        ):
            self._launcher = subprocess.Popen(
                [
                    *module_command("air_executor.launcher"),
                    str(listener.fileno()),
                    self._address.key,
                    self._config.to_json(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
            log.info("Started launcher %s with pid %d", self._address.key, self._launcher.pid)
            return protocol.connect(self._address.socket)

    def _ask_others(self) -> None:
        """Ask all other launchers for the runs that this one does not know: former ones may still have them."""
        self._seeks = False
        known = {link.address for link in self._links()} | {self._address}
        for other in all_addresses(self._store) if self._alone else ():
            if other in known:
                continue
            with contextlib.suppress(OSError, AirExecutorError):  # those without a launcher need not be asked
                link = Link(protocol.connect(other.socket), other, self._selector, self._work)
                for run_id in self._alone:
                    link.follow(run_id)
                self._former.append(link)

    # Launchers that die or hang

    def _count_death(self, why: str) -> None:
        """Note that a launcher died, or could not be born. Unless that happened too often, another is started."""
        if not self._ordered:
            return
        waits_s = _SERVICE_S if self._is_service else _RESTART_S
        if self._deaths < len(waits_s):
            self._retry_s = time.monotonic() + waits_s[self._deaths]
            self._deaths += 1
            log.log(logging.WARNING if self._deaths == 1 else logging.DEBUG, "%s; trying again", why)
            return
        unclaimed = [run_id for run_id, order in self._ordered.items() if order.link is None]
        log.error("%s; giving up on %d runs that wait for it", why, len(unclaimed))
        for run_id in unclaimed:
            if self._is_begun(run_id):
                self._leave_alone(run_id)
            else:
                self._fail(run_id, f"{why}. Its log is {self._address.log}; `air-executor doctor` tells more")
        self._deaths = 0

    def _leave_alone(self, run_id: str) -> None:
        """Follow a run through its record and lock: no launcher tells of it."""
        self._forget(run_id)
        self._alone[run_id] = time.monotonic()

    def _is_begun(self, run_id: str) -> bool:
        """Tell whether a launcher took an order before it died."""
        try:
            record = self._store.read(run_id)
            return record.state is not RunState.QUEUED or self._store.has_runner(record)
        except AirExecutorError:
            return False

    def _lose(self, link: Link) -> None:
        """Go on without a launcher that is gone, or is to be left."""
        link.close()
        if link is self._link:
            self._link = None
        elif link in self._former:
            self._former.remove(link)
        now_s = time.monotonic()
        for run_id in link.attached:
            self._alone[run_id] = now_s
            if self._store.stop_request(run_id) is not None:
                signal_by_pid(self._store, run_id, signal.SIGTERM)  # the launcher may have died with the request unread
        if link.attached:
            self._looked_s = 0.0
        # What was ordered may have been taken by the launcher that died. A second request for it is harmless: the
        # runner that finds the run begun, by its lock or its record, leaves it alone.
        for order in self._ordered.values():
            if order.link is link:
                order.link = None
        if self._link is not None:
            self._hand_over_all(self._link)

    def _lost_connection(self, link: Link) -> None:
        was_current = link is self._link
        self._lose(link)
        if was_current:
            self._count_death("the launcher died")

    def _wait_for_room(self, error: TimeoutError) -> None:
        """Wait for a launcher that takes no connections; one that does not for long hangs."""
        self._retry_s = time.monotonic() + _LOOK_S
        if self._shut_s is None:
            self._shut_s = self._work.look()
            log.warning("%s; trying again", error)
        elif self._work.since_s(self._shut_s) >= QUIET_S + ANSWER_S and not self._is_service:
            log.error("%s: it hangs, and is replaced", error)
            self._leave_socket()

    def _leave_socket(self) -> None:
        """Remove the socket of a launcher that hangs: nobody connects to it any more, and the next one is started."""
        self._shut_s, self._retry_s = None, 0.0
        with contextlib.suppress(Timeout, OSError), FileLock(self._address.lock, timeout=_CLOSE_S, mode=0o600):
            self._address.socket.unlink(missing_ok=True)

    def _watch(self) -> None:
        """See to it that every order is confirmed, and that each launcher that owes an answer still works."""
        for link in self._links():
            orders = {run_id: order for run_id, order in self._ordered.items() if order.link is link}
            owes = bool(orders or link.attached or link.asked)
            late = {run_id for run_id, order in orders.items() if self._work.since_s(order.sent_s) >= QUIET_S}
            if link.is_overdue(owes=owes):
                self._leave_hanging(link)
            elif not owes and link is not self._link:
                self._lose(link)
            elif late - link.doubts:
                link.doubts |= late
                link.ask()  # the answer tells whether it still has them

    def _leave_hanging(self, link: Link) -> None:
        """Give up a launcher that does not answer. Its runs go on, and are followed by their records and locks."""
        if link.hangs:
            return
        who = f"The launcher {link.address.key}" + (f" (pid {link.pid})" if link.pid else "")
        if link.address.is_service:
            log.error("%s hangs: it does not answer. What is ordered waits; restart the launcher service", who)
            link.hangs = True
            for run_id in link.attached:
                self._alone.setdefault(run_id, time.monotonic())
            return
        was_current = link is self._link
        killed = link.kill()
        fate = "killed" if killed else "left"
        log.error("%s hangs: it does not answer, and is %s. Its %d runs go on", who, fate, len(link.attached))
        self._lose(link)
        if was_current:
            self._leave_socket()

    # Messages

    def _receive(self) -> None:
        for link in self._links():
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
            self._deaths = 0
            if self._ordered.pop(run_id, None) is not None:
                link.attached.add(run_id)
        elif kind == "followed":
            link.asked.discard(run_id)
            if self._alone.pop(run_id, None) is not None:
                link.attached.add(run_id)
        elif kind == "refused" and run_id in self._ordered:
            self._fail(run_id, str(message.get("reason")))
        elif kind == "elsewhere" and run_id in self._records:
            self._leave_alone(run_id)
        elif kind == "unknown":
            link.asked.discard(run_id)
            if message.get("asked") in ("stop", "kill"):
                signum = signal.SIGTERM if message["asked"] == "stop" else signal.SIGKILL
                signal_by_pid(self._store, run_id, signum)
        elif kind == "exited":
            self._exited(run_id, message.get("exit_code"))
        elif kind == "superseded" and link is self._link:
            self._supersede()
            with contextlib.suppress(AirExecutorError, OSError):  # the next order tries again
                self._connect()
        elif kind == "status" and message.get("waiting") == 0:
            for doubtful in link.doubts & self._ordered.keys():
                self._ordered[doubtful].link = None  # it got lost
                self._hand_over(doubtful, self._link or link)
            link.doubts.clear()

    def _meet(self, link: Link, launcher: dict[str, Any]) -> None:
        """Take note of what a launcher says of itself, and give it orders if the two understand each other."""
        link.launcher = launcher
        if isinstance(pid := launcher.get("pid"), int) and not self._is_service:
            link.note_process(pid)
        link.objection = protocol.objection(launcher)
        if (keep := protocol.keep_message(self._config, launcher)) and not link.address.is_service:
            link.send(keep)  # a service has options of its own
        if link.objection:
            log.error("Orders wait: %s", link.objection)
        elif link is self._link:
            self._hand_over_all(link)

    def _exited(self, run_id: str, exit_code: int | None) -> None:
        if run_id not in self._records:
            return
        try:
            record = self._store.read(run_id)
        except AirExecutorError as error:
            self._fail(run_id, f"the runner ended with exit code {exit_code}, and its record can't be read: {error}")
            return
        if record.state.is_end:
            self._end(record)
        else:
            reason = f"the runner ended with exit code {exit_code}, and its end could not be recorded"
            self._fail(run_id, reason, RunState.LOST)

    def _fail(self, run_id: str, reason: str, state: RunState = RunState.FAILED) -> None:
        """End a run that nobody else can: it has no runner, or nothing can be read or written of it."""
        if (record := self._records.get(run_id)) is None:
            return
        with contextlib.suppress(Exception):  # what is known here has to do
            try:
                record = self._store.read(run_id)
            except RecordError as error:
                if not isinstance(error, RecordVersionError):  # that stays as it is
                    self._store.set_aside(run_id)
                raise
            if record.state.is_end:
                self._end(record)
                return
            if self._store.has_runner(record):
                self._leave_alone(run_id)
                return
        if record.state.is_end:  # as it was when it was taken over; its folder has gone since
            self._end(record)
            return
        record = record.advance(state, reason=reason)
        try:
            append_to_log(record.log_file, reason, kind=record.identity.kind)
            self._store.write(record)
        except Exception as error:
            log.error("Run %s failed (%s), which can't be recorded: %s", run_id, reason, error)
        self._end(record)

    def _end(self, record: RunRecord) -> None:
        self._records.pop(record.id, None)
        self._forget(record.id)
        self._obscure.pop(record.id, None)
        self._ended.append(record)

    def _forget(self, run_id: str) -> None:
        """Expect nothing more of a run from anybody."""
        self._ordered.pop(run_id, None)
        self._alone.pop(run_id, None)
        for link in self._links():
            link.attached.discard(run_id)
            link.asked.discard(run_id)

    # Runs without a launcher

    def _look_after_the_lonely(self) -> None:
        """Look at as many as can be in little time; the next call goes on with the others."""
        began_s = time.monotonic()
        if not self._unseen:
            self._looked_s = began_s
            self._unseen = list(self._alone)
        while self._unseen and time.monotonic() - began_s < _LOOK_BUDGET_S:
            run_id = self._unseen.pop()
            if (since_s := self._alone.get(run_id)) is None:
                continue
            with self._guard(f"Looking at run {run_id}") as look:
                self._look_at(run_id, since_s)
            if look.error is None:
                self._obscure.pop(run_id, None)
            elif self._awake.since_s(self._obscure.setdefault(run_id, began_s)) >= _OBSCURE_S:
                with self._guard(f"Looking for the runner of run {run_id}"):
                    if not self._store.has_runner(self._records[run_id]):
                        self._fail(run_id, f"the run can no longer be followed: {look.error}", RunState.LOST)

    def _look_at(self, run_id: str, since_s: float) -> None:
        try:
            record = self._store.settle(self._store.read(run_id))
            unborn = record.state is RunState.QUEUED and not self._store.has_runner(record)
            if unborn and self._awake.since_s(since_s) > _BIRTH_S:
                reason = "its launcher died before the runner was born"
                record = self._store.write(record.advance(RunState.LOST, reason=reason))
        except RecordError as error:
            if not self._store.has_runner(self._records[run_id]):
                self._fail(run_id, f"the run can no longer be followed: {error}")
            # Otherwise its runner writes the record anew with its end.
        else:
            if record.state.is_end:
                self._end(record)


def signal_by_pid(store: RunStore, run_id: str, signum: signal.Signals) -> bool:
    """Send a signal to the runner of a run, if the process with its pid is still that runner.

    :return: whether it was sent.
    """
    try:
        record = store.read(run_id)
    except AirExecutorError:
        return False
    return not record.state.is_end and store.signal_runner(record, signum)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
