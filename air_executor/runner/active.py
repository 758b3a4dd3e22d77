"""The run that this process executes: its record as it changes, its limits, and requests to stop it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from air_executor.config import Config
from air_executor.errors import StateDirError
from air_executor.machine import system
from air_executor.machine.awake import AwakeClock
from air_executor.machine.leftovers import Leftovers
from air_executor.machine.rollup import Views
from air_executor.machine.safe_files import is_fresh
from air_executor.machine.sizes import mebibytes
from air_executor.runner import imports
from air_executor.runner.isolation import FENCE_GRACE_S, JOB_FENCE_S, Isolation
from air_executor.runner.oom_kills import OomKills
from air_executor.runner.usage import Usage
from air_executor.runs import usage
from air_executor.runs.limits import Limits
from air_executor.runs.lock import renew_held
from air_executor.runs.record import UNWANTED, RunRecord, RunState
from air_executor.runs.store import RunStore

#: How often the runner checks that its lock files still exist, in seconds.
_RENEW_S = 4.0

#: An executor that has not reconciled its runs for this many seconds counts as absent.
_ABSENT_S = 30.0

_CUT_OFF = "this host has reached neither Airflow nor Temporal for {:.0f} s; the retry may run elsewhere"


class StopRequested(BaseException):
    """SIGTERM or SIGINT came while no supervisor could end the task gracefully."""


@dataclass(frozen=True)
class Ending:
    """Why and how a task is ended early."""

    reason: str
    signum: signal.Signals
    """The first signal that it is sent. SIGTERM gives it time for ``on_kill``."""
    unwanted: bool = False
    """Airflow has given the task up already, and is told nothing more."""
    grace_s: float | None = None
    """How many seconds it has for that, if not as many as usual."""
    is_isolation: bool = False
    """Its host is cut off from all others."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a workload."""

    state: RunState
    outcome: str | None = None
    delivered: bool = False
    exit_code: int | None = None
    signal: str | None = None
    reason: str | None = None
    exception: str | None = None


class ActiveRun:
    """What the supervisor of the task process asks and reports."""

    def __init__(self, store: RunStore, record: RunRecord, config: Config) -> None:
        self._store = store
        self.record = record
        self.grace_s = config.stop_grace_seconds
        self.patience_s = config.api_patience_seconds
        self.may_sign_tokens = config.may_sign_tokens
        self.ending: Ending | None = None
        """Why the task was made to end, once it was."""
        self.outcome: Outcome | None = None
        """Set by the supervisor when the task process has ended."""
        self._learns_imports = config.learns_imports
        self._host = Isolation(store, config.fence_seconds)
        self.heard_s: float | None = None
        """When Airflow last answered to the start of the task, or a heartbeat of it, on the monotonic clock."""
        self._is_unwritten = False
        self._is_mute = False
        self._task_pid: int | None = None
        self._attached_s = time.monotonic()
        self.awake = AwakeClock()
        self.limits = Limits()
        self._stop_signal: signal.Signals | None = None
        self._is_monitored = False
        self._renewed_s = time.monotonic()
        self.leftovers = Leftovers()
        self.oom_kills = OomKills()
        self.is_out_of_memory = False
        """The task has reached its memory limit."""
        self.is_over = False
        """The task process has ended. What follows, telling Airflow and uploading logs, should not be disturbed."""

    @property
    def limits(self) -> Limits:
        """What the task may use. Set it before the task begins."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._usage = Usage(limits, self._store.path(self.record.id, usage.NAME))

    # What the supervisor reports

    def attach(self, pid: int) -> None:
        """Take note of the new task process."""
        self._task_pid = pid
        self._attached_s = time.monotonic()
        self.oom_kills.begin()
        self._usage.begin(self.record.gpus or ())

    def note_gpus(self, names: list[str]) -> None:
        """Record which GPUs this process has leased: for people, and for the executor, which counts them.

        :raises StateDirError: it can't be written.
        """
        self.record = self._store.write(replace(self.record, gpus=names))

    def expect_fork(self, views: Views | None = None, inherited_bytes: int = 0) -> None:
        """Before the task process is forked: see :meth:`.Usage.expect_fork`."""
        self._usage.expect_fork(views, inherited_bytes)

    def note_memory_limit(self, memory: int | None) -> None:
        """Record the memory limit of this try; it is written with what comes next."""
        others = {name: value for name, value in self.record.limits.items() if name != "memory"}
        limits = others if memory is None else {"memory": memory, **others}
        self.record = replace(self.record, limits=limits)

    def begin_task(self) -> None:
        """In a task process forked from the runner, first: let the runner measure it."""
        self._usage.grant_view()

    def started(self, *, is_short: bool = False) -> None:
        """Take note that the workload is being executed.

        :param is_short: it may be over in a moment, so the record is written by the next :meth:`beat`, if one comes.
        """
        self.record = self.record.advance(RunState.RUNNING, task_pid=self._task_pid)
        self._is_unwritten = True
        if not is_short:
            self.beat()

    def signed_token(self) -> None:
        """Take note that the runner has signed itself another token."""
        self.record = dataclasses.replace(self.record, tokens_signed=(self.record.tokens_signed or 0) + 1)
        self._is_unwritten = True

    def beat(self) -> None:
        """Leave a heartbeat, and write what is not written yet. A full disk must not end a task."""
        self.awake.look()
        try:
            self._store.heartbeat(self.record.id)
            if time.monotonic() - self._renewed_s >= _RENEW_S:
                self._renewed_s = time.monotonic()
                renew_held()
            if self._is_unwritten:
                self._store.write(self.record)
                self._is_unwritten = False
        except (OSError, StateDirError) as error:
            if not self._is_mute:
                print(f"no sign of life can be left: {error}", flush=True)
            self._is_mute = True

    def note_imports(self, known: int) -> None:
        """In the task process: note what it imported after its first ``known`` modules, to be imported ahead."""
        if self._learns_imports:
            imports.note(self._store, self.record.id, known)

    def note_over(self) -> None:
        """Take note that the task process has ended."""
        self.is_over = True
        self._usage.end()

    def end_leftovers(self) -> None:
        """Kill the processes that the task, which has ended, left behind."""
        before = len(self.leftovers.killed)
        self.leftovers.end()
        if killed := len(self.leftovers.killed) - before:
            print(f"killed {killed} processes that the task left behind", flush=True)

    # What the supervisor asks

    def due_in_s(self) -> float | None:
        """Return in how many seconds :meth:`check` wants to be called, or ``None`` for whenever something happens."""
        now_s = time.monotonic()
        if self.ending is not None:
            return None
        times = []
        if self._limits.timeout is not None:
            times.append(self._limits.timeout - self.awake.since_s(self._attached_s))
        if (measure_s := self._usage.due_s()) is not None:
            times.append(measure_s - now_s)
        return max(0.0, min(times)) if times else None

    def check(self, *, told: bool) -> Ending | None:
        """Return why the task has to end, the first time there is a reason.

        :param told: Airflow knows what became of the task, which is only finishing.
        """
        if self.ending is None:
            self.ending = self._stop(told=told) or self._overtime() or self._excess() or self._isolation(told=told)
            return self.ending
        return None

    def _stop(self, *, told: bool) -> Ending | None:
        if self._stop_signal is None:
            return None
        request = self._store.stop_request(self.record.id)
        if request is None:
            return Ending(f"stopped: {self._stop_signal.name} was sent to the runner", signal.SIGTERM)
        if request.unwanted and told:
            # The request is stale: Airflow moved on because of what this very task told it.
            self._stop_signal = None
            self._store.withdraw_stop(self.record.id)
            return None
        return Ending(f"stopped: {request.reason}", signal.SIGTERM, request.unwanted)

    def _isolation(self, *, told: bool) -> Ending | None:
        """Return whether the host is cut off from all others, so that Airflow may have given the task up."""
        if not self._host.is_possible or told:
            return None
        grace_s = min(self.grace_s, FENCE_GRACE_S)
        if self.record.identity.kind == "job":  # only its worker can report it, so it is given up later
            if not self._host.is_job_cut_off():
                return None
            reason = f"this host has not reached Temporal for {JOB_FENCE_S:.0f} s; the task may begin again elsewhere"
            return Ending(reason, signal.SIGTERM, unwanted=True, grace_s=grace_s)
        if self.heard_s is None or not self._host.is_cut_off(silent_s := self.awake.since_s(self.heard_s)):
            return None
        return Ending(_CUT_OFF.format(silent_s), signal.SIGTERM, grace_s=grace_s, is_isolation=True)

    def guard_isolation(self, is_told: Callable[[], bool]) -> None:
        """Look after the task from a thread, too: whoever asks :meth:`check` may be waiting for an answer from outside.

        A name that can't be resolved, for one, keeps it waiting beyond any timeout.

        :param is_told: tells whether the task has reported its end, or is about to.
        """
        if self._host.is_possible:
            threading.Thread(target=self._guard_isolation, args=(is_told,), name="isolation", daemon=True).start()

    def _guard_isolation(self, is_told: Callable[[], bool]) -> None:
        late_s = 0.0
        while not self.is_over:
            time.sleep(1.0)
            silent_s = time.monotonic() - (self.heard_s or time.monotonic())
            late_s = late_s + 1.0 if self._host.is_cut_off(silent_s) and not is_told() else 0.0
            is_ours = self.ending is None or self.ending.is_isolation
            # By now :meth:`check` would have ended it, and killed it after its grace time.
            if late_s > 2 * FENCE_GRACE_S and is_ours and self._task_pid is not None and not self.is_over:
                former = self.ending
                self.ending = former or Ending(_CUT_OFF.format(silent_s), signal.SIGKILL, is_isolation=True)
                try:
                    os.kill(self._task_pid, signal.SIGKILL)
                except ProcessLookupError:
                    return
                except PermissionError:  # it has become another user's
                    self.ending = former
                late_s = 0.0

    def is_reconciled(self) -> bool:
        """Tell whether an executor looks after this run: one that passes heartbeats on and requests stops."""
        return is_fresh(self._store.last_reconciled_s(self.record.id), _ABSENT_S)

    def _overtime(self) -> Ending | None:
        limit = self._limits.timeout
        ran_s = self.awake.since_s(self._attached_s)
        if limit is None or ran_s < limit:
            return None
        return Ending(f"wall time limit of {limit:g} s reached after {ran_s:.1f} s", signal.SIGTERM)

    def _excess(self) -> Ending | None:
        if self._task_pid is None or not self._usage.measure():
            return None
        limits = self._limits
        peak_bytes, used_s = self._usage.peak_bytes, self._usage.cpu_time_s
        if limits.memory is not None and peak_bytes > limits.memory:
            reason = f"memory limit of {mebibytes(limits.memory)} reached; peak {mebibytes(peak_bytes)}"
            # No grace time: the task could use it to take the machine's last memory.
            self.is_out_of_memory = True
            return Ending(reason, signal.SIGKILL)
        if limits.cpu_time is not None and used_s > limits.cpu_time:
            return Ending(f"CPU time limit of {limits.cpu_time:g} s reached; used {used_s:.1f} s", signal.SIGTERM)
        return None

    def used(self) -> dict[str, Any]:
        """Return what the task has used, as fields of its record. Nothing is measured any more."""
        self._usage.close()
        p95_bytes = self._usage.p95_bytes()
        return {
            "peak_memory_bytes": self.peak_bytes or (0 if p95_bytes is not None else system.peak_bytes()),
            "p95_memory_bytes": p95_bytes,
        }

    @property
    def peak_bytes(self) -> int:
        """The most memory that the task was seen to hold; 0 if it was not measured."""
        return self._usage.peak_bytes

    # Signals

    @contextlib.contextmanager
    def heeding_signals(self, *, monitored: bool = False) -> Iterator[socket.socket]:
        """Treat SIGTERM and SIGINT as requests to stop the run.

        :param monitored: the caller waits on the yielded socket, which a signal makes readable, and calls
            :meth:`check`. Otherwise a signal raises :class:`StopRequested` wherever this process is.
        """
        receiver, sender = socket.socketpair()
        with receiver, sender:
            receiver.setblocking(False)
            sender.setblocking(False)
            wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            before, self._is_monitored = self._is_monitored, monitored  # before the handlers, which read it
            handlers = {signum: signal.signal(signum, self._on_signal) for signum in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield receiver
            finally:
                self._is_monitored = before
                for signum, handler in handlers.items():
                    signal.signal(signum, handler)
                signal.set_wakeup_fd(wakeup)

    def stop_if_asked(self) -> None:
        """Heed a request to stop whose signal came before this process handled signals.

        :raises StopRequested: there is one.
        """
        if self._store.stop_request(self.record.id) is not None:
            self._on_signal(signal.SIGTERM, None)

    def _on_signal(self, signum: int, _frame: Any) -> None:
        self._stop_signal = signal.Signals(signum)
        if self.is_over:
            self.is_asked_to_stop()
        elif not self._is_monitored:
            raise StopRequested

    def is_asked_to_stop(self) -> bool:
        """Tell whether a run whose task has ended should stop what it still does."""
        return self._stop_signal is not None and self._stop(told=True) is not None

    def stopped(self) -> Outcome:
        """Return the outcome of a run that was stopped while no supervisor could end its task gracefully."""
        ending = self.ending or self._stop(told=False)
        return Outcome(
            state=RunState.KILLED,
            outcome=UNWANTED if ending and ending.unwanted else None,
            signal=(self._stop_signal or signal.SIGTERM).name,
            reason=ending.reason if ending else None,
        )
