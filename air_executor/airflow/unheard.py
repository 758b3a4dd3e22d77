"""What hears of tasks beside the execution API, taken away for a rehearsal: metrics, traces, Sentry, remote logs.

Each is replaced where Airflow's code looks it up, not where it sends. So the launcher makes no client, connection or
thread for it, which its forks would share.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from air_executor.airflow.compat import places

_NOTHING = object()


def silent(*_: Any, **__: Any) -> None:
    """Do nothing."""


@contextlib.contextmanager
def telemetry() -> Iterator[None]:
    """Let nobody hear of what tasks do in this process and in forks of it. All is as it was in the end."""
    with contextlib.ExitStack() as stack:
        for taken_away in (metrics, _traces, _sentry, _remote_logs, _log_handlers):
            stack.enter_context(taken_away())
        yield


@contextlib.contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Give a module, class or object other attributes, and its own again in the end."""
    before = {name: vars(owner).get(name, _NOTHING) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not _NOTHING:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)


@contextlib.contextmanager
def metrics() -> Iterator[None]:
    """Let nothing be counted, and no client for it be made: some of Airflow's modules measure their own import."""
    with contextlib.ExitStack() as stack:
        for name in places.METRICS:
            module = importlib.import_module(name)
            nothing = vars(module)["NoStatsLogger"]
            if hasattr(module, "_get_backend"):  # from Airflow 3.3 on
                state = {each: getattr(module, each) for each in ("_factory", "_backend", "_export_legacy_names")}
                stack.enter_context(replaced(module, _get_backend=nothing, **state))
            else:
                stats = vars(module)["Stats"]
                # An instance is made again in each fork, by the factory.
                values = {"factory": nothing, "instance": None, "_instance_pid": None, "initialize": silent}
                stack.enter_context(replaced(stats, **values))
        yield


@contextlib.contextmanager
def _traces() -> Iterator[None]:
    trace: Any = sys.modules.get("opentelemetry.trace")
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()) if trace else ():
            # Each module has its own, which would keep where its spans go once it has found out.
            if name.startswith("airflow.") and isinstance(vars(module).get("tracer"), trace.Tracer):
                stack.enter_context(replaced(module, tracer=trace.NoOpTracer()))
        yield


@contextlib.contextmanager
def _sentry() -> Iterator[None]:
    from airflow.sdk.execution_time import task_runner

    sentry = getattr(task_runner, "Sentry", None)  # from Airflow 3.2 on
    with contextlib.ExitStack() as stack:
        if sentry is not None:
            names = ("prepare_to_enrich_errors", "add_tagging", "add_breadcrumbs")
            stack.enter_context(replaced(sentry, **dict.fromkeys(names, silent)))
        yield


@contextlib.contextmanager
def _remote_logs() -> Iterator[None]:
    from airflow.sdk import log

    # What it returns depends on the handler, and is kept.
    log.logging_processors.cache_clear()
    try:
        with replaced(log, load_remote_log_handler=silent):
            yield
    finally:
        log.logging_processors.cache_clear()


@contextlib.contextmanager
def _log_handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    # Warnings are printed where there are none.
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
