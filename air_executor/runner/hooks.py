"""What the launcher and the runner need to know of the work that they do, supplied by the package that orders it.

``air_executor.airflow.hooks`` and ``air_executor.jobs.hooks`` are modules with the functions of :class:`Hooks`. They
are looked up by name, so that a launcher of jobs imports nothing of Airflow.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

from air_executor.config import Config
from air_executor.runner.active import ActiveRun, Outcome
from air_executor.runs.backend import RunRequest
from air_executor.runs.store import RunStore


class Hooks(Protocol):
    """The functions of a module of hooks."""

    def warm_up(self, config: Config, store: RunStore) -> Any:
        """Import and build in a launcher, before its first fork, what every run needs.

        :return: the :class:`air_executor.launcher.preload.preloader.Preloader` that imports packages ahead, if any.
        """

    def prepare(self, store: RunStore, config: Config, connection: socket.socket) -> Callable[[], None]:
        """Do in a spare what can be done before its request comes through ``connection``.

        :return: a function that ends what was prepared, unless the run uses it.
        """

    def execute(self, request: RunRequest, active: ActiveRun, store: RunStore) -> Outcome:
        """Execute the workload of ``request`` in a runner, and return what became of it."""


def hooks_of_kind(kind: str) -> Hooks:
    """Return the hooks for workloads of a kind, as :class:`air_executor.runs.record.Identity` has it."""
    return hooks("jobs" if kind == "job" else "airflow")


def hooks(serves: str) -> Hooks:
    """Return the hooks for what a launcher serves, as :class:`air_executor.config.Config` has it."""
    return cast(Hooks, importlib.import_module(f"air_executor.{serves}.hooks"))


def prune_jobs(config: Config) -> None:
    """Remove old jobs, whatever the launcher serves: Airflow's state directory has jobs, too."""
    importlib.import_module("air_executor.jobs.retention").prune_if_due(config)
