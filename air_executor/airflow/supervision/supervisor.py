"""Airflow's supervisor of a task process, with what AirExecutor adds to it.

Everything that talks to the task and to the API server is Airflow's own. Added are: the task's exit is noticed at once,
limits and stop requests take effect, the run's record is kept, and the task process dies with its runner.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import attrs
import httpx
import psutil
from airflow.sdk.execution_time import supervisor as stock

from air_executor.airflow.compat import api, tokens
from air_executor.airflow.compat.supervisor import give_report_up, has_reported, is_reporting, reported_state
from air_executor.airflow.supervision import ahead, current, task, verdict
from air_executor.airflow.supervision.current import TaskGoneError
from air_executor.airflow.supervision.pidfd import PidFd
from air_executor.machine import system
from air_executor.runner.active import ActiveRun, Ending

#: How often to try again while the machine has no room for a task process, in seconds.
_TRY_S = 2.0

#: Without a pidfd, how often to check whether the task process has ended, in seconds.
_LOOK_S = 0.25

#: Bounds of one wait for something to happen, in seconds. Airflow waits for ``[workers] min_heartbeat_interval``, in
#: which a pause of the machine may not be noticed, and not at all once heartbeats have failed for long.
_LONGEST_S, _SHORTEST_S = current.BEAT_S, 1.0

#: When something that outlives the task keeps printing, how long to read what the task printed last, in seconds.
_LAST_OUTPUT_S = 1.0


@attrs.define(kw_only=True)
class AirSupervisor(stock.ActivitySubprocess):
    """Supervises the task process of the current run."""

    _run: ActiveRun = attrs.field(init=False, repr=False)
    _has_pidfd: bool = attrs.field(init=False, default=False)
    pipes: tuple[tuple[Any, ...], dict[str, Any]] | None = attrs.field(init=False, default=None, repr=False)
    """What leads to a task process that was forked ahead, until it begins."""
    is_finishing: bool = attrs.field(init=False, default=False)
    """The task process has ended, and its end is being reported to Airflow."""
    refusal: str | None = attrs.field(init=False, default=None)
    """Why Airflow did not take the state that the task reported."""
    _beaten_s: float = attrs.field(init=False, default=0.0)
    """When the last heartbeat was left, on the monotonic clock."""

    # The start

    @classmethod
    def start(cls, *, target: Callable[[], None] = stock._subprocess_main, **kwargs: Any) -> AirSupervisor:
        """Start the task process, or let the one begin that was forked ahead."""
        task.runner_pid = os.getpid()
        if target is stock._subprocess_main:
            if (waiting := ahead.take()) is not None:
                if current.run is not None:
                    current.run.expect_fork(waiting.views, waiting.inherited_bytes)
                supervisor: AirSupervisor = waiting.supervisor
                supervisor._begin(waiting.starter, **kwargs)
                return supervisor
            if sys.platform != "darwin":
                target = task.main
            if current.run is not None:
                current.run.expect_fork()
        until_s = time.monotonic() + system.NO_ROOM_S
        while True:
            try:
                return super().start(target=target, **kwargs)  # type: ignore[no-any-return]
            except OSError as error:
                # The machine has no process or memory to spare. Once the task process is there, nothing is repeated.
                is_passing = system.has_no_room(error) and current.supervisor is None and not ahead.is_forking
                if not is_passing or time.monotonic() > until_s:
                    raise
            current.nap(_TRY_S)

    def _begin(self, starter: int, *, what: Any, client: Any, logger: Any = None, **details: Any) -> None:
        """Execute a workload in the task process that was forked ahead; the arguments are those of :meth:`start`."""
        self.id, self.client, self.start_time = what.id, client, time.monotonic()
        if logger is not None:
            self.process_log = logger
        for name in attrs.fields_dict(type(self)).keys() & details.keys():
            setattr(self, name, details.pop(name))
        pipes, self.pipes = self.pipes, None
        if current.run is None or pipes is None:
            raise RuntimeError("this process has no run")
        self._register_pipe_readers(*pipes[0], **pipes[1])
        os.write(starter, current.run.record.id.encode())
        os.close(starter)
        self._on_child_started(ti=what, **details)

    def _register_pipe_readers(self, *args: Any, **kwargs: Any) -> None:
        if ahead.is_forking:
            self.pipes = args, kwargs
            return
        super()._register_pipe_readers(*args, **kwargs)
        self._make_reentrant()
        if current.run is None:
            raise RuntimeError("this process has no run")
        current.supervisor = self
        self._run = current.run
        self._run.attach(self.pid)
        fd = system.open_pidfd(self.pid)
        if fd is not None:
            # A readable pidfd only wakes the loop, which then checks for the exit. It is unregistered and closed then.
            self.selector.register(PidFd(fd), selectors.EVENT_READ, (lambda _: False, self._unwatch))
            self._has_pidfd = True

    def _unwatch(self, pidfd: PidFd) -> None:
        # If :meth:`nap` saw the exit first, while a request was handled, it is unregistered and closed already.
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(pidfd)

    def _make_reentrant(self) -> None:
        """Let the task's output be read while one of its requests is being handled, which :meth:`nap` does.

        The loop that handles the request continues with sockets that may have been emptied or closed meanwhile.
        """
        for sock, kind in self._open_sockets.items():
            if kind != "requests" and sock.gettimeout() is None:
                handler, on_close = self.selector.get_key(sock).data
                sock.setblocking(False)
                self.selector.modify(
                    sock, selectors.EVENT_READ, (functools.partial(_read_what_is_there, handler), on_close)
                )

    def _send_new_log_fd(self, req_id: int) -> None:
        super()._send_new_log_fd(req_id)
        for key in list(self.selector.get_map().values()):
            # The call has registered a socket, but not added it to the open sockets.
            if isinstance(key.fileobj, socket.socket) and key.data[1] == self._on_socket_closed:
                self._open_sockets.setdefault(key.fileobj, "logs")
        self._make_reentrant()

    def _on_child_started(self, *args: Any, **kwargs: Any) -> None:
        if ahead.is_forking:
            return
        super()._on_child_started(*args, **kwargs)
        self._run.started()
        # The request for the start was a sign of life, so the next one is due after a heartbeat's interval.
        self._last_heartbeat_attempt = self._run.heard_s = self._beaten_s = time.monotonic()
        self._run.guard_isolation(self._is_told)

    # While the task runs

    def _monitor_subprocess(self) -> None:
        with self._run.heeding_signals(monitored=True) as wake:
            self.selector.register(wake, selectors.EVENT_READ, (self._woken, None))
            try:
                super()._monitor_subprocess()
            finally:
                # After an error, the selector may be closed with everything in it.
                with contextlib.suppress(KeyError, RuntimeError):
                    self.selector.unregister(wake)
                self._run.note_over()

    @staticmethod
    def _woken(wake: Any) -> bool:
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)
        return True

    def _service_subprocess(
        self, max_wait_time: float, raise_on_timeout: bool = False, expect_signal: int | None = None
    ) -> int | None:
        if max_wait_time <= 0.0 and expect_signal is None:
            max_wait_time = _SHORTEST_S
        due_s = self._run.due_in_s()
        max_wait_time = min(max_wait_time, _LONGEST_S, math.inf if due_s is None else due_s)
        if not self._has_pidfd:
            max_wait_time = min(max_wait_time, _LOOK_S)
        code: int | None = super()._service_subprocess(max_wait_time, raise_on_timeout, expect_signal)
        system.reap_orphans(self.pid)
        if code is not None and self._open_sockets:
            # Processes that the task left behind hold its output open, and Airflow would wait for them.
            self._run.end_leftovers()
            if self._run.leftovers.are_any:
                self._close_output()
        if code is None and (ending := self._run.check(told=self._is_told())) is not None:
            self._end_task(ending)
            code = self._exit_code
        return code

    def _is_told(self) -> bool:
        return self._terminal_state is not None or is_reporting(self)

    def _close_output(self) -> None:
        """Read what there is of the task's output, and close it: a process that outlives the task holds it open."""
        until_s = time.monotonic() + _LAST_OUTPUT_S
        while self._open_sockets and self.selector.select(0) and time.monotonic() < until_s:
            super()._service_subprocess(0.0)
        if self._open_sockets:
            self._cleanup_open_sockets()

    def _end_task(self, ending: Ending) -> None:
        self.process_log.error("AirExecutor ends the task", reason=ending.reason)
        with contextlib.suppress(PermissionError, psutil.AccessDenied):  # it has become another user's, through sudo
            grace_s = self._run.grace_s if ending.grace_s is None else ending.grace_s
            self.kill(ending.signum, escalation_delay=grace_s, force=True)
        if self._exit_code is None:
            # It can't be killed. The run's end does not wait for it; the next try does.
            self._run.end_leftovers()
            self._exit_code = -signal.SIGKILL
            self._close_output()
        if ending.unwanted:
            self._terminal_state = stock.SERVER_TERMINATED

    # Heartbeats, and an API server that is away

    def _send_heartbeat_if_needed(self) -> None:
        now_s = time.monotonic()
        if now_s - self._beaten_s >= min(stock.MIN_HEARTBEAT_INTERVAL, current.BEAT_S):
            self._beaten_s = now_s
            self._run.beat()
        if now_s - self._last_heartbeat_attempt < stock.MIN_HEARTBEAT_INTERVAL:
            return
        if self._run.is_reconciled() and not tokens.is_token_old(self.client):
            # The executor writes the heartbeats of all its runs to the database, and stops what should not run.
            self._last_heartbeat_attempt = self._last_successful_heartbeat = now_s
            self.failed_heartbeats = 0
            return
        with current.patience.only_once():
            super()._send_heartbeat_if_needed()
        if self._last_successful_heartbeat >= now_s:
            self._run.heard_s = self._last_successful_heartbeat

    def _handle_heartbeat_failures(self, exc: Exception) -> None:
        if self.failed_heartbeats == 0:
            self.process_log.warning("The API server can't be reached; the task keeps running", error=str(exc))
        self.failed_heartbeats += 1
        away_s = self._run.awake.since_s(self._last_successful_heartbeat)
        if away_s > current.patience.limit_s and not self._run.is_reconciled():
            self._run.ending = Ending(
                f"neither the API server nor an executor could be reached for {away_s:.0f} s", signal.SIGTERM
            )
            self._end_task(self._run.ending)

    def nap(self, seconds: float) -> None:
        """Wait, while the task's output is read and its limits are kept.

        :raises TaskGoneError: the task process has ended.
        """
        requests = next((sock for sock, kind in self._open_sockets.items() if kind == "requests"), None)
        handler = None
        if requests is not None and requests in self.selector.get_map():
            # One request at a time: the one that waits now.
            handler = self.selector.unregister(requests).data
        try:
            deadline_s = time.monotonic() + seconds
            while (left_s := deadline_s - time.monotonic()) > 0:
                self._run.beat()
                if self._service_subprocess(min(left_s, current.BEAT_S)) is not None:
                    raise TaskGoneError("the task process ended while the API server was away")
        finally:
            if handler is not None and requests is not None and requests.fileno() >= 0:
                self.selector.register(requests, selectors.EVENT_READ, handler)

    # The end

    def _handle_request(self, msg: Any, log: Any, req_id: int) -> None:
        before, began_s = self._terminal_state, time.monotonic()
        try:
            super()._handle_request(msg, log, req_id)
            if self._terminal_state != before:
                self.refusal = None
        except (httpx.HTTPError, TaskGoneError) as error:
            if self._terminal_state != before:  # Airflow 3.1 sets it before the request that has failed
                self._note_refusal(error)
            self._terminal_state = before
            raise
        finally:
            if self._task_end_time_monotonic is not None:
                # What waits for the API server is not the task's overtime.
                self._task_end_time_monotonic += time.monotonic() - began_s

    @property
    def final_state(self) -> Any:
        """What the task has reported, even if its process died after that; otherwise what its exit code means."""
        return self._terminal_state or super().final_state

    def _died(self) -> bool:
        """Return whether the task process ended before the task could report its state.

        The runner does not report that to the API server, which would set the state and run no callbacks. The executor
        reports it to the scheduler, which does all that a failure asks for.
        """
        return reported_state(self) is None

    def update_task_state_if_needed(self) -> None:
        """Report the task's state to Airflow, unless Airflow knows it or the task reported none."""
        self.is_finishing = True
        if self.refusal is None:
            if self._died():
                if self._run.ending is None:
                    self.process_log.error("The task process died", reason=verdict.how_it_ended(self, self._run))
                return
            try:
                super().update_task_state_if_needed()
            except httpx.HTTPStatusError as error:
                self._note_refusal(error)
                if self.refusal is None:
                    raise
        if self.refusal is not None:
            give_report_up(self)

    def _send_terminal_state_msg(self, msg: Any) -> None:
        """Report the state of a task; from Airflow 3.2 on."""
        try:
            super()._send_terminal_state_msg(msg)
        except httpx.HTTPStatusError as error:
            self._note_refusal(error)
            raise

    def _note_refusal(self, error: httpx.HTTPError | TaskGoneError) -> None:
        """Take note if Airflow does not want the state that the task reports: the instance was cleared, for one."""
        if (refusal := api.refusal(error)) is not None:
            self.refusal = (
                f"Airflow did not take the task's end, as the instance was cleared, marked or deleted: {refusal}"
            )
            self.process_log.warning(self.refusal)

    def wait(self) -> int:
        """Wait for the task's end, report it to Airflow, and give the run its outcome.

        :raises Exception: Airflow could not be told.
        """
        try:
            code = int(super().wait())
        except Exception as error:
            if self._exit_code is not None:
                within = f" within {current.patience.limit_s:g} s" if api.is_passing(error) else ""
                why = f"Airflow could not be told{within}: {type(error).__name__}: {error}"
                self._run.outcome = verdict.outcome_of(self, self._run, why)
            raise
        knows = self._died() or has_reported(self)
        why_not = None if knows else "nobody has told Airflow what became of the task"
        self._run.outcome = verdict.outcome_of(self, self._run, why_not)
        return code


def _read_what_is_there(handler: Callable[[socket.socket], bool], sock: socket.socket) -> bool:
    if sock.fileno() < 0:
        return True  # closed and unregistered while a request was being handled
    try:
        return handler(sock)
    except BlockingIOError:
        return True
