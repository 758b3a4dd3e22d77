"""What a launcher does before its first fork, so that no task has to: importing, building, and a small rehearsal.

A runner and its task process share with the launcher what that has done already. What they would do first, each for
itself, costs time; what they write to, memory as well, a page at a time.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx

from air_executor import compat
from air_executor.errors import AirExecutorError

#: What every task imports anyway, much of it only once it runs.
_MODULES = (
    "air_executor.runner.main",
    "air_executor.runner.airflow",
    "airflow.dag_processing.bundles.local",
    "airflow.dag_processing.bundles.manager",
    "airflow.dag_processing.dagbag",
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

#: The dag file that is read for practice.
_REHEARSED = Path(__file__).with_name("rehearsed_dag.py")


def warm_up(modules: Iterable[str]) -> None:
    """Import what every task needs and ``modules``, which the user named, and prepare what tasks share.

    What this Airflow does not have, or what fails, is left to the tasks.
    """
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"not preloaded: {name}: {error}", flush=True)
    _try(share_type_adapters, compat.share_log_setup, _leave_database)
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:
            print(f"[air_executor] preload: {name} cannot be imported; tasks will try themselves.", flush=True)
            traceback.print_exc()


def rehearse() -> None:
    """Do what every task does, after the last import.

    The interpreter remembers where it has found attributes and which classes are whose, but not through an import of
    many classes: then each task would find out anew, and make private what it looks at.
    """
    _try(_rehearse_requests, _rehearse_parsing)


def _try(*steps: Callable[[], None]) -> None:
    for step in steps:
        try:
            step()
        except Exception:
            print(f"{step.__name__} does not work with this Airflow; tasks are only slower for it", flush=True)
            traceback.print_exc()


def share_type_adapters() -> None:
    """Build the validators of messages once. Airflow builds the same ones anew in every task process."""
    from airflow.sdk.execution_time import comms, task_runner
    from pydantic import JsonValue, TypeAdapter

    ready: dict[int, tuple[Any, Any]] = {}

    def adapter(kind: Any) -> Any:
        # Unions can't be looked up by their value; the entry keeps the object, and so its id.
        if id(kind) not in ready:
            ready[id(kind)] = kind, TypeAdapter(kind)
        return ready[id(kind)][1]

    for kind in (comms.ToTask, comms.StartupDetails, JsonValue):
        adapter(kind)
    for module in (comms, task_runner):
        module.TypeAdapter = adapter  # type: ignore[attr-defined]


def _leave_database() -> None:
    """Let go of the database engines that Airflow makes on import: no task may use them, and each fork renews them."""
    from airflow import settings

    settings.dispose_orm(do_log=False)


def _rehearse_requests() -> None:
    from airflow.sdk.api.client import Client

    # The first client reads the trust store, which the process keeps, and so do its children.
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={}))
    with contextlib.closing(Client(base_url="http://rehearsal.invalid", token="", transport=transport)) as client:
        now = datetime.now(tz=timezone.utc)
        client.task_instances.set_rtif(uuid.uuid4(), {})
        client.task_instances.succeed(uuid.uuid4(), now, [], [], None)


def _rehearse_parsing() -> None:
    name = "airflow.models.dagbag" if compat.AIRFLOW_VERSION < (3, 2) else "airflow.dag_processing.dagbag"
    path, modules = list(sys.path), set(sys.modules)
    try:
        bag = importlib.import_module(name).BundleDagBag(
            dag_folder=str(_REHEARSED), bundle_path=_REHEARSED.parent, safe_mode=False, load_op_links=False
        )
        if bag.import_errors:
            raise AirExecutorError(f"the rehearsed dag file has errors: {bag.import_errors}")
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name.startswith("unusual_prefix_"):
                del sys.modules[name]
