"""The doctor's checks that need Airflow.

The checks import Airflow, not this module: with some configurations the import fails, and the check reports that.
"""

from __future__ import annotations

import importlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from air_executor.observe.check import Check

#: How long the API server may take for its answer, in seconds.
_TIMEOUT_S = 5.0


def examine() -> list[Check]:
    """Check what the scheduler's executor and its tasks depend on, with logging switched off.

    Otherwise Airflow's own messages would appear between the findings.
    """
    logging.disable(logging.CRITICAL)
    try:
        return [_guarded("executor", _executor), _guarded("api server", _api_server)]
    finally:
        logging.disable(logging.NOTSET)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        remedy = "Airflow itself can't be configured so; see the message."
        return Check(name, False, f"{type(error).__name__}: {error}", remedy)


def _executor() -> Check:
    from airflow.configuration import conf

    from air_executor.airflow.executor import AirExecutor

    value = conf.get("core", "executor")
    remedy = "Set AIRFLOW__CORE__EXECUTOR=air_executor.AirExecutor (or [core] executor in airflow.cfg)."
    found = f"[core] executor = {value}"
    is_named = False
    for name in _executor_names():
        try:
            executor = _imported(name.module_path)
        except Exception as error:  # the module may raise anything
            why = f"{type(error).__name__}: {error}"
            return Check("executor", False, f"{found}: {name.module_path} can't be imported: {why}", remedy)
        is_named = is_named or (isinstance(executor, type) and issubclass(executor, AirExecutor))
    return Check("executor", is_named, found, remedy)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _executor_names() -> list[Any]:
    from airflow.executors.executor_loader import ExecutorLoader

    from air_executor.airflow import compat

    # Airflow 3.1 has no teams. Later ones look them up in the database, which this check must not need.
    options = {"validate_teams": False} if compat.AIRFLOW_VERSION >= (3, 2) else {}
    return list(ExecutorLoader.get_executor_names(**options))


def _api_server() -> Check:
    from airflow.configuration import conf

    from air_executor.airflow import compat

    url = compat.execution_api_url(compat.team_getter(conf))
    remedy = (
        "Tasks report to it. Start it (airflow api-server), or set [core] execution_api_server_url to where it is. "
        f"Proxy variables set here: {', '.join(name for name in os.environ if name.lower().endswith('_proxy')) or '-'}."
    )
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/health", timeout=_TIMEOUT_S) as answer:
            return Check("api server", answer.status == 200, f"{url} answers {answer.status}", remedy)
    except urllib.error.HTTPError as error:
        return Check("api server", False, f"{url} answers {error.code}", remedy)
    except OSError as error:
        return Check("api server", False, f"{url} can't be reached: {error}", remedy)
