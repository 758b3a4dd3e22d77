"""Airflow's supervisor of a task process, with what AirExecutor adds to it.

Everything that talks to the task and to the API server is Airflow's own. Added are: the exit of the task is noticed
at once, limits and stop requests are heeded, the run's record is kept, and the task process dies with its runner.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import sys
import time
from collections.abc import Callable
from typing import Any

import attrs
from airflow.sdk.execution_time import supervisor as stock

from air_executor import compat, system
from air_executor.runner.active import ActiveRun, Outcome
from air_executor.runs.record import RunState

#: The run of this process; there is one.
active: ActiveRun | None = None

#: Without a pidfd, how often it is looked whether the task process has ended, in seconds.
_LOOK_S = 0.25


class _PidFd:
    """A pidfd as a selector and Airflow's service loop want it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def _task_main() -> None:
    system.die_with_parent(_runner_pid)
    stock._subprocess_main()


_runner_pid = 0


@attrs.define(kw_only=True)
class AirSupervisor(stock.ActivitySubprocess):
    """Supervises the task process of the active run."""

    _run: ActiveRun = attrs.field(init=False, repr=False)
    _has_pidfd: bool = attrs.field(init=False, default=False)

    @classmethod
    def start(cls, *, target: Callable[[], None] = stock._subprocess_main, **kwargs: Any) -> AirSupervisor:
        """Start the task process."""
        global _runner_pid
        _runner_pid = os.getpid()
        if target is stock._subprocess_main and sys.platform != "darwin":
            target = _task_main
        return super().start(target=target, **kwargs)  # type: ignore[no-any-return]

    def _register_pipe_readers(self, *args: Any, **kwargs: Any) -> None:
        super()._register_pipe_readers(*args, **kwargs)
        if active is None:
            raise RuntimeError("no run is active in this process")
        self._run = active
        self._run.attach(self.pid)
        fd = system.open_pidfd(self.pid)
        if fd is not None:
            # A readable pidfd says no more than that the loop should look: it is unregistered and closed then.
            self.selector.register(_PidFd(fd), selectors.EVENT_READ, (lambda _: False, self.selector.unregister))
            self._has_pidfd = True

    def _on_child_started(self, *args: Any, **kwargs: Any) -> None:
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
        if code is not None and self._open_sockets:
            # What the task left behind still holds its output; it would be waited for. What it wrote is not lost.
            self._run.end_leftovers()
        if code is None and (ending := self._run.check()) is not None:
            self.process_log.error("AirExecutor ends the task", reason=ending.reason)
            self.kill(ending.signum, escalation_delay=self._run.grace_s, force=True)
            code = self._exit_code
        return code

    def _send_heartbeat_if_needed(self) -> None:
        if time.monotonic() - self._last_heartbeat_attempt >= stock.MIN_HEARTBEAT_INTERVAL:
            self._run.beat()
        super()._send_heartbeat_if_needed()

    def wait(self) -> int:
        """Wait for the task's end, tell Airflow, and keep what became of it."""
        try:
            return super().wait()  # type: ignore[no-any-return]
        finally:
            if self._exit_code is not None:
                self._run.outcome = self._outcome(self._exit_code)

    def _outcome(self, exit_code: int) -> Outcome:
        state = str(getattr(self.final_state, "value", self.final_state))
        # psutil gives a Negsignal for a death by signal
        name = system.signal_name(-exit_code) if exit_code < 0 else None
        told = compat.has_told_airflow(self)
        reason = self._run.ending.reason if self._run.ending else None
        if reason is None and state == stock.SERVER_TERMINATED:
            reason = "Airflow ended it: the task instance was marked, cleared or deleted while it ran"
            return Outcome(
                state=RunState.KILLED, outcome=state, delivered=told, exit_code=int(exit_code), reason=reason
            )
        if reason is None and name:
            reason = f"the task process was killed by {name} (signal {-exit_code})"
            if name == "SIGKILL":
                reason += "; when nobody sent it, the kernel did, for lack of memory"
        elif reason is None and exit_code == 0 and not told:
            reason = "the task process ended with exit code 0 without telling what became of the task"
        elif reason is None and exit_code:
            reason = f"the task process ended with exit code {exit_code}"
        if self._run.ending or name:
            run_state = RunState.KILLED
        elif state in ("failed", "up_for_retry") or not told:
            run_state = RunState.FAILED
        else:
            run_state = RunState.SUCCEEDED
        return Outcome(
            state=run_state,
            outcome=state if told else None,
            delivered=told,
            exit_code=int(exit_code) if name is None else None,
            signal=name,
            reason=reason,
        )


compat.use_supervisor(AirSupervisor)
