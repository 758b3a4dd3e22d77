"""An executor's side of the launcher: orders runs, and tells when they have ended.

The launcher's messages are only the quick way. What counts is on disk, so a launcher that dies takes no run with
it: runs whose launcher is gone are followed through their records and locks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from typing import Any

from filelock import FileLock

from air_executor.config import Config
from air_executor.errors import AirExecutorError, LauncherAwayError, ProtocolError, RecordError
from air_executor.guard import Guard
from air_executor.launcher import protocol
from air_executor.launcher.address import (
    Address,
    address,
    code_version,
    environment,
    module_command,
    packages_stamp,
    service_address,
)
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import append_to_log

log = logging.getLogger(__name__)

#: How often runs without a launcher are looked at, in seconds.
_LOOK_S = 1.0

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


class LocalBackend:
    """Runs on this machine, each forked by a launcher. Implements :class:`air_executor.runs.backend.RunBackend`."""

    def __init__(self, store: RunStore, config: Config) -> None:
        self._store = store
        self._config = config
        self._is_service = config.launcher == "service"
        self._address: Address = service_address(store) if self._is_service else address(store, config)
        self._packages, self._code = packages_stamp(), code_version()
        self._checked_s = 0.0
        self._connection: socket.socket | None = None
        self._decoder = protocol.Decoder()
        self._outbox = bytearray()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self._retry_s = 0.0
        #: Every run that is followed, as it was last known here.
        self._records: dict[str, RunRecord] = {}
        #: Ordered, but no launcher has said yet that it has them.
        self._ordered: dict[str, RunRequest] = {}
        #: A launcher that is connected tells of their end.
        self._attached: set[str] = set()
        #: No launcher tells of them; the value is when this became so, on the monotonic clock.
        self._alone: dict[str, float] = {}
        self._looked_s = 0.0
        #: Since when those of which nothing can be read are so, on the monotonic clock.
        self._obscure: dict[str, float] = {}
        self._guard = Guard(log)
        #: Those among them that are still to be looked at in this round.
        self._unseen: list[str] = []
        self._ended: list[RunRecord] = []

    def warm_up(self) -> None:
        """Have a launcher ready for the first run. A failure is logged; the first run meets it again."""
        try:
            self._connect()
        except (AirExecutorError, OSError) as error:
            log.error("The launcher cannot be started yet: %s", error)

    # The interface

    def start(self, request: RunRequest, record: RunRecord) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.start`."""
        protocol.encode({"type": "start", "request": request.to_message()})  # raises before anything is begun
        self._leave_outdated_launcher()
        self._store.create(record)
        self._records[request.id] = record
        self._ordered[request.id] = request
        self._order(request)

    def follow(self, record: RunRecord) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.follow`."""
        self._records[record.id] = record
        self._alone[record.id] = time.monotonic()
        self._looked_s = 0.0
        if self._connection is not None:
            self._send({"type": "follow", "id": record.id})

    def ended(self) -> list[RunRecord]:
        """See :meth:`air_executor.runs.backend.RunBackend.ended`."""
        if self._connection is None and self._ordered:
            self._reconnect()
        if self._connection is not None:
            self._flush()
            self._receive()
        if self._launcher is not None and self._launcher.poll() is not None:
            self._launcher = None  # reaped
        if self._alone and (self._unseen or time.monotonic() - self._looked_s >= _LOOK_S):
            self._look_after_the_lonely()
        ended, self._ended = self._ended, []
        return ended

    def fileno(self) -> int | None:
        """See :meth:`air_executor.runs.backend.RunBackend.fileno`."""
        return None if self._connection is None else self._connection.fileno()

    def has_news(self) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.has_news`."""
        was_connected = self._connection is not None
        return bool(self.ends()) or (was_connected and self._connection is None)

    def ends(self) -> list[str]:
        """See :meth:`air_executor.runs.backend.RunBackend.ends`."""
        self._receive()
        return [record.id for record in self._ended]

    def due_in_s(self) -> float | None:
        """See :meth:`air_executor.runs.backend.RunBackend.due_in_s`."""
        now_s, due_s = time.monotonic(), []
        if self._connection is None and self._ordered:
            due_s.append(self._retry_s)
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
        if self._connection is not None:
            self._send({"type": message, "id": run_id})
        else:
            signal_by_pid(self._store, run_id, signum)

    def close(self) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.close`."""
        if self._connection is not None and self._outbox:
            self._connection.settimeout(_CLOSE_S)
            with contextlib.suppress(OSError):
                self._connection.sendall(self._outbox)
        self._disconnect()
        for runs in (self._records, self._ordered, self._attached, self._alone):
            runs.clear()

    # The connection

    def _leave_outdated_launcher(self) -> None:
        """Go to another launcher when packages were installed, upgraded or removed: this one has the former in memory.

        Not when this very code, or Airflow's, was: that takes a new scheduler.
        """
        now_s = time.monotonic()
        if self._is_service or self._ordered or now_s < self._checked_s + _PACKAGES_S:
            return
        self._checked_s = now_s
        if packages_stamp() == self._packages or code_version() != self._code:
            return
        self._packages = packages_stamp()
        self._address = address(self._store, self._config)
        log.info("Installed packages have changed; going on with a new launcher, %s", self._address.key)
        self._disconnect()
        for run_id in self._attached:
            self._alone[run_id] = now_s
        self._attached = set()

    def _order(self, request: RunRequest) -> None:
        if self._connection is None:
            self._reconnect()  # hands over all that is ordered
        else:
            self._send({"type": "start", "request": request.to_message()})

    def _reconnect(self) -> None:
        """Connect, and hand over what was ordered; if there is no way, fail it."""
        if time.monotonic() < self._retry_s:
            return
        try:
            self._connect()
        except (AirExecutorError, OSError) as error:
            self._count_death(f"no launcher can be started: {error}")
            return
        for request in list(self._ordered.values()):
            self._send({"type": "start", "request": request.to_message()})
        for run_id in self._alone:
            self._send({"type": "follow", "id": run_id})

    def _connect(self) -> None:
        if self._connection is not None:
            return
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
        connection.setblocking(False)
        self._connection = connection
        self._decoder = protocol.Decoder()
        self._outbox.clear()

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

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._outbox.clear()

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
        log.error("%s; giving up on %d runs that wait for it", why, len(self._ordered))
        for run_id in list(self._ordered):
            if self._is_begun(run_id):
                self._leave_alone(run_id)
            else:
                self._fail(run_id, f"{why}. Its log is {self._address.log}; `air-executor doctor` tells more")
        self._deaths = 0

    def _leave_alone(self, run_id: str) -> None:
        """Follow a run through its record and lock: no launcher tells of it."""
        self._ordered.pop(run_id, None)
        self._attached.discard(run_id)
        self._alone[run_id] = time.monotonic()

    def _is_begun(self, run_id: str) -> bool:
        """Tell whether a launcher took an order before it died."""
        try:
            record = self._store.read(run_id)
            return record.state is not RunState.QUEUED or self._store.has_runner(record)
        except AirExecutorError:
            return False

    def _lost_connection(self) -> None:
        self._disconnect()
        now_s = time.monotonic()
        attached, self._attached = self._attached, set()
        for run_id in attached:
            self._alone[run_id] = now_s
            if self._store.stop_request(run_id) is not None:
                signal_by_pid(self._store, run_id, signal.SIGTERM)  # the launcher may have died with the request unread
        self._looked_s = 0.0
        # What was ordered may have been taken by the launcher that died. A second request for it is harmless: the
        # runner that finds the run begun, by its lock or its record, leaves it alone.
        self._count_death("the launcher died")

    # Messages

    def _send(self, message: dict[str, Any]) -> None:
        self._outbox += protocol.encode(message)
        self._flush()

    def _flush(self) -> None:
        if self._connection is None or not self._outbox:
            return
        try:
            sent = self._connection.send(self._outbox)
        except BlockingIOError:
            return
        except OSError:
            return  # the end of the connection is noticed on reading, after the last messages
        del self._outbox[:sent]

    def _receive(self) -> None:
        while self._connection is not None:
            try:
                data = self._connection.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost_connection()
                return
            try:
                for message in self._decoder.feed(data):
                    with self._guard(f"Handling a message of the launcher about run {message.get('id')}"):
                        self._handle(message)
            except ProtocolError as error:
                log.error("The launcher does not make sense: %s", error)
                self._lost_connection()

    def _handle(self, message: dict[str, Any]) -> None:
        kind, run_id = message.get("type"), str(message.get("id"))
        if kind == "started":
            self._deaths = 0
            if self._ordered.pop(run_id, None) is not None:
                self._attached.add(run_id)
        elif kind == "followed":
            if self._alone.pop(run_id, None) is not None:
                self._attached.add(run_id)
        elif kind == "refused" and run_id in self._ordered:
            self._fail(run_id, str(message.get("reason")))
        elif kind == "elsewhere" and run_id in self._records:
            self._leave_alone(run_id)
        elif kind == "unknown" and message.get("asked") in ("stop", "kill"):
            signum = signal.SIGTERM if message["asked"] == "stop" else signal.SIGKILL
            signal_by_pid(self._store, run_id, signum)
        elif kind == "exited":
            self._exited(run_id, message.get("exit_code"))

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
            record = self._store.read(run_id)
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
            append_to_log(record.log_file, reason)
            self._store.write(record)
        except Exception as error:
            log.error("Run %s failed (%s), which can't be recorded: %s", run_id, reason, error)
        self._end(record)

    def _end(self, record: RunRecord) -> None:
        self._records.pop(record.id, None)
        self._ordered.pop(record.id, None)
        self._attached.discard(record.id)
        self._alone.pop(record.id, None)
        self._obscure.pop(record.id, None)
        self._ended.append(record)

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
            elif began_s - self._obscure.setdefault(run_id, began_s) >= _OBSCURE_S:
                with self._guard(f"Looking for the runner of run {run_id}"):
                    if not self._store.has_runner(self._records[run_id]):
                        self._fail(run_id, f"the run can no longer be followed: {look.error}", RunState.LOST)

    def _look_at(self, run_id: str, since_s: float) -> None:
        try:
            record = self._store.settle(self._store.read(run_id))
            unborn = record.state is RunState.QUEUED and not self._store.has_runner(record)
            if unborn and time.monotonic() - since_s > _BIRTH_S:
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
