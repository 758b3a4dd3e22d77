"""Airflow's supervisor of a task process, with what AirExecutor adds to it.

Everything that talks to the task and to the API server is Airflow's own. Added are: the exit of the task is noticed
at once, limits and stop requests are heeded, the run's record is kept, and the task process dies with its runner.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import attrs
import httpx
import psutil
from airflow.sdk.execution_time import supervisor as stock

from air_executor.airflow import compat, quick_end
from air_executor.airflow.patience import Patience
from air_executor.machine import processes, system
from air_executor.runner.active import ActiveRun, Ending, Outcome
from air_executor.runs.record import RunState
from air_executor.runs.tasklog import last_exception

#: The run of this process; there is one.
active: ActiveRun | None = None

#: The supervisor of its task process, once there is one.
_supervisor: AirSupervisor | None = None

_patience: Patience

#: Waiting for the API server, the runner shows that it lives every so many seconds.
_BEAT_S = 5.0

#: How often a task process is tried again while the machine has no room for it, in seconds.
_TRY_S = 2.0

#: Without a pidfd, how often it is looked whether the task process has ended, in seconds.
_LOOK_S = 0.25


#: What a task printed last is read for at most so many seconds, where something that outlives it goes on printing.
_LAST_OUTPUT_S = 1.0


class _PidFd:
    """A pidfd as a selector and Airflow's service loop want it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close  # a run that was over before its start was told leaves it open


class TaskGoneError(Exception):
    """The task process has ended, or is to end; what it asked of the API server is of no use any more."""


def begin(run: ActiveRun) -> None:
    """Make ``run`` the run of this process, and let its requests to the API server be patient."""
    global active, _patience
    active = run
    _patience = Patience(run.patience_s, nap, run.awake, _renew_token)
    _patience.install()


def _renew_token(client: Any) -> bool:
    if active is None or not active.may_sign_tokens or not compat.replace_bad_token(client):
        return False
    active.signed_token()
    return True


def forget() -> None:
    """Let no run be this process's any more."""
    global active, _supervisor
    active = _supervisor = None


def nap(seconds: float) -> None:
    """Wait before a request is made again, and look after the task meanwhile."""
    if _supervisor is not None and not _supervisor.is_finishing:
        _supervisor.nap(seconds)
        return
    deadline_s = time.monotonic() + seconds
    while (left_s := deadline_s - time.monotonic()) > 0:
        if active is not None:
            active.beat()
            if active.is_asked_to_stop():
                raise TaskGoneError("the run was stopped while the API server was away")
        time.sleep(min(left_s, _BEAT_S))


def _read_what_is_there(handler: Callable[[socket.socket], bool], sock: socket.socket) -> bool:
    if sock.fileno() < 0:
        return True  # closed, and unregistered, while a request was being handled
    try:
        return handler(sock)
    except BlockingIOError:
        return True


def _task_main() -> None:
    system.die_with_parent(_runner_pid)
    system.renew_random_state()
    if active is not None:
        active.begin_task()
    _execute_task(active.note_imports if active is not None else lambda _: None)


def _execute_task(note_imports: Callable[[int], None]) -> None:
    known = len(sys.modules)
    compat.leave_alerts_to_scheduler()
    try:
        stock._subprocess_main()
    finally:
        note_imports(known)


_runner_pid = 0


@dataclass(frozen=True)
class _Ahead:
    """A task process that was forked before its workload was known, and waits for it."""

    supervisor: AirSupervisor
    starter: int
    """A pipe: the run's id, written there, lets the task process begin."""


_ahead: _Ahead | None = None

_is_forking_ahead = False


def fork_ahead(
    let_go: Callable[[], None], note_imports: Callable[[str, int], None], begin: Callable[[str], None]
) -> None:
    """Fork the task process now, for a workload that comes later.

    So nobody waits for the fork, and the two processes share with the launcher, and do not copy for each other, what
    the runner writes to before it knows its workload. What the runner changes for its task's sake from here on (the
    environment, priorities) does not reach it: a run with limits of its own has to :func:`dismiss` it.

    :param let_go: called in the task process, to close what is the runner's.
    :param begin: called there when the workload has come, with the id of the run.
    :param note_imports: called there at the end, with the id of the run and the number of modules at the start.
    """
    global _ahead, _is_forking_ahead, _runner_pid
    _runner_pid = os.getpid()
    receiver, starter = os.pipe()

    def main() -> None:
        system.die_with_parent(_runner_pid)
        let_go()
        os.close(starter)
        with open(receiver) as file:
            run_id = file.read()
        if run_id:
            processes.join(run_id)
            begin(run_id)
            _execute_task(functools.partial(note_imports, run_id))

    _is_forking_ahead = True
    try:
        supervisor = AirSupervisor.start(what=_Unknown, dag_rel_path="", bundle_info=None, client=None, target=main)
        _ahead = _Ahead(supervisor, starter)
    except OSError as error:
        os.close(starter)
        if not system.has_no_room(error):
            raise
    finally:
        _is_forking_ahead = False
        os.close(receiver)


class _Unknown:
    """Stands for the task instance of a workload that is to come."""

    id = None


def dismiss() -> None:
    """End the task process that waits, if there is one."""
    global _ahead
    if _ahead is not None:
        os.close(_ahead.starter)
        _ahead.supervisor.give_up()
        _ahead = None


@attrs.define(kw_only=True)
class AirSupervisor(stock.ActivitySubprocess):
    """Supervises the task process of the active run."""

    _run: ActiveRun = attrs.field(init=False, repr=False)
    _has_pidfd: bool = attrs.field(init=False, default=False)
    _pipes: tuple[tuple[Any, ...], dict[str, Any]] | None = attrs.field(init=False, default=None, repr=False)
    """What leads to a task process that was forked ahead, until it begins."""
    is_finishing: bool = attrs.field(init=False, default=False)
    """The task process has ended, and Airflow is being told."""

    @classmethod
    def start(cls, *, target: Callable[[], None] = stock._subprocess_main, **kwargs: Any) -> AirSupervisor:
        """Start the task process, or let the one begin that was forked ahead."""
        global _ahead, _runner_pid
        _runner_pid = os.getpid()
        if _ahead is not None and target is stock._subprocess_main:
            ahead, _ahead = _ahead, None
            if ahead.supervisor.is_alive():
                ahead.supervisor._begin(ahead.starter, **kwargs)
                return ahead.supervisor
            os.close(ahead.starter)
            ahead.supervisor.give_up()
        if target is stock._subprocess_main and sys.platform != "darwin":
            target = _task_main
        until_s = time.monotonic() + system.NO_ROOM_S
        while True:
            try:
                return super().start(target=target, **kwargs)  # type: ignore[no-any-return]
            except OSError as error:
                # The machine has no process or memory for it now. Once there is one, nothing is repeated.
                is_passing = system.has_no_room(error) and _supervisor is None and not _is_forking_ahead
                if not is_passing or time.monotonic() > until_s:
                    raise
            nap(_TRY_S)

    def _begin(self, starter: int, *, what: Any, client: Any, logger: Any = None, **details: Any) -> None:
        """Execute a workload in the task process that was forked ahead; the arguments are those of :meth:`start`."""
        self.id, self.client, self.start_time = what.id, client, time.monotonic()
        if logger is not None:
            self.process_log = logger
        for name in attrs.fields_dict(type(self)).keys() & details.keys():
            setattr(self, name, details.pop(name))
        pipes, self._pipes = self._pipes, None
        if active is None or pipes is None:
            raise RuntimeError("no run is active in this process")
        self._register_pipe_readers(*pipes[0], **pipes[1])
        os.write(starter, active.record.id.encode())
        os.close(starter)
        self._on_child_started(ti=what, **details)

    def is_alive(self) -> bool:
        """Tell whether the task process has not ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def give_up(self) -> None:
        """End a task process that was forked ahead, and close what leads to it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        pipes = self._pipes or ((), {})
        for pipe in (*pipes[0], *pipes[1].values()):
            if isinstance(pipe, socket.socket):
                pipe.close()
        self.selector.close()

    def _register_pipe_readers(self, *args: Any, **kwargs: Any) -> None:
        if _is_forking_ahead:
            self._pipes = args, kwargs
            return
        super()._register_pipe_readers(*args, **kwargs)
        self._make_reentrant()
        if active is None:
            raise RuntimeError("no run is active in this process")
        global _supervisor
        _supervisor = self
        self._run = active
        self._run.attach(self.pid)
        fd = system.open_pidfd(self.pid)
        if fd is not None:
            # A readable pidfd says no more than that the loop should look: it is unregistered and closed then.
            self.selector.register(_PidFd(fd), selectors.EVENT_READ, (lambda _: False, self._unwatch))
            self._has_pidfd = True

    def _unwatch(self, pidfd: _PidFd) -> None:
        # While a request was handled, :meth:`nap` may have seen the exit first: then it is unregistered, and closed.
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(pidfd)

    def _make_reentrant(self) -> None:
        """Let the task's output be read while one of its requests is being handled, which :meth:`nap` does.

        The loop that handles the request goes on to sockets that may have been read empty, or closed, meanwhile.
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
            # Registered by the call, and not known as an open socket.
            if isinstance(key.fileobj, socket.socket) and key.data[1] == self._on_socket_closed:
                self._open_sockets.setdefault(key.fileobj, "logs")
        self._make_reentrant()

    def _on_child_started(self, *args: Any, **kwargs: Any) -> None:
        if _is_forking_ahead:
            return
        super()._on_child_started(*args, **kwargs)
        self._run.started()
        # The start call was a sign of life; the next one is due in a heartbeat's time, not now.
        self._last_heartbeat_attempt = time.monotonic()

    def _monitor_subprocess(self) -> None:
        with self._run.heeding_signals(monitored=True) as wake:
            self.selector.register(wake, selectors.EVENT_READ, (self._woken, None))
            try:
                super()._monitor_subprocess()
            finally:
                # An unusual end has closed the selector with everything in it.
                with contextlib.suppress(KeyError, RuntimeError):
                    self.selector.unregister(wake)
                self._run.is_over = True

    @staticmethod
    def _woken(wake: Any) -> bool:
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)
        return True

    def _service_subprocess(
        self, max_wait_time: float, raise_on_timeout: bool = False, expect_signal: int | None = None
    ) -> int | None:
        due_s = self._run.due_in_s()
        if due_s is not None:
            max_wait_time = min(max_wait_time, due_s)
        if not self._has_pidfd:
            max_wait_time = min(max_wait_time, _LOOK_S)
        code: int | None = super()._service_subprocess(max_wait_time, raise_on_timeout, expect_signal)
        system.reap_orphans(self.pid)
        if code is not None and self._open_sockets:
            # What the task left behind still holds its output; it would be waited for. What it wrote is not lost.
            self._run.end_leftovers()
            if self._run.leftovers.are_any:
                self._close_output()
        told = self._terminal_state is not None or compat.is_telling_airflow(self)
        if code is None and (ending := self._run.check(told=told)) is not None:
            self._end_task(ending)
            code = self._exit_code
        return code

    def _close_output(self) -> None:
        """Read what there is of the task's output, and wait for no more: what outlives the task holds it open."""
        until_s = time.monotonic() + _LAST_OUTPUT_S
        while self._open_sockets and self.selector.select(0) and time.monotonic() < until_s:
            super()._service_subprocess(0.0)
        if self._open_sockets:
            self._cleanup_open_sockets()

    def _end_task(self, ending: Ending) -> None:
        self.process_log.error("AirExecutor ends the task", reason=ending.reason)
        with contextlib.suppress(PermissionError, psutil.AccessDenied):  # it has become another user's, through sudo
            self.kill(ending.signum, escalation_delay=self._run.grace_s, force=True)
        if self._exit_code is None:
            # It can't be killed. What there is to tell does not wait for it; the next try does.
            self._run.end_leftovers()
            self._exit_code = -signal.SIGKILL
            self._close_output()
        if ending.unwanted:
            self._terminal_state = stock.SERVER_TERMINATED

    # Heartbeats, and an API server that is away

    def _send_heartbeat_if_needed(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_heartbeat_attempt < stock.MIN_HEARTBEAT_INTERVAL:
            return
        self._run.beat()
        if self._run.is_reconciled() and not compat.is_token_old(self.client):
            # The executor passes the heartbeat on, with those of all other runs, and stops what should not run.
            self._last_heartbeat_attempt = self._last_successful_heartbeat = now_s
            self.failed_heartbeats = 0
            return
        with _patience.only_once():
            super()._send_heartbeat_if_needed()

    def _handle_heartbeat_failures(self, exc: Exception) -> None:
        if self.failed_heartbeats == 0:
            self.process_log.warning("The API server can't be reached; the task goes on", error=str(exc))
        self.failed_heartbeats += 1
        away_s = self._run.awake.since_s(self._last_successful_heartbeat)
        if away_s > _patience.limit_s and not self._run.is_reconciled():
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
                if self._service_subprocess(min(left_s, _BEAT_S)) is not None:
                    raise TaskGoneError("the task process ended while the API server was away")
        finally:
            if handler is not None and requests is not None and requests.fileno() >= 0:
                self.selector.register(requests, selectors.EVENT_READ, handler)

    # The end

    def _handle_request(self, msg: Any, log: Any, req_id: int) -> None:
        before = self._terminal_state
        try:
            super()._handle_request(msg, log, req_id)
        except (httpx.HTTPError, TaskGoneError):
            self._terminal_state = before  # Airflow 3.1 sets it before the call that has failed
            raise

    @property
    def final_state(self) -> Any:
        """What the task has told, also if its process died after that; otherwise what its exit code means."""
        return self._terminal_state or super().final_state

    def _died(self) -> bool:
        """Tell whether the task process ended before the task could tell what became of it.

        The runner does not tell the API server of that, which would set the state, and forget all callbacks. The
        executor tells the scheduler, which does for a task instance that is still running all that a failure asks for.
        """
        return compat.told_by_task(self) is None

    def update_task_state_if_needed(self) -> None:
        """Tell Airflow what the task has told of itself, unless it knows that already."""
        self.is_finishing = True
        if self._died():
            if self._run.ending is None:
                self.process_log.error("The task process died", reason=self._how_it_ended())
            return
        super().update_task_state_if_needed()

    def wait(self) -> int:
        """Wait for the task's end, tell Airflow, and keep what became of it."""
        try:
            code = int(super().wait())
        except Exception as error:
            if self._exit_code is not None:
                within = f" within {_patience.limit_s:g} s" if compat.is_passing(error) else ""
                self._run.outcome = self._outcome(f"Airflow could not be told{within}: {type(error).__name__}: {error}")
            raise
        told = self._died() or compat.has_told_airflow(self)
        self._run.outcome = self._outcome(None if told else "nobody has told Airflow what became of the task")
        return code

    def _how_it_ended(self) -> str | None:
        """Return why the task process ended, if that is worth a word."""
        code, told = self._exit_code or 0, compat.told_by_task(self)
        if self._run.ending is not None:
            return self._run.ending.reason
        if self._terminal_state == stock.SERVER_TERMINATED:
            return "Airflow ended it: the task instance was marked, cleared or deleted while it ran"
        if code < 0:
            name = system.signal_name(-code)
            if told and compat.is_in_overtime(self):
                after = f"it still lived {stock.TASK_OVERTIME_THRESHOLD:g} s after the task had ended as {told}"
                return f"Airflow killed the task process by {name}: {after} ([core] task_success_overtime)"
            how = f"the task process was killed by {name} (signal {-code})" + self._run.memory_evidence(name)
        elif code:
            how = f"the task process ended with exit code {code}"
        else:
            return None if told else "the task process ended with exit code 0 without telling what became of the task"
        if told is None:
            return how
        return f"{how} after the task had ended as {told}; its callbacks may not have come to their end"

    def _outcome(self, untold: str | None) -> Outcome:
        """Return what became of the task.

        :param untold: why Airflow has not been told what the task has told of itself.
        """
        code = self._exit_code or 0
        told = compat.told_by_task(self)
        reason = self._how_it_ended()
        if untold:
            reason = f"{reason}; {untold}" if reason else untold
        name = system.signal_name(-code) if code < 0 else None
        if self._run.ending is not None or name or told == stock.SERVER_TERMINATED:
            state = RunState.KILLED
        elif untold or told in (None, "failed", "up_for_retry"):
            state = RunState.FAILED
        else:
            state = RunState.SUCCEEDED
        return Outcome(
            state=state,
            outcome=told,
            delivered=untold is None and told is not None,
            exit_code=int(code) if name is None else None,
            signal=name,
            reason=reason,
            exception=last_exception(self._run.record.log_file) if told in ("failed", "up_for_retry") else None,
        )


compat.use_supervisor(AirSupervisor)
compat.use_output_reader()
compat.let_faults_kill()
compat.quieten_imports()
quick_end.install()
