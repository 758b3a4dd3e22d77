"""Executing Airflow's workloads in this process, by Airflow's own supervisors."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from air_executor.airflow import supervision
from air_executor.airflow.compat import api, execution, logs, workloads
from air_executor.config import Config
from air_executor.errors import AirExecutorError
from air_executor.machine import system
from air_executor.runner import imports
from air_executor.runner.active import ActiveRun, Outcome
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import UNWANTED, RunState
from air_executor.runs.store import RunStore


def fork_ahead(store: RunStore, config: Config, connection: socket.socket) -> Callable[[], None]:
    """Fork a task process ahead of its workload. It closes its copy of ``connection``.

    :return: a function that ends the task process, unless it has a workload.
    """

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        connection.close()
        system.set_title("air-executor spare task")
        logs.forget_secrets()
        system.renew_random_state()

    def note(run_id: str, known: int) -> None:
        if config.learns_imports:
            imports.note(store, run_id, known)

    launchers_log = os.fstat(2)

    def begin(run_id: str) -> None:
        with contextlib.suppress(OSError):  # the task does without it
            redirect(launchers_log, store.output_file(run_id))

    if sys.platform != "darwin":
        supervision.fork_ahead(let_go, note, begin)
    return supervision.dismiss


def redirect(former: os.stat_result, path: str) -> None:
    """Redirect all descriptors that write to the file ``former`` to the file at ``path``.

    Airflow keeps a copy of the standard error that a task process starts with, for its last words.

    :raises OSError: the file at ``path`` can't be opened.
    """
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    for fd in system.descriptors():
        with contextlib.suppress(OSError):
            writes = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if writes and os.path.samestat(os.fstat(fd), former):
                os.dup2(output, fd, inheritable=os.get_inheritable(fd))
    os.close(output)


def execute(request: RunRequest, active: ActiveRun) -> Outcome:
    """Execute the workload of ``request`` and return what became of it."""
    workload = workloads.parse_workload(request.identity.kind, request.workload)
    supervision.begin(active)
    if request.identity.kind == "task":
        return _execute_task(workload, request, active)
    active.started()
    try:
        execution.run_other(workload, request.server)
    except Exception as error:
        # Callbacks: Airflow's supervisor of them raises when the callback failed.
        return Outcome(state=RunState.FAILED, reason=f"{type(error).__name__}: {error}")
    # Airflow learns a callback's result from its executor only; a connection test reports its result itself.
    return Outcome(state=RunState.SUCCEEDED, outcome="success", delivered=request.identity.kind == "connection_test")


def _execute_task(workload: Any, request: RunRequest, active: ActiveRun) -> Outcome:
    try:
        exit_code = execution.run_task(workload, request.server)
    except Exception as error:
        refusal = api.refusal(error)
        if refusal is not None:
            reason = f"Airflow does not want this run any more: {refusal}"
            return Outcome(state=RunState.FAILED, outcome=UNWANTED, reason=reason)
        if active.outcome is not None:
            return active.outcome
        if active.ending is not None:
            return active.stopped()
        if not api.is_passing(error):
            raise
        raise AirExecutorError(
            f"the API server could not be told of the start within {active.patience_s:g} s "
            f"([air_executor] api_patience_seconds): {type(error).__name__}: {error}"
        ) from error
    if active.outcome is None:
        # A coordinator's own supervisor executed the task, and has reported its state.
        active.started()
        state = RunState.SUCCEEDED if exit_code == 0 else RunState.FAILED
        return Outcome(state=state, delivered=True, exit_code=exit_code)
    return active.outcome
