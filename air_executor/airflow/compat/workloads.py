"""Airflow's workloads: their kinds, keys and identities, and how they get to a runner.

Airflow 3.1 has tasks only. 3.2 has executor callbacks too, 3.3 connection tests and typed keys.
"""

from __future__ import annotations

import copy
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.executors import workloads as _workloads
from pydantic import ValidationError

from air_executor.airflow.compat.version import AIRFLOW_VERSION
from air_executor.errors import ProtocolError
from air_executor.runs.record import Identity

if TYPE_CHECKING:
    from airflow.executors.workloads import ExecutorWorkload as Workload

#: The workload classes of this Airflow, by kind.
CLASSES: dict[str, Any] = {
    kind: getattr(_workloads, name)
    for kind, name in (
        ("task", "ExecuteTask"),
        ("callback", "ExecuteCallback"),
        ("connection_test", "TestConnection"),
    )
    if hasattr(_workloads, name)
}


def kind_of(workload: Workload) -> str:
    """Return the kind of a workload.

    :raises ProtocolError: AirExecutor does not know its kind.
    """
    for kind, cls in CLASSES.items():
        if isinstance(workload, cls):
            return kind
    raise ProtocolError(f"AirExecutor does not know what to do with a workload of type {type(workload).__name__}")


def key_of(workload: Any) -> Any:
    """Return the key under which Airflow's scheduler knows a workload."""
    if hasattr(workload, "ti"):
        return workload.ti.key
    if hasattr(workload, "key"):
        return workload.key
    return workload.callback.key  # Airflow 3.2


def callback_key(callback_id: str) -> Any:
    """Return the key under which Airflow's scheduler knows an executor callback."""
    if AIRFLOW_VERSION < (3, 3):
        return callback_id
    return importlib.import_module("airflow.models.callback").CallbackKey(id=callback_id)


def states_of(kind: str) -> Any:
    """Return the enumeration of the states that Airflow has for workloads of a kind."""
    if kind == "task":
        return importlib.import_module("airflow.utils.state").TaskInstanceState
    if kind == "callback":
        return importlib.import_module("airflow.utils.state").CallbackState
    return importlib.import_module("airflow.models.connection_test").ConnectionTestState


def identity_of_instance(ti: Any, *, team: str | None) -> Identity:
    """Return what a record says about a task instance, whether the database's or a workload's."""
    return Identity(
        kind="task",
        workload_id=str(ti.id),
        name=f"{ti.dag_id}.{ti.task_id}",
        dag_id=ti.dag_id,
        task_id=ti.task_id,
        dag_run_id=ti.run_id,
        map_index=ti.map_index,
        try_number=ti.try_number,
        team=team,
        queue=ti.queue,
    )


def identity_of(workload: Any, *, team: str | None) -> Identity:
    """Return what a record says about a workload."""
    kind = kind_of(workload)
    if kind == "task":
        return identity_of_instance(workload.ti, team=team)
    if kind == "callback":
        path = str(workload.callback.data.get("path", "callback"))
        # .../<dag id>/<run id>/<callback id>: nothing else has these ids
        parts = Path(workload.log_path or "").parts[1:3]
        dag_id, dag_run_id = parts if len(parts) == 2 else (None, None)
        return Identity(
            kind=kind,
            workload_id=str(workload.callback.id),
            name=path.rsplit(".", 1)[-1],
            dag_id=dag_id,
            dag_run_id=dag_run_id,
            team=team,
        )
    return Identity(
        kind=kind,
        workload_id=str(workload.connection_test_id),
        name=f"connection test {workload.connection_id}",
        team=team,
        queue=workload.queue,
    )


def pre_assigned_id(workload: Any) -> str | None:
    """Return the ``external_executor_id`` that the scheduler has committed already (from Airflow 3.2)."""
    ti = getattr(workload, "ti", None)
    return getattr(ti, "external_executor_id", None)


def executor_config(workload: Any) -> dict[str, Any]:
    """Return the ``executor_config`` of a task; a workload's JSON does not have it."""
    return getattr(getattr(workload, "ti", None), "executor_config", None) or {}


def trace_carrier(task: Any) -> dict[str, Any] | None:
    """Return where in which trace a workload, or the database's task instance, belongs; ``None``: in none."""
    return getattr(getattr(task, "ti", task), "context_carrier", None)


def dump_workload(workload: Any) -> dict[str, Any]:
    """Return a workload as plain data, token included."""
    document: dict[str, Any] = workload.model_dump(mode="json")
    return document


def parse_workload(kind: str, document: dict[str, Any]) -> Any:
    """Return the workload that :func:`dump_workload` wrote.

    :raises ProtocolError: ``document`` is no workload of this kind.
    """
    cls = CLASSES.get(kind)
    if cls is None:
        raise ProtocolError(f"this Airflow knows no workloads of kind {kind!r}")
    try:
        return cls.model_validate(document)
    except ValidationError as error:
        # The input holds the token.
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        raise ProtocolError(f"not a workload of kind {kind!r}: {problems}") from None


def workload_of(ti: Any, generator: Any, sentry_integration: str) -> Any:
    """Return the workload of a task instance, as the scheduler makes it when it queues one."""
    more = {"sentry_integration": sentry_integration} if AIRFLOW_VERSION >= (3, 2) else {}
    return CLASSES["task"].make(ti, generator=generator, **more)


def priority_of(workload: Any) -> int:
    """Return the priority weight of a task; higher is more urgent."""
    return int(workload.ti.priority_weight)


def with_new_token(workload: Any, generator: Any) -> Any:
    """Return the workload of a task with a new token, as its own may have expired while it waited."""
    if hasattr(workload, "generate_token"):  # from Airflow 3.2 on
        token = workload.generate_token(str(workload.ti.id), generator)
    else:
        token = generator.generate({"sub": str(workload.ti.id)})
    return workload.model_copy(update={"token": token})


def with_lasting_token(workload: Any, generator: Any, valid_s: float) -> Any:
    """Return a workload whose token is as good as its own, for this many seconds.

    From Airflow 3.2 on it is good for nothing but to begin the workload.
    """
    from air_executor.airflow.compat import tokens  # which a scheduler does not need otherwise

    claims = tokens.claims_in(workload.token)
    if not claims:
        return workload  # as without a key
    generator = copy.copy(generator)
    generator.valid_for = valid_s
    token = generator.generate({name: claims[name] for name in ("sub", "scope") if name in claims})
    return workload.model_copy(update={"token": token})


def log_file_of(workload: Any) -> str | None:
    """Return the absolute path of a workload's log; ``None``: it has none."""
    from airflow.configuration import conf

    relative = getattr(workload, "log_path", None)
    return os.path.join(conf.get("logging", "base_log_folder"), relative) if relative else None
