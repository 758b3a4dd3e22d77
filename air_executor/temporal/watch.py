"""What an executor regularly looks at in Temporal: its runs' workflows, their heartbeats, queues without workers."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from temporalio.client import WorkflowQueryFailedError

from air_executor.guard import Guard
from air_executor.runs.record import Identity
from air_executor.temporal import dag_runs
from air_executor.temporal.asking import Beat, RunStatus
from air_executor.temporal.execution import AGAIN, LOST, OVER
from air_executor.temporal.link import Link, Order, Signal
from air_executor.temporal.settings import Settings

log = logging.getLogger(__name__)

#: How often to look, in seconds.
WATCH_S = 10.0

#: A heartbeat that has not changed for this many seconds counts as missing.
_STALE_S = 25.0

#: What to do about a queue that nobody serves.
_REMEDY = "air-executor worker --queues {}"

#: This many workflows are looked at at once.
_AT_ONCE = 20


#: The end of a run that its workflow has not outlived. One that completes has no such runs.
_OVER = {"state": "killed", "reason": "its workflow is over: it was terminated or cancelled in Temporal"}

#: Stands for an execution that does not exist.
_NONE = str(uuid.UUID(int=0))


@dataclass
class LiveRun:
    """A run that an executor follows."""

    identity: Identity
    workflow_id: str
    order: Order | None = None
    """To send it again, if Temporal loses it; ``None``: another executor has ordered it."""
    execution: str | None = None
    """Id of the workflow's execution that has it, once it is known."""
    is_followed: bool = False
    """Whether that workflow knows that its end is to be told here."""
    takeovers: int = 0
    """Of how many takeovers of that workflow's runs it is known that they do not concern this one."""
    is_stopping: bool = False
    host: str | None = None
    """The machine that has it, once it is known."""
    beat: tuple[float, float] | None = None
    """The time of its last heartbeat as Temporal has it, and when that was first seen here, on the monotonic clock."""

    @property
    def is_unsent(self) -> bool:
        """Whether Temporal does not have its order yet."""
        return self.order is not None and self.execution is None

    def move(self, workflow_id: str, execution: str | None) -> None:
        """Note that another workflow has it, or will."""
        self.workflow_id, self.execution = workflow_id, execution
        self.is_followed, self.takeovers = self.order is not None and execution is not None, 0

    def last_beat_s(self) -> float | None:
        """Return when it last showed that it lives, in seconds since the epoch; ``None``: it does not."""
        if self.beat is None or time.monotonic() - self.beat[1] > _STALE_S:
            return None
        return self.beat[0]


def follow(link: Link, workflow_id: str, runs: dict[str, LiveRun]) -> None:
    """Ask a workflow to tell the ends of runs here that another executor has ordered."""

    def note() -> None:
        for run in runs.values():
            run.is_followed = run.is_followed or run.workflow_id == workflow_id  # it may have moved on

    link.send(Signal(workflow_id, "follow", [link.queue, sorted(runs)], note))


class Watch:
    """Looks after live runs. A workflow that was terminated tells nobody, and Temporal's data may be lost."""

    def __init__(
        self,
        link: Link,
        settings: Settings,
        live: Callable[[], dict[str, LiveRun]],
        end: Callable[[list[dict[str, Any]]], None],
        is_on: Callable[[str, str], None],
        waits: Callable[[str, str | None], None],
        has_successor: Callable[[Identity, str], None],
        judge: Callable[[Identity, float], str],
        give_back: Callable[[Identity, str], bool],
    ) -> None:
        """Look at nothing yet. The last two are those of :class:`.backend.TemporalBackend`.

        :param live: returns the live runs by their ids.
        :param end: takes ends, as workflows tell them.
        :param is_on: is told which machine has a run, as the run's id and the machine's name.
        :param waits: is told why an order waits, as the run's id and a sentence, once for each reason; ``None`` when it
            does not any more.
        :param has_successor: is told the id of the workflow that takes later orders of a run's DAG run.
        """
        self._link, self._settings, self._live, self._end, self._is_on = link, settings, live, end, is_on
        self._waits, self._has_successor = waits, has_successor
        self._judge, self._give_back = judge, give_back
        #: Queues that nobody serves, as was logged.
        self._unserved: set[str] = set()
        #: Why runs wait, as was told.
        self._told: dict[str, str | None] = {}
        #: Runs whose workflows Temporal has lost, and when that was found, on the monotonic clock.
        self._forgotten: dict[str, float] = {}
        self._guard = Guard(log)

    async def look(self) -> None:
        """Look once."""
        live = self._live()
        self.tell_if_away()
        executions: dict[tuple[str, str], list[str]] = {}
        for run_id, run in live.items():
            if run.execution is None and run.order is None:  # it is taken over
                with self._guard(f"Looking for the workflow of run {run_id}"):
                    run.execution = await self._link.execution(run.workflow_id) or _NONE
            if run.execution is not None:
                executions.setdefault((run.workflow_id, run.execution), []).append(run_id)
        room = asyncio.Semaphore(_AT_ONCE)

        async def look_at(workflow_id: str, execution: str, run_ids: list[str]) -> None:
            async with room:
                with self._guard(f"Looking whether workflow {workflow_id} is over"):
                    await self._look_at(workflow_id, execution, {run_id: live[run_id] for run_id in run_ids})

        await asyncio.gather(*(look_at(*key, run_ids) for key, run_ids in executions.items()))
        with self._guard("Looking for queues that nobody serves"):
            await self._look_for_workers(self._live())
        self._forgotten = {run_id: since_s for run_id, since_s in self._forgotten.items() if run_id in live}

    def tell_if_away(self) -> None:
        """Tell that orders wait because Temporal can't be reached; the next look tells when they don't any more."""
        if self._link.is_away:
            for run_id, run in self._live().items():
                if run.is_unsent:
                    self._tell(run_id, "Temporal can't be reached; the order waits until it can")

    def forget(self, run_id: str) -> None:
        """Note that Temporal does not know a run that was taken over; the next look does what is right for it."""
        if (run := self._live().get(run_id)) is not None:
            run.execution = _NONE

    async def _look_at(self, workflow_id: str, execution: str, runs: dict[str, LiveRun]) -> None:
        seen = None if execution == _NONE else await self._link.look(workflow_id, execution)
        if seen is None:
            await self._recover(workflow_id, runs)
            return
        if elsewhere := {run_id: run for run_id, run in runs.items() if run_id not in seen.runs}:
            await self._look_further(workflow_id, execution, elsewhere, is_over=not seen.is_open)
        for run_id in seen.beats.keys() & runs.keys():
            self._note_beat(run_id, runs[run_id], seen.beats[run_id])
        asked = [run_id for run_id, run in runs.items() if run.is_followed and run.takeovers != seen.takeovers]
        if seen.is_open and asked:
            for each in await self._link.status(workflow_id, execution, sorted(asked)):
                if not self._leaves(each, runs[each.id]):
                    runs[each.id].takeovers = seen.takeovers

    def _leaves(self, status: RunStatus, run: LiveRun) -> bool:
        """Leave a run to another executor that has taken it over, if one has."""
        is_taken = run.is_followed and status.follower != self._link.queue
        if is_taken:
            log.info("Run %s was taken over by another scheduler", status.id)
            self._end([{"id": status.id, "end": {"is_taken": True}}])
        return is_taken

    async def _look_further(self, workflow_id: str, execution: str, runs: dict[str, LiveRun], *, is_over: bool) -> None:
        """Find the workflow of runs that no host has through this one: it may have passed them on."""
        try:
            known = await self._link.known(workflow_id, execution)
        except WorkflowQueryFailedError as error:
            log.warning("Workflow %s does not say which runs it has: %s", workflow_id, error)
            known = None
        mine = set() if known is None else known.runs & runs.keys()
        if is_over and mine:
            found = await self._link.status(workflow_id, execution, sorted(mine))
            self._end([{"id": r.id, "end": r.end or _OVER} for r in found if not self._leaves(r, runs[r.id])])
        left = {run_id: run for run_id, run in runs.items() if run_id not in mine}
        if not left:
            return
        who = next(iter(left.values())).identity
        async for next_id, further in dag_runs.successors(self._link.known, who, workflow_id, known):
            self._has_successor(who, next_id)
            if there := further.runs & left.keys():
                moved = await self._link.execution(next_id) or _NONE
                for run_id in there:
                    left.pop(run_id).move(next_id, moved)
                # The note on who has taken them over may still be on its way, or lost.
                if adopted := {run_id: runs[run_id] for run_id in there if runs[run_id].order is None}:
                    follow(self._link, next_id, adopted)
            if not left:
                break
        if is_over and left:
            await self._recover(workflow_id, left)

    def _note_beat(self, run_id: str, run: LiveRun, beat: Beat) -> None:
        if run.beat is None or run.beat[0] != beat.time_s:
            run.beat = beat.time_s, time.monotonic()
        if beat.host is not None and beat.host != run.host:
            with self._guard(f"Noting the host of run {run_id}"):
                self._is_on(run_id, beat.host)
                run.host = beat.host

    async def _recover(self, workflow_id: str, runs: dict[str, LiveRun]) -> None:
        """Do what is right for runs whose workflow Temporal does not know any more: its data were lost, or deleted."""
        if new := runs.keys() - self._forgotten.keys():
            log.warning("Temporal does not know workflow %s with %d live runs of tasks", workflow_id, len(new))
            self._forgotten |= dict.fromkeys(new, time.monotonic())
        for run_id, run in runs.items():
            verdict = await asyncio.to_thread(self._judge, run.identity, time.monotonic() - self._forgotten[run_id])
            if verdict == AGAIN and run.order is not None:
                log.warning("Ordering again run %s, which had not begun", run_id)
                run.move(run.order.workflow_id, None)
                self._forgotten.pop(run_id, None)
                self._link.send(run.order)
            elif verdict == AGAIN and await asyncio.to_thread(self._give_back, run.identity, run_id):
                log.warning("Run %s had not begun; its task is queued again", run_id)
                self._end_all([run_id], "lost", "Temporal has no order of it", unwanted=True)
            elif verdict in (AGAIN, LOST):
                why = "had not begun" if verdict == AGAIN else "its host shows no life"
                self._end_all([run_id], "lost", f"Temporal has lost its workflow, and it {why}")
            elif verdict == OVER:
                self._end_all([run_id], "lost", "Temporal has lost its workflow; Airflow knows its end", unwanted=True)

    def _end_all(self, run_ids: Iterable[str], state: str, reason: str, *, unwanted: bool = False) -> None:
        end = {"state": state, "reason": reason, "unwanted": unwanted}
        self._end([{"id": run_id, "end": end} for run_id in run_ids])

    def _tell(self, run_id: str, why: str | None) -> None:
        if self._told.get(run_id) != why:
            with self._guard(f"Telling why run {run_id} waits"):
                self._waits(run_id, why)
                self._told[run_id] = why

    async def _look_for_workers(self, live: dict[str, LiveRun]) -> None:
        """Tell once that orders wait in a queue that no worker serves, and when one does again."""
        queues = {self._settings.queue(run.identity.queue) for run in live.values()}
        served = await self._link.served(queues) if queues else set()
        for queue in queues:
            if queue in served:
                if queue in self._unserved:
                    log.info("A worker serves queue %s now", queue)
                self._unserved.discard(queue)
            elif queue not in self._unserved:
                self._unserved.add(queue)
                log.warning("No worker serves queue %s; its tasks wait: %s", queue, _REMEDY.format(self._name(queue)))
        self._told = {run_id: why for run_id, why in self._told.items() if run_id in live}
        for run_id, run in live.items():
            if self._link.is_away and run.is_unsent:
                continue
            queue = self._settings.queue(run.identity.queue)
            is_waiting = queue not in served and run.beat is None
            name = self._name(queue)
            self._tell(run_id, f"no worker serves queue {name}: {_REMEDY.format(name)}" if is_waiting else None)

    def _name(self, queue: str) -> str:
        """Return Airflow's name of a task queue."""
        return queue.removeprefix(f"{self._settings.prefix}.")
