"""The worker of a host: it takes orders from Temporal's task queues, and runs them through the host's launcher."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import Worker

from air_executor.errors import AirExecutorError, ConfigError, RecordError
from air_executor.runs import record as runs
from air_executor.runs.backend import RunBackend
from air_executor.runs.record import UNWANTED, RunRecord
from air_executor.temporal import cards
from air_executor.temporal.settings import Settings
from air_executor.temporal.workflow import DETACHED, UNKNOWN, DagRunWorkflow

log = logging.getLogger(__name__)

#: How often a run's life is shown to Temporal, in seconds; a request to stop comes with the answer.
BEAT_S = 5.0

#: How often to look for ends without news, in seconds.
_LOOK_S = 1.0

#: How often to try to connect, in seconds.
_RETRY_S = 2.0

#: A worker that is told to end leaves its runs to its successor after so many seconds.
_LEAVE_S = 1.0


class HostWorker:
    """Runs what Temporal's task queues have for this host."""

    def __init__(self, backend: RunBackend, settings: Settings, host: str, place: str) -> None:
        """Prepare, but begin nothing.

        :param backend: where runs happen, on this host.
        :param host: the host's name, for people.
        :param place: names the state directory, unlike all others: hosts may have the same name.
        """
        self._backend = backend
        self._settings = settings
        self._host = host
        self._queue = settings.host_queue(f"{host}-{place}")
        self._client: Client
        self._ends: dict[str, asyncio.Future[RunRecord]] = {}

    async def serve(self, queues: Sequence[str], slots: int, until: asyncio.Event) -> None:
        """Serve queues until an event is set. Runs outlive this, and the next worker of the host goes on with them.

        :param slots: at most so many runs at a time from each queue.
        """
        if not await self._connect(until):
            return
        throttle = timedelta(seconds=BEAT_S)
        common: dict[str, Any] = {
            "identity": f"air-executor worker {self._host}",
            "default_heartbeat_throttle_interval": throttle,
            "max_heartbeat_throttle_interval": throttle,
            "graceful_shutdown_timeout": timedelta(seconds=_LEAVE_S),
        }
        workers = [Worker(self._client, task_queue=self._settings.prefix, workflows=[DagRunWorkflow])]
        workers.append(
            Worker(self._client, task_queue=self._queue, activities=[self.attach], **common)  # as many as there are
        )
        for name in queues:
            queue = self._settings.queue(name)
            workers.append(
                Worker(self._client, task_queue=queue, activities=[self.run], max_concurrent_activities=slots, **common)
            )
        look = asyncio.create_task(self._look())
        try:
            async with contextlib.AsyncExitStack() as stack:
                for worker in workers:
                    await stack.enter_async_context(worker)
                log.info("Host %s serves %s with %d slots each", self._host, ", ".join(queues), slots)
                await until.wait()
        finally:
            look.cancel()

    async def _connect(self, until: asyncio.Event) -> bool:
        """Connect to Temporal as soon as it can be reached; ``False``: the event came first."""
        said = False
        while not until.is_set():
            try:
                self._client = await self._settings.connect()
                return True
            except ConfigError as error:
                if not said:
                    log.error("%s. This worker waits for it.", error)
                said = True
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(until.wait(), _RETRY_S)
        return False

    @activity.defn(name="run")
    async def run(self, card: dict[str, Any]) -> dict[str, Any]:
        """Execute a run, and return its record."""
        self._beat()
        try:
            request = cards.request(card, self._settings)
            if not self._backend.knows(request.id):
                record = runs.queued(request.id, request.identity, limits=card["limits"], log_file=request.log_file)
                self._backend.order(request, record)
                self._ends[request.id] = asyncio.get_running_loop().create_future()
        except AirExecutorError as error:
            raise ApplicationError(f"{self._host}: {error}", type=type(error).__name__) from None
        return await self.attach(card)

    @activity.defn(name="attach")
    async def attach(self, card: dict[str, Any]) -> dict[str, Any]:
        """Go on with a run that this host has, and return its record."""
        self._beat()
        run_id = card["id"]
        if run_id not in self._ends:
            try:
                record = self._backend.record(run_id)
                if record.state.is_end:
                    return record.to_document()
                self._backend.follow(record)
            except RecordError as error:
                return {"state": UNKNOWN, "reason": f"{self._host} has no record of it: {error}"}
            self._ends[run_id] = asyncio.get_running_loop().create_future()
        end = self._ends[run_id]
        while not end.done():
            try:
                await asyncio.wait([end], timeout=BEAT_S)
            except asyncio.CancelledError:
                await self._cancelled(run_id)
            self._beat()
        return end.result().to_document()

    def _beat(self) -> None:
        activity.heartbeat({"host": self._host, "queue": self._queue})

    async def _cancelled(self, run_id: str) -> None:
        """Do what the cancellation of an activity means, and return if the run's end is still wanted.

        :raises ApplicationError: the worker ends, and its successor goes on with the run.
        :raises asyncio.CancelledError: this activity counts no more; the run goes on.
        """
        why = activity.cancellation_details()
        if why is None or why.worker_shutdown:
            raise ApplicationError("its worker ends; the run goes on", self._queue, type=DETACHED)
        reason = {"reason": "its workflow was terminated in Temporal", "unwanted": False}
        workflow = self._client.get_workflow_handle(str(activity.info().workflow_id))
        if why.cancel_requested:
            with contextlib.suppress(RPCError):
                reason = await workflow.query("stop_reason", run_id)
        elif why.not_found:
            # It timed out, as when Temporal was away: the run is asked for again. Or the whole workflow is over.
            if (await workflow.describe()).status == WorkflowExecutionStatus.RUNNING:
                raise asyncio.CancelledError
        else:
            raise asyncio.CancelledError
        self._backend.stop(run_id, str(reason["reason"]), unwanted=bool(reason["unwanted"]))
        if why.not_found:
            raise asyncio.CancelledError

    async def _look(self) -> None:
        """Take the ends of runs as they come."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                for record in self._backend.take_ends():
                    if (end := self._ends.get(record.id)) is not None and not end.done():
                        end.set_result(record)
                        loop.call_later(60.0, self._ends.pop, record.id, None)
                    if record.outcome != UNWANTED:
                        self._backend.acknowledge(record)
            except AirExecutorError as error:
                log.error("The ends of runs can't be looked up now: %s", error)
            await self._wait()

    async def _wait(self) -> None:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        due_s = self._backend.due_in_s()
        fd = self._backend.fileno()
        if fd is not None:
            loop.add_reader(fd, news.set)
        try:
            await asyncio.wait_for(news.wait(), _LOOK_S if due_s is None else min(due_s, _LOOK_S))
        except asyncio.TimeoutError:
            pass
        finally:
            if fd is not None:
                loop.remove_reader(fd)
