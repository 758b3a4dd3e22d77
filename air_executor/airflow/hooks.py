"""The hooks of launchers and runners for Airflow's workloads: see :class:`air_executor.runner.hooks.Hooks`.

The functions import Airflow, not this module: a launcher that starts each runner as a fresh Python needs none.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from air_executor.config import Config
from air_executor.launcher.preload.preloader import Preloader
from air_executor.runner.active import ActiveRun, Outcome
from air_executor.runs.backend import RunRequest
from air_executor.runs.store import RunStore


def warm_up(config: Config, store: RunStore) -> Preloader | None:
    """See :meth:`air_executor.runner.hooks.Hooks.warm_up`."""
    from air_executor.airflow import rehearsal, warmup
    from air_executor.airflow.compat import logs

    warmup.warm_up(name for name in config.preload if name not in ("auto", "off") and not name.startswith("-"))
    preloader = None
    if config.learns_imports:
        preloader = Preloader(store, [name[1:] for name in config.preload if name.startswith("-")])
        with logs.loggers_of_tasks():
            preloader.import_remembered()
    rehearsal.rehearse()
    if config.rehearses_runs:
        rehearsal.rehearse_runs(config)
    return preloader


def prepare(store: RunStore, config: Config, connection: socket.socket) -> Callable[[], None]:
    """See :meth:`air_executor.runner.hooks.Hooks.prepare`."""
    from air_executor.airflow import tasks

    return tasks.fork_ahead(store, config, connection)


def execute(request: RunRequest, active: ActiveRun, store: RunStore) -> Outcome:
    """See :meth:`air_executor.runner.hooks.Hooks.execute`."""
    del store
    from air_executor.airflow import tasks

    return tasks.execute(request, active)
