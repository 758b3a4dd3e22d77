"""Keeping the state directory small: old files are pruned regularly, in a process of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from air_executor.config import Config
from air_executor.launcher import protocol
from air_executor.launcher.address import Address
from air_executor.launcher.client.control import remove_dead_launchers
from air_executor.launcher.server.chores import Chores
from air_executor.launcher.server.log import Log
from air_executor.runner.hooks import prune_jobs
from air_executor.runs import pruning
from air_executor.runs.store import RunStore

#: How often records are pruned, in seconds.
PRUNE_S = 300.0


class Janitor:
    """Prunes records and what else is old, and cuts the launcher's log."""

    def __init__(self, store: RunStore, config: Config, address: Address, chores: Chores) -> None:
        """Begin; the first pruning is due at once.

        :param address: of this launcher, whose files stay.
        """
        self._store = store
        self._config = config
        self._address = address
        self._chores = chores
        self._log = Log(address.log)
        self._due_s = 0.0
        self._pruner = 0

    def keep(self, options: Mapping[str, Any]) -> None:
        """Prune by these options from now on: those of an executor that has started after the launcher.

        :param options: see :data:`protocol.RETENTION`. What is missing, or not a number, stays as it is.
        """
        given: dict[str, Any] = {name: options[name] for name in protocol.RETENTION if name in options}
        self._config = replace(self._config, **{name: n for name, n in given.items() if type(n) in (int, float)})

    def work(self, *, prunes: bool = True) -> None:
        """Do what is due.

        :param prunes: whether this launcher prunes; once it has a successor, only that one does.
        """
        self._log.cut()
        now_s = time.monotonic()
        if prunes and now_s >= self._due_s and self._pruner not in self._chores.pids:
            self._due_s = now_s + PRUNE_S
            with contextlib.suppress(OSError):  # no room for another process: try again next time
                self._pruner = self._chores.begin("pruning", self._prune)

    def _prune(self) -> None:
        with contextlib.ExitStack() as each:  # each is done, even if others fail; the last one here is the first
            each.callback(remove_dead_launchers, self._store, asking=self._address)
            each.callback(prune_jobs, self._config)
            days, runs = self._config.keep_days, self._config.keep_runs
            each.callback(pruning.prune, self._store, keep_days=days, keep_runs=runs)
            each.callback(self._store.mark_open)
