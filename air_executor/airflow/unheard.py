"""Switches off, for a rehearsal, what reports tasks elsewhere: metrics, traces, Sentry, remote logs.

Each is replaced where Airflow's code looks it up, not where it sends. So the launcher makes no client, connection or
thread that its forks would share.
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
    """Switch all of them off, in this process and its forks, and restore them at the end."""
    with contextlib.ExitStack() as stack:
        for taken_away in (metrics, _traces, _sentry, _remote_logs, _log_handlers):
            stack.enter_context(taken_away())
        yield


@contextlib.contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Replace attributes of a module, class or object, and restore them at the end."""
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
    """Count nothing, and make no client for it: some of Airflow's modules measure their own import."""
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
            # Each module has a tracer of its own, which would look up once where its spans go, and keep that.
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

    # It caches what it returns, which depends on the handler.
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
    # Without handlers, warnings are printed.
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
