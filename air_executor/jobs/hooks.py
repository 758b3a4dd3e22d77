"""What a launcher and a runner call for jobs: see :class:`air_executor.runner.hooks.Hooks`."""

from __future__ import annotations

import socket
from collections.abc import Callable

from air_executor.config import Config
from air_executor.runner import command
from air_executor.runner.active import ActiveRun, Outcome
from air_executor.runs.backend import RunRequest
from air_executor.runs.store import RunStore


def warm_up(config: Config, store: RunStore) -> None:
    """See :meth:`air_executor.runner.hooks.Hooks.warm_up`."""
    del store
    from air_executor.jobs.rehearsal import rehearse_job

    rehearse_job(config)


def prepare(store: RunStore, config: Config, connection: socket.socket) -> Callable[[], None]:
    """See :meth:`air_executor.runner.hooks.Hooks.prepare`."""
    del store, config, connection
    return _nothing


def execute(request: RunRequest, active: ActiveRun, store: RunStore) -> Outcome:
    """See :meth:`air_executor.runner.hooks.Hooks.execute`."""
    return command.execute(request, active, store)


def _nothing() -> None:
    pass
