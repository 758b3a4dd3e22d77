"""An executor's connection to Temporal, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import activity
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from air_executor.errors import AirExecutorError, ConfigError
from air_executor.guard import Guard
from air_executor.runs.record import Identity
from air_executor.temporal import asking, attributes, dag_runs, overview
from air_executor.temporal.settings import Settings
from air_executor.temporal.succession import memo
from air_executor.temporal.workflow import NAME
from air_executor.temporal.workflow_worker import workflow_worker

log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: One signal has at most this many orders, and about this many bytes of them: a payload has at most 2 MB, but each is
#: in the history for good.
_MAX_ORDERS, _MAX_BYTES = 100, 200_000

#: Backoff before Temporal is asked again, in seconds: the first pause, doubled each time, up to the last one.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 15.0

#: A workflow of a former version does not say for how long a host has been silent.
_LONG_S = 3600.0

#: A call may take so long, in seconds.
_CALL_S = 10.0


@dataclass
class Order:
    """A card on its way to its workflow."""

    workflow_id: str
    header: dict[str, Any]
    card: dict[str, Any]
    bytes: int
    is_sent: Callable[[str], None]
    """Called with the id of the workflow's execution when Temporal has the order."""


@dataclass
class Signal:
    """Something else to tell a workflow."""

    workflow_id: str
    name: str
    arguments: list[Any] = field(default_factory=list)
    is_sent: Callable[[], None] = field(default=lambda: None, compare=False)
    """Called when the workflow has it, unless that is over."""


class Link:
    """Sends what it is given in order, again and again until Temporal has it, and takes what workflows tell."""

    def __init__(
        self,
        settings: Settings,
        take: Callable[[list[dict[str, Any]]], None],
        judge: Callable[[dict[str, Any], float], str],
    ) -> None:
        """Prepare, but connect to nothing.

        :param take: is given the ends that a workflow tells, in the link's thread. They are told again if it raises.
        :param judge: says what became of a run whose host has not answered for this many seconds, in a thread of its
            own.
        """
        self._settings = settings
        self._take = take
        self._judge = judge
        self.queue = f"{settings.prefix}!{uuid.uuid4()}"
        """The task queue on which workflows tell of ends."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="temporal", daemon=True)
        self._client: Client | None = None
        self.connected = asyncio.Event()
        """Set when Temporal was reached, in the link's thread."""
        self._tasks: list[asyncio.Task[None]] = []
        self._outbox: asyncio.Queue[Order | Signal] = asyncio.Queue()
        self.is_away = False
        """Whether Temporal did not answer the last time it was told something."""
        self._has_attributes = False
        self._guard = Guard(log)

    def open(self) -> None:
        """Connect. If Temporal can't be reached, that is logged, and orders wait until it can."""
        self._thread.start()
        self._tasks = [self.call(self._begin(), _CALL_S)]
        with contextlib.suppress(FutureTimeoutError):
            self.call(self.connected.wait(), _CALL_S)

    async def _begin(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._live())

    async def _live(self) -> None:
        while self._client is None:
            try:
                self._client = await self._settings.connect()
            except ConfigError as error:
                if not self.is_away:
                    log.error("%s. Orders wait until it can.", error)
                self.is_away = True
                await asyncio.sleep(_FIRST_PAUSE_S)
        with self._guard("Looking for search attributes"):
            self._has_attributes = await attributes.are_registered(self._client)
        self.connected.set()
        await asyncio.gather(self._serve_always(), self._send_all())

    async def _serve_always(self) -> None:
        while True:
            serving = asyncio.create_task(self._serve())  # a worker that fails may cancel the task that it is in
            try:
                with self._guard("Serving what workflows tell"):
                    await asyncio.wait([serving])
                    serving.result()
            finally:
                serving.cancel()
                await asyncio.wait([serving], timeout=_CALL_S / 2)
            await asyncio.sleep(_FIRST_PAUSE_S)

    def close(self) -> None:
        """Send what waits, within a few seconds, and disconnect."""
        if not self._thread.is_alive():
            return
        with self._guard("Leaving Temporal"):
            self.call(self._leave(), _CALL_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)

    async def _leave(self) -> None:
        if not self.is_away:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._outbox.join(), _CALL_S / 2)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=_CALL_S / 2)

    def call(self, work: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        """Return what a coroutine returns in the link's thread.

        :raises TimeoutError: that takes too long.
        """
        future: Future[_T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def send(self, message: Order | Signal) -> None:
        """Send a message when its turn comes. Returns at once."""
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, message)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin something in the link's thread."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def client(self) -> Client:
        """The connection."""
        if self._client is None:
            raise AirExecutorError("Temporal is not connected")
        return self._client

    # In the thread

    async def _serve(self) -> None:
        @activity.defn(name="tell")
        async def tell(ends: list[dict[str, Any]]) -> None:
            self._take(ends)

        @activity.defn(name="judge")
        async def judge(identity: dict[str, Any], silent_s: float = _LONG_S) -> str:
            return await asyncio.to_thread(self._judge, identity, silent_s)

        workers = (
            Worker(
                self.client,
                task_queue=self.queue,
                activities=[tell, judge],
                graceful_shutdown_timeout=timedelta(seconds=2),
            ),
            workflow_worker(self.client, self._settings.prefix),
        )
        async with workers[0], workers[1]:
            await asyncio.Event().wait()

    async def _send_all(self) -> None:
        while True:
            first = await self._outbox.get()
            batch = [first]
            while not self._outbox.empty():
                batch.append(self._outbox.get_nowait())
            try:
                for group in _groups(batch):
                    with self._guard("Sending to Temporal"):
                        await self._send(group)
            finally:
                for _ in batch:
                    self._outbox.task_done()

    async def _send(self, group: list[Order] | Signal) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if isinstance(group, Signal):
                    await self._signal(group)
                else:
                    await self._order(group)
            except RPCError as error:
                if error.status is RPCStatusCode.INVALID_ARGUMENT:
                    if await self._has_lost_attributes():
                        continue
                    await self._refuse(group, error)
                    return
                if not self.is_away:
                    log.warning("Temporal can't be reached; orders wait: %s", error)
                self.is_away = True
            except Exception as error:
                log.exception("A message to Temporal can't be sent")
                await self._refuse(group, error)
                return
            else:
                if self.is_away:
                    log.info("Temporal is back")
                self.is_away = False
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    async def _has_lost_attributes(self) -> bool:
        """Tell whether Temporal does not know the search attributes of orders any more; they go without from now on."""
        if not self._has_attributes or await attributes.are_registered(self.client):
            return False
        self._has_attributes = False
        log.warning(
            "Temporal has lost the search attributes of our workflows, and orders go without them. To search by DAG and"
            " run again: air-executor temporal setup, and restart this scheduler"
        )
        return True

    async def _refuse(self, group: list[Order] | Signal, error: Exception) -> None:
        """Fail an order that Temporal will never take; of several, only those that it does not take alone."""
        if isinstance(group, Signal):
            log.error("Temporal refuses signal %s to %s: %s", group.name, group.workflow_id, error)
        elif len(group) > 1:
            for order in group:
                await self._send([order])
        else:
            end = {"state": "failed", "reason": f"Temporal refuses the order: {error}"}
            self._tasks.append(asyncio.create_task(self._record([{"id": group[0].card["id"], "end": end}])))

    async def _record(self, ends: list[dict[str, Any]]) -> None:
        """Have ends taken, as soon as they can be: the disk may be full."""
        while True:
            with self._guard("Recording that Temporal refuses an order") as recording:
                self._take(ends)
            if recording.error is None:
                return
            await asyncio.sleep(_LAST_PAUSE_S)

    async def _order(self, orders: list[Order]) -> None:
        first = orders[0]
        handle = await self.client.start_workflow(
            NAME,
            first.header,
            id=first.workflow_id,
            task_queue=self._settings.prefix,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            start_signal="order",
            start_signal_args=[self.queue, [order.card for order in orders]],
            memo=memo(first.header),
            search_attributes=attributes.attributes(first.header) if self._has_attributes else None,
            rpc_timeout=timedelta(seconds=_CALL_S),
        )
        for order in orders:
            order.is_sent(str(handle.result_run_id))

    async def _signal(self, signal: Signal) -> None:
        handle = self.client.get_workflow_handle(signal.workflow_id)
        try:
            await handle.signal(signal.name, args=signal.arguments, rpc_timeout=timedelta(seconds=_CALL_S))
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            # It is over. If it had runs that somebody follows, the watch finds that out.
        else:
            signal.is_sent()

    async def workflow_of(self, run_id: str, who: Identity) -> str | None:
        """Return the id of the workflow that has a run: its DAG run's first, or a later one. ``None``: none has it.

        :raises RPCError: Temporal can't be asked.
        """
        return await dag_runs.workflow_of(self.client, run_id, who)

    async def execution(self, workflow_id: str) -> str | None:
        """Return the id of the last execution of a workflow; ``None``: Temporal knows none.

        :raises RPCError: Temporal can't be asked.
        """
        found = await asking.workflow(self.client, workflow_id)
        return None if found is None else found.run_id

    async def look(self, workflow_id: str, execution: str) -> asking.Seen | None:
        """Look at an execution of a workflow; ``None``: Temporal does not know it.

        :raises RPCError: Temporal can't be asked.
        """
        return await asking.look(self.client, workflow_id, execution)

    async def known(self, workflow_id: str, execution: str | None = None) -> asking.Known | None:
        """Ask an execution of a workflow for all its runs, the last one unless it is named; it may be over.

        :return: ``None``: there is none.
        :raises RPCError: Temporal can't be asked.
        :raises WorkflowQueryFailedError: the workflow can't say.
        """
        return await asking.known(self.client, workflow_id, execution)

    async def status(self, workflow_id: str, execution: str, run_ids: list[str]) -> list[asking.RunStatus]:
        """Ask an execution of a workflow for some of its runs; see :func:`.asking.status`."""
        return await asking.status(self.client, workflow_id, execution, run_ids)

    async def served(self, queues: Iterable[str]) -> set[str]:
        """Return those of these task queues that workers serve, also while all of them are full.

        :raises RPCError: Temporal can't be asked.
        """
        beats = await overview.heartbeats(self.client, self._settings) or []
        served = {beat.task_queue for beat in beats}
        return {queue for queue in queues if queue in served or (await asking.queue(self.client, queue)).pollers}

    async def open_workflows(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield the ids of all workflows of ours that run, with what people see of their headers.

        :raises RPCError: Temporal can't be asked.
        """
        async for each in self.client.list_workflows(asking.open_query(self._settings.prefix)):
            yield each.id, dict(await each.memo())


def _groups(batch: list[Order | Signal]) -> list[list[Order] | Signal]:
    """Return messages in order, with the orders of a workflow that follow each other together."""
    groups: list[list[Order] | Signal] = []
    open_groups: dict[str, list[Order]] = {}
    for each in batch:
        if isinstance(each, Signal):
            open_groups.pop(each.workflow_id, None)
            groups.append(each)
            continue
        group = open_groups.get(each.workflow_id)
        if group is None or len(group) >= _MAX_ORDERS or sum(o.bytes for o in group) + each.bytes > _MAX_BYTES:
            group = open_groups[each.workflow_id] = []
            groups.append(group)
        group.append(each)
    return groups
