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
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from air_executor.errors import AirExecutorError, ConfigError
from air_executor.guard import Guard
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

#: A worker goes on with as many runs as there are on its host.
_MOST = 100_000

#: How long Temporal may take to say why a run is to end, in seconds.
_ASK_S = 5.0

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
        self._guard = Guard(log)

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
            Worker(
                self._client,
                task_queue=self._queue,
                activities=[self.attach],
                max_concurrent_activities=_MOST,
                **common,
            )
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
            except AirExecutorError as error:
                return {"state": UNKNOWN, "reason": f"{self._host}: {error}"}
            self._ends[run_id] = asyncio.get_running_loop().create_future()
        end = self._ends[run_id]
        if stop := card.get("stop"):
            self._backend.stop(run_id, str(stop["reason"]), unwanted=bool(stop["unwanted"]))
        while not end.done():
            try:
                await asyncio.wait([end], timeout=BEAT_S)
            except asyncio.CancelledError:
                await self._cancelled(run_id)
            if activity.is_worker_shutdown() and not end.done():
                raise self._detached()
            self._beat()
        return end.result().to_document()

    def _beat(self) -> None:
        activity.heartbeat({"host": self._host, "queue": self._queue})

    def _detached(self) -> ApplicationError:
        return ApplicationError("its worker ends; the run goes on", self._queue, type=DETACHED)

    async def _cancelled(self, run_id: str) -> None:
        """Do what the cancellation of an activity means, and return if the run's end is still wanted.

        :raises ApplicationError: the worker ends, and its successor goes on with the run.
        :raises asyncio.CancelledError: this activity counts no more; the run goes on.
        """
        why, info = activity.cancellation_details(), activity.info()
        if why is None or why.worker_shutdown:
            raise self._detached()
        if not (why.cancel_requested or why.not_found):
            raise asyncio.CancelledError
        reason = {"reason": "its workflow was ended in Temporal", "unwanted": False}
        workflow = self._client.get_workflow_handle(str(info.workflow_id), run_id=info.workflow_run_id)
        timeout = timedelta(seconds=_ASK_S)
        try:
            if why.cancel_requested:
                reason = await workflow.query("stop_reason", run_id, rpc_timeout=timeout)
            # If it timed out, as when Temporal was away, the run is asked for again. Or the whole workflow is over.
            elif (await workflow.describe(rpc_timeout=timeout)).status == WorkflowExecutionStatus.RUNNING:
                raise asyncio.CancelledError
        except RPCError as error:
            log.warning("Temporal does not say why run %s is to end: %s", run_id, error)
            if why.not_found and error.status is not RPCStatusCode.NOT_FOUND:
                raise asyncio.CancelledError from None
        self._backend.stop(run_id, str(reason["reason"]), unwanted=bool(reason["unwanted"]))
        if why.not_found:
            raise asyncio.CancelledError

    async def _look(self) -> None:
        """Take the ends of runs as they come."""
        loop, ended = asyncio.get_running_loop(), list[RunRecord]()
        while True:
            with self._guard("Looking for ends"):
                ended = self._backend.take_ends()
            for record in ended:
                if (end := self._ends.get(record.id)) is not None and not end.done():
                    end.set_result(record)
                    loop.call_later(60.0, self._ends.pop, record.id, None)
            for record in ended:
                if record.outcome != UNWANTED:
                    with self._guard(f"Acknowledging the end of run {record.id}"):
                        self._backend.acknowledge(record)
            ended = []
            with self._guard("Waiting for ends") as waiting:
                await self._wait()
            if waiting.error is not None:
                await asyncio.sleep(_LOOK_S)

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
