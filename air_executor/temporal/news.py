"""What an executor hears from Temporal: which runs have ended, where they run, and why they wait.

All of this happens in the link's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from temporalio.exceptions import TemporalError

from air_executor.config import Config
from air_executor.errors import AirExecutorError
from air_executor.guard import Guard
from air_executor.runs.ordered import OrderedRuns
from air_executor.runs.pruning import prune
from air_executor.runs.record import Identity, RunRecord, RunState, moment
from air_executor.temporal.dag_runs import DagRuns
from air_executor.temporal.followed import Followed
from air_executor.temporal.link import Link
from air_executor.temporal.settings import Settings
from air_executor.temporal.watch import WATCH_S, Watch

log = logging.getLogger(__name__)

#: How often old records are removed, in seconds.
_PRUNE_S = 600.0


class News:
    """Has the connection to Temporal, notes what is heard there, and looks after runs of which nothing is heard."""

    def __init__(
        self,
        config: Config,
        settings: Settings,
        store: OrderedRuns,
        followed: Followed,
        dag_runs: DagRuns,
        judge: Callable[[Identity, float], str],
        give_back: Callable[[Identity, str], bool],
        waits: Callable[[str, str], None],
    ) -> None:
        """Connect to nothing yet. For ``judge``, ``give_back`` and ``waits`` see :class:`.TemporalBackend`."""
        self._config = config
        self._store = store
        self._followed = followed
        self._dag_runs = dag_runs
        self._tell_wait = waits
        self._guard = Guard(log)
        self.link = Link(settings, self._take, lambda who, silent_s: judge(Identity(**who), silent_s))
        self.watch = Watch(
            self.link,
            settings,
            followed.live,
            self._take,
            self._note_host,
            self._note_wait,
            dag_runs.add_successor,
            judge,
            give_back,
        )

    def begin(self) -> None:
        """Connect, and listen."""
        self.link.open()
        self.link.begin(self._look())

    def _note_wait(self, run_id: str, why: str | None) -> None:
        if self._followed.get(run_id) is not None and self._store.note_wait(run_id, why) and why is not None:
            self._tell_wait(run_id, why)

    def _note_host(self, run_id: str, host: str) -> None:
        if self._followed.get(run_id) is not None:
            self._store.note_host(run_id, host)

    def _take(self, ends: list[dict[str, Any]]) -> None:
        """Record ends. They are told again if that fails; one that can't be understood fails its run."""
        failed: Exception | None = None
        for each in ends:
            run_id = str(each["id"])
            if (run := self._followed.get(run_id)) is None:
                continue
            try:
                if each["end"].get("is_unknown"):
                    self.watch.forget(run_id)
                    continue
                if each["end"].get("is_taken"):
                    self._followed.leave(run_id, run)
                    continue
                if (successor := each.get("next")) is not None:
                    self._dag_runs.add_successor(run.identity, successor)
                self._followed.end_as_told(run_id, run, each["end"])
            except Exception as error:
                failed = error  # the others first
        if failed is not None:
            raise failed

    async def _look(self) -> None:
        """Look for open workflows of former executors once, and after live runs regularly; remove old records."""
        while not self.link.connected.is_set():
            self.watch.tell_if_away()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.link.connected.wait(), WATCH_S)
        has_found = False
        prune_s = 0.0
        while True:
            if not has_found:
                with self._guard("Looking for open workflows") as looking:
                    async for workflow_id, header in self.link.open_workflows():
                        self._dag_runs.add(header.get("dag"), header.get("dag_run"), workflow_id)
                has_found = looking.error is None
            await asyncio.sleep(WATCH_S)
            await self.watch.look()
            if time.monotonic() >= prune_s:
                prune_s = time.monotonic() + _PRUNE_S
                with self._guard("Removing old records"):
                    await asyncio.to_thread(self._prune)

    def _prune(self) -> None:
        """Remove old records. Those of runs whose ends were not told here get one, once Temporal knows them no more."""
        days, runs = self._config.keep_days, self._config.keep_runs
        for record in self._store.open_records():
            is_old = str(record.queued_at) < moment(time.time() - days * 86400)
            is_open = not record.state.is_end and self._followed.get(record.id) is None
            if is_old and is_open and not self._is_known(record):
                reason = "nobody here has heard of its end"
                self._store.mark_reported(self._store.write(record.advance(RunState.LOST, reason=reason)))
        prune(self._store, keep_days=days, keep_runs=runs)

    def _is_known(self, record: RunRecord) -> bool:
        """Tell whether Temporal may still have a run."""
        try:
            return self.link.call(self.link.workflow_of(record.id, record.identity), 10) is not None
        except (AirExecutorError, TemporalError, FutureTimeoutError):
            return True
