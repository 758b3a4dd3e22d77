"""Letting Airflow's code execute a task that is in no database."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from air_executor.airflow.compat import logs, places
from air_executor.errors import AirExecutorError

#: Requests that a task process may make: each gets an empty answer.
_ANSWERS = 8


@contextlib.contextmanager
def rehearsing(bundle: Path) -> Iterator[None]:
    """Let this process and its forks execute tasks for practice.

    Their dag bundle, whatever its name, is the folder ``bundle``. No listener, plugin or secrets backend takes part.
    """
    from airflow.dag_processing.bundles.local import LocalDagBundle
    from airflow.sdk.execution_time import supervisor, task_runner

    def silent(*_: Any, **__: Any) -> None:
        pass

    class Nobody:
        def __getattr__(self, _: str) -> Any:
            return silent

    class Bundles:
        def get_bundle(self, name: str, version: str | None = None) -> Any:
            return LocalDagBundle(name=name, version=version, path=str(bundle))

    listeners = type("Listeners", (), {"hook": Nobody()})()
    replaced = [
        (task_runner, "DagBundlesManager", Bundles),
        (task_runner, "get_listener_manager", lambda: listeners),
        (supervisor, "ensure_secrets_backend_loaded", list),
        (importlib.import_module(places.TASK_PLUGINS), "integrate_macros_plugins", silent),
    ]
    before = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, value in replaced:
            setattr(module, name, value)
        with logs.secrets_kept():
            yield
    finally:
        for (module, name, _), value in zip(replaced, before, strict=True):
            setattr(module, name, value)


def answers_to_task(startup: dict[str, Any], context: dict[str, Any]) -> bytes:
    """Return all that a supervisor sends to a task process that asks for nothing unusual.

    :param startup: the task instance as ``ti``, with ``dag_rel_path`` and ``bundle_info``.
    :param context: the execution API's answer to the start.
    """
    from airflow.sdk.execution_time import comms

    now = datetime.now(tz=timezone.utc)
    details = comms.StartupDetails.model_validate(
        {**startup, "ti_context": context, "start_date": now, "sentry_integration": ""}
    )
    frames = [comms._ResponseFrame(id=0, body=details.model_dump())]
    frames += [comms._ResponseFrame(id=number) for number in range(_ANSWERS)]
    return b"".join(frame.as_bytes() for frame in frames)


def be_task() -> None:
    """Execute a task in this process, whose supervisor is at the other end of descriptor 0.

    :raises AirExecutorError: the task process would have ended with an error.
    """
    from airflow.sdk.execution_time import task_runner

    try:
        task_runner.main()
    except SystemExit as error:
        raise AirExecutorError(f"a task process would have ended with {error.code}") from error
    finally:
        # Airflow tells by this attribute in which kind of process it is.
        channel = vars(task_runner).pop("SUPERVISOR_COMMS", None)
        if channel is not None and channel.socket is not None:
            channel.socket.detach()  # closing it would close whatever has its number by then
