"""The runs of a host, and the activities by which Temporal orders and follows them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine, Iterable
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError, TemporalError
from temporalio.service import RPCError, RPCStatusCode

from air_executor.errors import AirExecutorError, ProtocolError, StateDirError
from air_executor.guard import Guard
from air_executor.machine import system
from air_executor.machine.safe_files import replace_file
from air_executor.machine.sizes import mebibytes
from air_executor.runs import record as runs
from air_executor.runs import usage
from air_executor.runs.backend import RunBackend
from air_executor.runs.record import UNWANTED, RunRecord
from air_executor.runs.store import RunStore
from air_executor.temporal import asking, cards, job_files
from air_executor.temporal.execution import DETACHED, UNFIT, UNKNOWN
from air_executor.temporal.settings import Settings
from air_executor.temporal.slots import HostSlots

log = logging.getLogger(__name__)

#: How often a run's life is shown to Temporal, in seconds; a request to stop comes with the answer.
BEAT_S = 5.0

#: A runner that has not ended this many seconds after its task's grace time is killed.
_STUBBORN_S = 15.0

#: How often to look for ends without news, in seconds.
_LOOK_S = 1.0

#: Temporal asks so soon for the end of a run whose former activity is over, in seconds.
_TOLD_S = 20.0

#: Temporal may take so long to say why a run is to end, in seconds.
_ASK_S = 5.0


class HostRuns:
    """Runs what Temporal has for a host, and goes on with what former workers of the host have begun."""

    def __init__(
        self, backend: RunBackend, settings: Settings, host: str, queue: str, state_dir: str, grace_s: float
    ) -> None:
        """Have no run yet.

        :param backend: where runs happen, on this host.
        :param host: the host's name, for people.
        :param queue: the host's own task queue.
        :param state_dir: where the host's runs are.
        :param grace_s: how long a task that is stopped has for its ``on_kill``, in seconds.
        """
        self._backend = backend
        self._settings = settings
        self._host = host
        self._queue = queue
        self._state_dir = state_dir
        self._store = RunStore(state_dir)
        self._grace_s = grace_s
        self.client: Client
        self.slots: HostSlots | None = None
        self._ends: dict[str, asyncio.Future[RunRecord]] = {}
        #: Runs whose ends no activity has returned yet.
        self._untold: set[str] = set()
        self._is_unfit = False
        self._guard = Guard(log)

    def live(self) -> list[str]:
        """Return the ids of the runs that have not ended."""
        return [run_id for run_id, end in list(self._ends.items()) if not end.done()]

    def take_over(self, records: Iterable[RunRecord]) -> bool:
        """Follow those of these runs that former workers have ordered, so that they count before Temporal asks.

        :return: whether one of those was of a former version, whose task queues had other names.
        """
        is_former = False
        for record in records:
            if os.path.exists(mark := self._mark(record.id)):
                with self._guard(f"Taking run {record.id} over"):
                    is_former = is_former or os.path.getsize(mark) == 0
                    self._backend.follow(record)
                    self._ends[record.id] = asyncio.get_running_loop().create_future()
        return is_former

    def _mark(self, run_id: str) -> str:
        """Return the path of a file that says that a worker has ordered a run: others may use the state directory.

        It has the name of the host's queue; a former version left it empty.
        """
        return os.path.join(self._backend.folder(run_id), "by-worker")

    def stop_all(self, reason: str) -> None:
        """Ask for the end of all runs."""
        for run_id in self.live():
            self._stop(run_id, reason)

    def _stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        self._backend.stop(run_id, reason, unwanted=unwanted)
        asyncio.get_running_loop().call_later(self._grace_s + _STUBBORN_S, self._kill, run_id)

    def _kill(self, run_id: str) -> None:
        if run_id in self.live() and self._backend.is_stopping(run_id):
            log.warning("Run %s does not end; its runner is killed", run_id)
            self._backend.kill(run_id)
            asyncio.get_running_loop().call_later(_STUBBORN_S, self._kill, run_id)

    async def all_told(self) -> None:
        """Return when all runs have ended, and Temporal has their ends, or does not ask for them."""
        while ends := [end for end in self._ends.values() if not end.done()]:
            await asyncio.wait(ends)
        for _ in range(int(_TOLD_S / _LOOK_S)):
            if not self._untold:
                return
            await asyncio.sleep(_LOOK_S)

    def _follow(self, run_id: str) -> None:
        self._ends[run_id] = asyncio.get_running_loop().create_future()
        self._untold.add(run_id)

    # Activities

    @activity.defn(name="run")
    async def run(self, card: dict[str, Any]) -> dict[str, Any]:
        """Execute a run, and return its record."""
        self._beat(card)
        try:
            request = cards.request(card, self._settings)
            if not self._backend.knows(request.id):
                if request.identity.kind == "job":
                    request = job_files.at_home(request, self._state_dir, self._backend.folder(request.id))
                if (learned := card.get("learned")) is not None:
                    with contextlib.suppress(StateDirError):
                        self._store.learned.take(request.identity, learned)
                record = runs.queued(request.id, request.identity, limits=card["limits"], log_file=request.log_file)
                self._backend.order(request, record)
                with contextlib.suppress(StateDirError):
                    replace_file(self._mark(request.id), self._queue.encode())
                self._follow(request.id)
                self._note_fit()
        except AirExecutorError as error:
            # Others may take the order.
            if isinstance(error, StateDirError) or not self._has_key(card):
                self._pause(error)
            raise ApplicationError(f"{self._host}: {error}", type=UNFIT) from None
        finally:
            if self.slots is not None:
                self.slots.has_begun()
        return await self.attach(card)

    def _has_key(self, card: dict[str, Any]) -> bool:
        try:
            self._settings.unseal(card["sealed"])
        except ProtocolError:
            return False
        return True

    def _pause(self, error: AirExecutorError) -> None:
        """Ask for no orders for a while: this host would take one after the other from those that could execute it."""
        pause_s = self.slots.pause() if self.slots is not None else 0.0
        if not self._is_unfit:
            log.error(
                "Host %s can execute no orders. It asks for none for %.0f s, longer each time, until this is fixed: %s",
                self._host,
                pause_s,
                error,
            )
        self._is_unfit = True

    def _note_fit(self) -> None:
        if self.slots is not None:
            self.slots.note_fit()
        if self._is_unfit:
            log.info("Host %s can execute orders again", self._host)
        self._is_unfit = False

    @activity.defn(name="attach")
    async def attach(self, card: dict[str, Any]) -> dict[str, Any]:
        """Go on with a run that this host has, and return its record."""
        self._beat(card)
        run_id = card["id"]
        if run_id not in self._ends:
            try:
                record = self._backend.record(run_id)
                if record.state.is_end:
                    self._untold.discard(run_id)
                    return await _uninterrupted(self._document(record, card))
                self._backend.follow(record)
            except AirExecutorError as error:
                return {"state": UNKNOWN, "reason": f"{self._host}: {error}"}
            self._follow(run_id)
        end = self._ends[run_id]
        if stop := card.get("stop"):
            self._stop(run_id, str(stop["reason"]), unwanted=bool(stop["unwanted"]))
        is_deaf = False
        while not end.done():
            try:
                is_deaf = await self._wait_for(end, card, is_deaf=is_deaf)
            except asyncio.CancelledError:
                if activity.is_worker_shutdown() and not end.done():
                    raise self._detached() from None
                raise
            if activity.is_worker_shutdown() and not end.done():
                raise self._detached()
            self._beat(card)
        self._untold.discard(run_id)
        return await _uninterrupted(self._document(end.result(), card))

    async def _document(self, record: RunRecord, card: dict[str, Any]) -> dict[str, Any]:
        """Return what Temporal is told of a run that has ended."""
        document = record.to_document()
        if "learned" in card:
            document["memory_ends"] = self._store.learned.ends(record.identity)
        if record.identity.kind == "job":
            try:
                folder = self._backend.folder(record.id)
                return await asyncio.to_thread(job_files.with_files, document, folder, self._settings)
            except AirExecutorError as error:
                return {"state": "failed", "reason": f"{self._host}: {error}"}
        return document

    def _beat(self, card: dict[str, Any]) -> None:
        details = {"host": self._host, "machine": system.host(), "queue": self._queue, "task": card["summary"]}
        if (point := usage.last_point(self._backend.folder(card["id"]))) is not None:
            details.update(memory=mebibytes(point.memory_bytes), cpu=f"{point.cpu_s:.1f} s")  # for people
        activity.heartbeat(details)

    def _detached(self) -> ApplicationError:
        return ApplicationError("its worker ends; the run goes on", self._queue, self._host, type=DETACHED)

    async def _wait_for(self, end: asyncio.Future[RunRecord], card: dict[str, Any], *, is_deaf: bool) -> bool:
        """Wait a while for the end of a run, and do what the cancellation of its activity means.

        :param is_deaf: the SDK tells an activity of one cancellation, and that was a pause or a reset.
        :return: whether it is so now.
        :raises ApplicationError: the worker ends, and its successor goes on with the run.
        :raises asyncio.CancelledError: this activity counts no more; the run goes on.
        """
        try:
            await asyncio.wait([end], timeout=BEAT_S)
        except asyncio.CancelledError:
            why = activity.cancellation_details()
            if why is None or why.worker_shutdown:
                raise self._detached() from None
            if why.cancel_requested or why.not_found:
                await self._cancel(card, is_asked=why.cancel_requested, is_gone=why.not_found)
                return False
            if not (why.paused or why.reset):
                raise
            return True  # of nothing that concerns the run
        return is_deaf and not end.done() and not await self._was_cancelled(card)

    async def _was_cancelled(self, card: dict[str, Any]) -> bool:
        """Ask Temporal whether this activity is cancelled or over, and do what that means."""
        info = activity.info()
        try:
            found = await asking.workflow(self.client, str(info.workflow_id), info.workflow_run_id)
        except RPCError:
            return False  # it is away; the next time
        is_open = found is not None and found.status == WorkflowExecutionStatus.RUNNING
        pending = found.raw_description.pending_activities if found is not None and is_open else []
        states = [each.state for each in pending if each.activity_id == info.activity_id]
        is_asked = PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED in states
        if is_asked or not states:
            await self._cancel(card, is_asked=is_asked, is_gone=not states)
            return True
        return False

    async def _cancel(self, card: dict[str, Any], *, is_asked: bool, is_gone: bool) -> None:
        """Do what the cancellation of an activity means, and return if the run's end is still wanted.

        :param is_asked: the workflow asks for it.
        :param is_gone: Temporal does not know the activity any more.
        :raises asyncio.CancelledError: this activity counts no more; the run goes on.
        """
        run_id, info = card["id"], activity.info()
        reason = {"reason": "its workflow was ended in Temporal", "unwanted": False}
        workflow = self.client.get_workflow_handle(str(info.workflow_id), run_id=info.workflow_run_id)
        timeout = timedelta(seconds=_ASK_S)
        try:
            if is_asked:
                reason = await workflow.query("stop_reason", run_id, rpc_timeout=timeout)
            # If it timed out, as when Temporal was away, the run is asked for again. Or the whole workflow is over.
            elif (await workflow.describe(rpc_timeout=timeout)).status == WorkflowExecutionStatus.RUNNING:
                raise asyncio.CancelledError
        except TemporalError as error:  # or the workflow can't say, as when nobody here can replay it
            log.warning("Temporal does not say why run %s is to end: %s", run_id, error)
            is_lost = isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND
            is_lost_job = is_lost and card["identity"]["kind"] == "job"
            if is_gone and not is_lost_job:
                # It is away, or has lost its data: the run goes on, and tells Airflow its end. A job's could tell none.
                raise asyncio.CancelledError from None
        self._stop(run_id, str(reason["reason"]), unwanted=bool(reason["unwanted"]))
        if is_gone:
            self._untold.discard(run_id)
            raise asyncio.CancelledError

    # Ends

    async def look(self) -> None:
        """Take the ends of runs as they come, until this is cancelled."""
        loop, ended = asyncio.get_running_loop(), list[RunRecord]()
        while True:
            with self._guard("Looking for ends"):
                ended = self._backend.take_ends()
            for record in ended:
                if (end := self._ends.get(record.id)) is not None and not end.done():
                    end.set_result(record)
                    loop.call_later(60.0, self._ends.pop, record.id, None)
            if ended and self.slots is not None:
                self.slots.note_change()
            for record in ended:
                if record.outcome != UNWANTED and record.id in self._ends:
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


async def _uninterrupted(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Return what a coroutine returns, whatever this activity is asked for meanwhile: its run has ended."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()
