"""A runner's life: take the lock, apply the limits, execute the workload, write down its end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from air_executor.config import Config
from air_executor.errors import AirExecutorError, StateDirError
from air_executor.machine import leftovers, marks, system
from air_executor.runner import gpus
from air_executor.runner.active import ActiveRun, Outcome, StopRequested
from air_executor.runner.hooks import hooks, hooks_of_kind
from air_executor.runs import limits as task_limits
from air_executor.runs.backend import RunRequest
from air_executor.runs.codes import EXIT_ELSEWHERE, EXIT_RECORDED, EXIT_UNRECORDED
from air_executor.runs.limits import Limits
from air_executor.runs.lock import KernelLock
from air_executor.runs.record import UNWANTED, RunRecord, RunState
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import append_to_log

#: A task instance may come back from a deferral before its former runner has ended, which may be uploading the log. Its
#: new runner waits this long for the lock, in seconds. A job's task has no deferrals; its runner waits for the second.
LOCK_WAIT_S, JOB_LOCK_WAIT_S = 600.0, 60.0

#: It leaves a heartbeat this often meanwhile, in seconds.
_BEAT_S = 5.0

#: A try waits at most this long, in seconds, for processes of an earlier try that can't be killed. Airflow gives up on
#: a task that is queued for longer than ``task_queued_timeout``, ten minutes by default.
LEFTOVERS_S = 300.0

#: How often it checks whether they have ended, in seconds.
_LOOK_S = 2.0

#: How long to wait before each attempt to write a run's end, in seconds.
_WAITS_S = (0.0, 0.5, 2.0)


def prepare(store: RunStore, config: Config, connection: socket.socket) -> None:
    """Do in a spare what can be done before its request comes through ``connection``."""
    global _dismiss
    _dismiss = hooks(config.serves).prepare(store, config, connection)


def _nothing() -> None:
    """Do nothing: no task process was forked ahead."""


#: Ends the task process that was forked ahead, unless it has a workload.
_dismiss: Callable[[], None] = _nothing


def run(request: RunRequest, store: RunStore, config: Config) -> int:
    """Execute one run in this process, to its end, and return the process's exit code."""
    system.set_title(f"air-executor runner {request.id} {request.identity.name}")
    system.adopt_orphans()
    lock = store.lock(request.identity.workload_id)
    try:
        if not _acquire(lock, request, store):
            record = store.read(request.id)
            if record.state is not RunState.QUEUED:
                return EXIT_ELSEWHERE  # the other runner executes this very run
            reason = "another runner already executes this workload, and holds its lock"
            store.write(record.advance(RunState.FAILED, outcome=UNWANTED, reason=reason))
            return EXIT_RECORDED
        record = store.read(request.id)
        if record.state is not RunState.QUEUED:
            return EXIT_ELSEWHERE  # ordered twice, because the first launcher died: the run has begun or ended
        for signum in (signal.SIGTERM, signal.SIGINT):
            # From here on a signal counts only while there is a task to stop; it never prevents writing the end.
            signal.signal(signum, signal.SIG_IGN)
        return execute(request, record, store, config)
    finally:
        # The next runs of a job use the same few lock files; its manager removes them in the end.
        lock.release(keep_file=request.identity.kind == "job")


def _acquire(lock: KernelLock, request: RunRequest, store: RunStore) -> bool:
    """Take the lock of a workload, and return whether that was possible."""
    until_s = time.monotonic() + (JOB_LOCK_WAIT_S if request.identity.kind == "job" else LOCK_WAIT_S)
    is_said = False
    while not lock.acquire(max(0.0, min(_BEAT_S, until_s - time.monotonic()))):
        if time.monotonic() >= until_s:
            return False
        if not is_said:
            print("another runner has the lock of this workload, and is waited for", flush=True)
            is_said = True
        with contextlib.suppress(OSError, AirExecutorError):
            if store.read(request.id).state is RunState.QUEUED:  # otherwise the other runner executes this very run
                store.heartbeat(request.id)
    return True


def execute(request: RunRequest, record: RunRecord, store: RunStore, config: Config) -> int:
    """Execute one run, whose lock this process holds, and return the process's exit code."""
    marks.join(record.id)
    record = store.begin(record.advance(RunState.STARTING, **_this_process(record.identity.kind)))
    active, outcome = _execute(request, record, store, config)
    survivors = active.leftovers.survivors
    # After a success no try follows that would have to wait for survivors (left on purpose perhaps, as through sudo).
    note = leftovers.name_survivors if outcome.state is RunState.SUCCEEDED else partial(store.note_survivors, record)
    reason = "; ".join(filter(None, (outcome.reason, note(survivors)))) or None
    used = active.used()
    _learn(active, outcome, store, config)  # first: whoever reads the end finds that, too
    return _write_end(active, dataclasses.replace(outcome, reason=reason), used, store)


def _this_process(kind: str) -> dict[str, Any]:
    pid = os.getpid()
    # The heartbeat file has the start time as the kernel reports it. This is for executors of earlier versions.
    started = system.start_time(pid) if kind != "job" else None
    return {"pid": pid, "pid_started": started, "host": system.host(), "boot_id": system.boot_id()}


def _execute(request: RunRequest, record: RunRecord, store: RunStore, config: Config) -> tuple[ActiveRun, Outcome]:
    """Execute the workload. Whatever goes wrong becomes its outcome."""
    if request.air or request.identity.kind != "task":
        _dismiss()
    active = ActiveRun(store, record, config)
    leases: list[KernelLock] = []
    try:
        with active.heeding_signals():
            active.limits = _limits(request, active, store)
            active.stop_if_asked()
            _wait_for_leftovers(request, active, store)
            active.limits.apply()
            if active.limits.gpus:
                leases = gpus.lease(store, config.gpus, active.limits.gpus)
                active.note_gpus([lease.name for lease in leases])
            outcome = hooks_of_kind(request.identity.kind).execute(request, active, store)
    except StopRequested:
        outcome = active.stopped()
    except StateDirError as error:
        outcome = _refused(request, f"the run could not be recorded: {error}")
    except AirExecutorError as error:
        outcome = _refused(request, str(error))
    except Exception as error:
        traceback.print_exc()
        outcome = _refused(request, f"the runner failed: {type(error).__name__}: {error}")
    finally:
        _dismiss()
        active.end_leftovers()
        for lease in leases:
            lease.release()
    return active, outcome


def _limits(request: RunRequest, active: ActiveRun, store: RunStore) -> Limits:
    """Return the limits of this try.

    :raises LimitsError: they can't be used.
    """
    limits = task_limits.parse(request.air)
    if limits.memory_rule is None:
        return limits
    learned = store.learned
    memory = limits.memory_rule.limit(learned.memory_ends(request.identity), learned.peaks(request.identity))
    active.note_memory_limit(memory)
    return dataclasses.replace(limits, memory=memory)


def _learn(active: ActiveRun, outcome: Outcome, store: RunStore, config: Config) -> None:
    """Remember, for the next try and the next runs, how much memory this one has held."""
    is_rule = active.limits.memory_rule is not None
    if not (is_rule or config.learns_memory) or not (peak_bytes := active.peak_bytes):
        return
    with contextlib.suppress(StateDirError):  # on a full disk: the next try has this one's limit
        if not is_rule:
            store.learned.note_seen(active.record.identity, peak_bytes)
            return
        store.learned.note_peak(active.record.identity, peak_bytes)
        is_killed = outcome.state is not RunState.SUCCEEDED and active.oom_kills.has_killed()
        if active.is_out_of_memory or is_killed:
            store.learned.note_memory_end(active.record.identity, peak_bytes)


def _wait_for_leftovers(request: RunRequest, active: ActiveRun, store: RunStore) -> None:
    """Wait for processes of an earlier try that could not be killed."""
    until_s = time.monotonic() + LEFTOVERS_S
    said = False
    while left := store.leftovers.living(request.identity):
        if not said:
            names = ", ".join(each.text for each in left)
            waits = f"this try waits at most {LEFTOVERS_S:g} s for what a former one left behind: {names}"
            append_to_log(request.log_file, waits, kind=request.identity.kind)
            said = True
        if time.monotonic() >= until_s:
            append_to_log(request.log_file, "it is still there; this try begins beside it", kind=request.identity.kind)
            return
        active.beat()
        fd = system.open_pidfd(left[0].id.pid)
        try:
            select.select([] if fd is None else [fd], [], [], _LOOK_S)
        finally:
            if fd is not None:
                os.close(fd)


def _refused(request: RunRequest, reason: str) -> Outcome:
    append_to_log(request.log_file, reason, kind=request.identity.kind)
    return Outcome(state=RunState.FAILED, reason=reason)


def _write_end(active: ActiveRun, outcome: Outcome, used: dict[str, Any], store: RunStore) -> int:
    record = active.record
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    end = record.advance(
        outcome.state,
        outcome=outcome.outcome,
        delivered=outcome.delivered,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        reason=outcome.reason,
        exception=outcome.exception,
        **used,
        cpu_time_s=round(children.ru_utime + children.ru_stime + own.ru_utime + own.ru_stime, 3),
    )
    # Airflow already has the outcome, so try three times; a job's outcome exists only here, so try for ever.
    waits_s = itertools.chain(_WAITS_S, itertools.repeat(_WAITS_S[-1]) if record.identity.kind == "job" else ())
    for wait_s in waits_s:
        if wait_s:
            time.sleep(wait_s)
        try:
            store.write(end)
            return EXIT_RECORDED
        except StateDirError as error:
            print(f"the end of run {record.id} ({end.state.value}) is not on record: {error}", file=sys.stderr)
            if not store.has(record.id):
                break  # somebody has removed the record, with its job or the whole state directory
    return EXIT_UNRECORDED
