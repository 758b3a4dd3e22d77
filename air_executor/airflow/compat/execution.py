"""Executing a workload in this process, by Airflow's own means."""

from __future__ import annotations

import importlib
import logging
import signal
from typing import Any

from air_executor.airflow.compat import places
from air_executor.airflow.compat.version import AIRFLOW_VERSION


def run_task(workload: Any, server: str | None) -> int:
    """Supervise a task to its end and return its process's exit code.

    :param server: the URL of the execution API.
    :raises Exception: Airflow could not be told of the start or the end.
    """
    from airflow.sdk.execution_time import supervisor

    supervise = getattr(supervisor, "supervise_task", None) or supervisor.supervise  # the former from Airflow 3.3 on
    more = {}
    if AIRFLOW_VERSION >= (3, 2):
        more["sentry_integration"] = workload.sentry_integration
    return int(
        supervise(
            ti=workload.ti,
            dag_rel_path=workload.dag_rel_path,
            bundle_info=workload.bundle_info,
            token=workload.token,
            server=server,
            log_path=workload.log_path,
            **more,
        )
    )


def run_other(workload: Any, server: str | None) -> None:
    """Execute a callback or a connection test to its end.

    :param server: the URL of the execution API.
    :raises Exception: it failed.
    """
    if AIRFLOW_VERSION >= (3, 3):
        from airflow.executors.base_executor import BaseExecutor

        BaseExecutor.run_workload(workload, server=server)
        return
    import structlog

    callbacks = importlib.import_module("airflow.executors.workloads.callback")
    success, message = callbacks.execute_callback_workload(
        workload.callback, structlog.get_logger("air_executor.callback")
    )
    if not success:
        raise RuntimeError(message or "the callback failed")


class _Signals:
    """The module ``signal``, but SIGSEGV keeps its handler."""

    @staticmethod
    def signal(signum: int, handler: Any) -> Any:
        return signal.getsignal(signum) if signum == signal.SIGSEGV else signal.signal(signum, handler)

    def __getattr__(self, name: str) -> Any:
        return getattr(signal, name)


def let_faults_kill() -> None:
    """Let a segmentation fault end a process, also after Airflow has read a DAG file in it.

    Before Airflow reads one, it sets a handler in Python and never resets it. Such a handler returns to the instruction
    that failed, which fails again: the process would run for ever without doing anything.
    """
    importlib.import_module(places.DAG_FILE_IMPORTER).signal = _Signals()  # type: ignore[attr-defined]


def quieten_imports() -> None:
    """Keep a message of alembic's out of task logs, as Airflow 3.3 does; older ones import alembic in the task.

    Under LocalExecutor it is in no task's log either, as the scheduler has imported alembic before.
    """
    if AIRFLOW_VERSION < (3, 3):
        logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
