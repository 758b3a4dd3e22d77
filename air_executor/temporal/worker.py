"""The worker of a host: it takes orders from Temporal's task queues, and runs them through the host's launcher."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from temporalio.client import Client
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError
from temporalio.worker import (
    CustomSlotSupplier,
    FixedSizeSlotSupplier,
    Worker,
    WorkerTuner,
)

from air_executor.errors import AirExecutorError, ConfigError
from air_executor.runs.backend import RunBackend
from air_executor.runs.store import RunStore
from air_executor.temporal import asking
from air_executor.temporal.host_runs import BEAT_S, HostRuns
from air_executor.temporal.settings import WORKER, Settings
from air_executor.temporal.slots import HostSlots
from air_executor.temporal.workflow_worker import workflow_worker

_Slots: TypeAlias = CustomSlotSupplier | FixedSizeSlotSupplier

log = logging.getLogger(__name__)

#: A worker goes on with as many runs as there are on its host.
_MOST = 100_000

#: How often to try to connect, in seconds.
_RETRY_S = 2.0

#: A worker that is told to end leaves its runs to its successor after this many seconds.
_LEAVE_S = 1.0

#: How often Temporal is told how the worker is, for those who ask it which hosts there are, in seconds.
_REPORT_S = 15.0


class Shutdown:
    """How a worker is told to end. Make it in the worker's event loop."""

    def __init__(self, policy: str) -> None:
        """Ask for nothing yet.

        :param policy: what becomes of the runs. ``detach``: they outlive the worker, and the next one of the host goes
            on with them. ``drain``: it ends after them. ``kill``: they are stopped.
        """
        self.policy = policy
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()

    def ask(self, policy: str | None = None) -> None:
        """Ask the worker to end; the second time, not to wait for its runs any more."""
        if self.asked.is_set():
            self.at_once.set()
        else:
            self.policy = policy or self.policy
            self.asked.set()


class HostWorker:
    """Runs what Temporal's task queues have for this host."""

    def __init__(
        self, backend: RunBackend, settings: Settings, host: str, place: str, store: RunStore, grace_s: float
    ) -> None:
        """Prepare, but begin nothing.

        :param backend: where runs happen, on this host.
        :param host: the host's name, for people.
        :param place: names the state directory, unlike all others: hosts may have the same name, or another one later.
        :param store: of that directory.
        :param grace_s: how long a task that is stopped has for its ``on_kill``, in seconds.
        """
        self._settings = settings
        self._host = host
        self._queue = settings.host_queue(place)
        self._former_queue = settings.host_queue(f"{host}-{place}")
        """Of a former version's worker. Runs that it has begun are asked for there."""
        self._runs = HostRuns(backend, settings, host, self._queue, str(store.root), grace_s)
        self._store = store
        self._client: Client

    async def serve(self, queues: Sequence[str], slots: int | None, shutdown: Shutdown) -> None:
        """Serve queues until that is to end.

        :param slots: at most this many runs at a time; ``None``: as many as memory and CPUs allow.
        """
        if not await self._connect(shutdown.asked):
            return
        self._runs.slots = room = HostSlots(slots, lambda: len(self._runs.live()))
        live = [record for record in self._store.open_records() if not record.state.is_end]
        asked_for = [self._queue, self._former_queue] if self._runs.take_over(live) else [self._queue]
        own = [
            workflow_worker(self._client, self._settings.prefix),
            *(self._worker(each, self._runs.attach, FixedSizeSlotSupplier(_MOST), pollers=5) for each in asked_for),
        ]
        orders = [
            self._worker(
                self._settings.queue(name), self._runs.run, room.supplier(), pollers=1 if len(queues) > 1 else 5
            )
            for name in queues
        ]
        helpers = [asyncio.create_task(self._runs.look()), asyncio.create_task(self._keep_contact())]
        try:
            async with contextlib.AsyncExitStack() as stack:
                for worker in own:
                    await stack.enter_async_context(worker)
                async with contextlib.AsyncExitStack() as taking:
                    for worker in orders:
                        await taking.enter_async_context(worker)
                    log.info("Host %s serves %s", self._host, ", ".join(queues))
                    await shutdown.asked.wait()
                # From here on Temporal asks for the runs through the host's own queue.
                await self._end_runs(shutdown)
        finally:
            for helper in helpers:
                helper.cancel()

    async def _end_runs(self, shutdown: Shutdown) -> None:
        log.info("Ending with %d runs: %s", len(self._runs.live()), shutdown.policy)
        if shutdown.policy == "detach":
            return
        if shutdown.policy == "kill":
            self._runs.stop_all("its host's worker was shut down")
        waits = [asyncio.create_task(self._runs.all_told()), asyncio.create_task(shutdown.at_once.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _worker(self, queue: str, activity: Any, slots: _Slots, *, pollers: int) -> Worker:
        throttle = timedelta(seconds=BEAT_S)
        fixed = FixedSizeSlotSupplier(1)
        return Worker(
            self._client,
            task_queue=queue,
            activities=[activity],
            tuner=WorkerTuner.create_composite(
                workflow_supplier=fixed, activity_supplier=slots, local_activity_supplier=fixed, nexus_supplier=fixed
            ),
            max_concurrent_activity_task_polls=pollers,
            default_heartbeat_throttle_interval=throttle,
            max_heartbeat_throttle_interval=throttle,
            graceful_shutdown_timeout=timedelta(seconds=_LEAVE_S),
        )

    async def _connect(self, until: asyncio.Event) -> bool:
        """Connect to Temporal as soon as it can be reached; ``False``: the event came first."""
        said = False
        runtime = Runtime(telemetry=TelemetryConfig(), worker_heartbeat_interval=timedelta(seconds=_REPORT_S))
        while not until.is_set():
            try:
                self._runs.client = self._client = await self._settings.connect(
                    runtime=runtime, identity=f"{WORKER}{self._host}"
                )
                return True
            except ConfigError as error:
                if not said:
                    log.error("%s. This worker waits for it.", error)
                said = True
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(until.wait(), _RETRY_S)
        return False

    async def _keep_contact(self) -> None:
        """Ask Temporal regularly whether it is there, and note when it was."""
        is_away = False
        while True:
            try:
                await asking.namespace(self._client, timedelta(seconds=BEAT_S))
                self._store.note_contact()
                if is_away:
                    log.info("Temporal is back")
                is_away = False
            except RPCError as error:
                if not is_away:
                    log.warning("Temporal can't be reached; what runs, runs on: %s", error)
                is_away = True
            except AirExecutorError as error:
                log.warning("That Temporal is there can't be noted: %s", error)
            await asyncio.sleep(_RETRY_S if is_away else BEAT_S)
