"""What a launcher imports and builds before its first fork, so that no task has to.

A runner and its task process share the launcher's memory. What each of them did for itself would take time, and memory
for every page that it writes to.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable
from typing import Any

from air_executor.airflow import unheard
from air_executor.airflow.compat import logs, places
from air_executor.launcher.practice import attempt

#: What every task imports, much of it only when it runs.
_MODULES = (
    "air_executor.runner.main",
    "air_executor.airflow.tasks",
    "airflow.dag_processing.bundles.local",
    "airflow.dag_processing.bundles.manager",
    places.DAG_BAG,
    "airflow.providers.standard.decorators.bash",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.empty",
    "airflow.providers.standard.operators.python",
    "airflow.providers.standard.sensors.python",
    "airflow.sdk._shared.logging.factory",
    "airflow.sdk._shared.logging.remote",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk.definitions.connection",
    "airflow.sdk.definitions.decorators.condition",
    "airflow.sdk.definitions.decorators.setup_teardown",
    "airflow.sdk.definitions.decorators.task_group",
    "airflow.sdk.execution_time.callback_supervisor",
    "airflow.sdk.execution_time.connection_test_supervisor",
    "airflow.sdk.execution_time.secrets.execution_api",
    "airflow.sdk.execution_time.task_runner",
    "airflow.version",
    "encodings.idna",
    "jinja2.ext",
    "jinja2.nativetypes",
    "jinja2.sandbox",
)


def warm_up(modules: Iterable[str]) -> None:
    """Import what every task needs, and prepare what tasks share.

    What this Airflow does not have, or what fails, is left to the tasks.

    :param modules: further modules, which the user named.
    """
    attempt(logs.keep_loggers_unbound)
    with unheard.metrics():
        for name in _MODULES:
            try:
                importlib.import_module(name)
            except ImportError as error:
                print(f"not preloaded: {name}: {error}", flush=True)
    attempt(share_type_adapters, logs.share_log_setup, _leave_database, _find_certificates)
    with logs.loggers_of_tasks():
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception:
                print(f"[air_executor] preload: {name} cannot be imported; tasks will try themselves.", flush=True)
                traceback.print_exc()


def _find_certificates() -> None:
    """Have ``certifi``, which Airflow imports, find its file: packages that make requests do so when they are imported.

    It would be a change that they make, and they could not be imported ahead.
    """
    import certifi

    certifi.where()


def share_type_adapters() -> None:
    """Build the validators of messages once. Airflow builds them in every task process."""
    from airflow.sdk.execution_time import comms, task_runner
    from pydantic import JsonValue, TypeAdapter

    ready: dict[int, tuple[Any, Any]] = {}

    def adapter(kind: Any) -> Any:
        # Not every kind can be hashed. The entry keeps the object alive, and so its id valid.
        if id(kind) not in ready:
            ready[id(kind)] = kind, TypeAdapter(kind)
        return ready[id(kind)][1]

    for kind in (comms.ToTask, comms.StartupDetails, JsonValue):
        adapter(kind)
    for module in (comms, task_runner):
        module.TypeAdapter = adapter  # type: ignore[attr-defined]


def _leave_database() -> None:
    """Dispose of the engines that Airflow makes at import: no task may use them, and each fork would renew them."""
    from airflow import settings

    settings.dispose_orm(do_log=False)
