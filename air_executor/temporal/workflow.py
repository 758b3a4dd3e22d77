"""The workflow of a DAG run: it holds the run's orders, hands them to hosts, and tells executors of the ends.

It knows nothing of Airflow, and decides nothing: Airflow's scheduler says what runs. It is replayed by whatever worker
has it next, so what it does must follow from its history alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from air_executor.temporal.execution import Execution, Run, stopped
from air_executor.temporal.sizes import first_of
from air_executor.temporal.succession import Succession

NAME = "AirflowDagRun"

#: In a workflow's memo: how often another executor has taken runs over. Then former followers ask which.
TAKEOVERS = "takeovers"

#: A workflow that nothing happened in for so long ends. The next order of its DAG run starts another.
_IDLE = timedelta(hours=24)

#: A workflow whose DAG run has ended, and all its runs, waits so long for an executor that takes the last ends.
_UNTOLD = timedelta(minutes=1)

#: The runs of a workflow that is cancelled have so long to end.
_LAST_WAIT = timedelta(minutes=10)

#: This many runs of a queue are offered to hosts at a time; Temporal advises against more than 500 activities. Queues
#: that nobody serves keep no others waiting.
MOST_AT_ONCE = 500

#: A workflow whose history has more events than this passes new orders on to a successor. Temporal ends one at 51,200;
#: long before that, its replay takes too long. Workflows that say no number are of a former version.
MOST_EVENTS = 6_000
_FORMER_MOST_EVENTS = 15_000
_MOST_BYTES = 15 << 20

#: A run that is not over adds about this many events to the history.
_EVENTS_PER_RUN = 6

#: What a workflow does follows from its history, so a new rule holds for those that begin with it; executors say which
#: they know. 2: room for each queue, live runs count for the length, and one that is cancelled takes nothing new.
#: 3: what is told, or ordered, at once is limited in bytes; no end is given up while anything lives, or after a day;
#: the memo counts takeovers; looking for missing runs slows down as the history grows.
RULES = 3

#: At most this many ends are told at once, and from rules 3 on about this many bytes of them: Temporal takes 2 MB.
_BATCH, _BATCH_BYTES = 100, 500_000


@workflow.defn(name=NAME)
class DagRunWorkflow:
    """The runs of one DAG run, or one other workload (``is_single``)."""

    @workflow.init
    def __init__(self, header: dict[str, Any]) -> None:
        if (rules := header.get("rules", 1)) > RULES:
            # The workflow task fails, and Temporal offers it to another worker.
            raise RuntimeError(
                f"this AirExecutor knows rules up to {RULES}, and the workflow follows {rules}: upgrade it"
            )
        self._header = header
        self._runs: dict[str, Run] = {}
        #: Those of them that have no end yet, and those whose end is to be told. There may be thousands of others; what
        #: happens often must not look through them all: a replay does it all at once.
        self._live: dict[str, Run] = {}
        self._untold: dict[str, Run] = {}
        self._tellers: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._rules: int = rules
        self._rooms: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MOST_AT_ONCE))
        self._closed: str | None = None
        self._is_cancelled = False
        #: Nobody asks for the ends that are still to be told.
        self._is_impatient = False
        self._changes = 0
        self._takeovers = 0
        self._is_counting = False
        self._execution = Execution(self._rules)
        self._succession = Succession(NAME, header, self._begin)

    @workflow.run
    async def run(self, _: dict[str, Any]) -> str:
        """Live until the DAG run ends."""
        try:
            while not self._may_end():
                before = self._changes
                try:
                    await workflow.wait_condition(self._may_end, timeout=_IDLE)
                except asyncio.TimeoutError:
                    if before == self._changes and self._is_idle():
                        return "nothing happened for a day"
        except asyncio.CancelledError:
            self._is_cancelled = True
            for run in list(self._live.values()):
                self._stop(run, {"reason": "its workflow was cancelled in Temporal", "unwanted": False})
            with contextlib.suppress(asyncio.TimeoutError):
                await workflow.wait_condition(self._has_told_all, timeout=_LAST_WAIT)
            raise
        if self._closed == "failed":
            raise ApplicationError("the DAG run has failed", type="DagRunFailed", non_retryable=True)
        return self._closed or "done"

    def _is_idle(self) -> bool:
        if self._rules > 2 and self._untold:
            return False  # their executor may be away for longer
        return not self._live and not self._succession.has_begun

    def _has_told_all(self) -> bool:
        return not self._live and not self._untold and not self._succession.is_sending

    def _may_end(self) -> bool:
        if self._live or self._succession.is_sending:
            return False
        if self._header.get("is_single"):
            return bool(self._runs) and not self._untold
        return self._closed is not None and (self._is_impatient or not self._untold)

    async def _lose_patience(self) -> None:
        before = self._changes
        if self._rules > 2:
            await workflow.wait_condition(lambda: not self._live)
        await workflow.sleep(_UNTOLD)
        self._is_impatient = self._closed is not None and before == self._changes

    # What executors ask for

    @workflow.signal
    def order(self, follower: str, cards: list[dict[str, Any]]) -> None:
        """Begin runs; one that was ordered before goes on."""
        self._closed, self._is_impatient = None, False
        self._changes += 1
        new = [card for card in cards if card["id"] not in self._runs]
        if new and (self._succession.has_begun or self._takes_nothing()):
            self._succession.pass_on("order", [follower, new])
        else:
            for card in new:
                self._begin(self._execute(self._add(card, follower)))
        self._show()

    @workflow.signal
    def follow(self, follower: str, run_ids: list[str]) -> None:
        """Tell another executor of the ends of runs from now on."""
        later = [run_id for run_id in run_ids if run_id not in self._runs]
        if later and self._succession.has_begun:
            self._succession.pass_on("follow", [follower, later])
        else:
            for run_id in later:
                end = {"state": "lost", "reason": "Temporal has no order of it", "is_unknown": True}
                self._end(self._add({"id": run_id, "summary": run_id}, follower), end)
        for run_id in run_ids:
            if (run := self._runs.get(run_id)) is None:
                continue
            if run.follower != follower:
                former, run.follower = run.follower, follower
                self._count_takeover()
                if run.end is not None:
                    self._untold[run_id] = run
                if (teller := self._tellers.get(former)) is not None and not self._to_tell(former):
                    teller.cancel()  # nobody serves that queue any more
            self._tell(follower)

    def _count_takeover(self) -> None:
        """Let former followers see in the memo that some of their runs are another's now; once for many signals."""
        if self._rules > 2 and not self._is_counting:
            self._is_counting = True
            self._begin(self._count())

    async def _count(self) -> None:
        self._is_counting = False
        self._takeovers += 1
        workflow.upsert_memo({TAKEOVERS: self._takeovers})

    @workflow.signal
    def stop(self, run_id: str, reason: str, unwanted: bool) -> None:
        """Stop a run."""
        run = self._runs.get(run_id)
        if run is None and self._succession.has_begun:
            self._succession.pass_on("stop", [run_id, reason, unwanted])
        elif run is not None and run.end is None:
            self._stop(run, {"reason": reason, "unwanted": unwanted})

    @workflow.signal
    def close(self, state: str) -> None:
        """End with the DAG run's state once nothing runs."""
        self._closed = state
        if not self._may_end():
            self._begin(self._lose_patience())
        if self._succession.has_begun:
            self._succession.pass_on("close", [state])

    @workflow.query
    def known(self) -> dict[str, Any]:
        """Return the ids of all ``runs``, and the id of the workflow that has later ones, if any (``next``)."""
        return {"runs": list(self._runs), "next": self._succession.next_id}

    @workflow.query
    def status(self, run_ids: list[str]) -> list[dict[str, Any]]:
        """Return ``id``, ``follower`` and ``end``, if there is one, of these runs: of the first ones, if it is much."""
        runs = [run for run_id in run_ids if (run := self._runs.get(run_id)) is not None]
        return first_of([{"id": r.card["id"], "follower": r.follower, "end": r.end} for r in runs], _BATCH_BYTES)

    @workflow.query
    def stop_reason(self, run_id: str) -> dict[str, Any]:
        """Return why a run has to stop."""
        run = self._runs.get(run_id)
        return (run.stop_reason if run else None) or {"reason": "it was cancelled in Temporal", "unwanted": False}

    def _takes_nothing(self) -> bool:
        """Tell whether new orders are for a successor."""
        most: int = self._header.get("most_events", _FORMER_MOST_EVENTS)
        info = workflow.info()
        events = info.get_current_history_length()
        if self._rules > 1:
            events += _EVENTS_PER_RUN * len(self._live)
            if self._is_cancelled:
                return True
        return events > most or info.get_current_history_size() > _MOST_BYTES

    # Runs

    def _add(self, card: dict[str, Any], follower: str) -> Run:
        run = self._runs[card["id"]] = self._live[card["id"]] = Run(card, follower, len(self._runs))
        return run

    def _end(self, run: Run, end: dict[str, Any]) -> None:
        run.end = end
        self._untold[run.card["id"]] = self._live.pop(run.card["id"])

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self, run: Run, reason: dict[str, Any]) -> None:
        run.stop_reason = run.stop_reason or reason
        if run.handle is not None:
            run.handle.cancel()

    async def _execute(self, run: Run) -> None:
        async with self._rooms[run.card["queue"] if self._rules > 1 else ""]:
            end = stopped(run, "before it began") if run.stop_reason is not None else await self._execution.end_of(run)
        self._end(run, end)
        self._tell(run.follower)
        self._show()

    # Ends

    def _to_tell(self, follower: str) -> list[Run]:
        return sorted((r for r in self._untold.values() if r.follower == follower), key=lambda run: run.number)

    def _tell(self, follower: str) -> None:
        if follower not in self._tellers and self._to_tell(follower):
            self._tellers[follower] = asyncio.create_task(self._tell_all(follower))

    async def _tell_all(self, follower: str) -> None:
        try:
            while runs := self._to_tell(follower)[:_BATCH]:
                ends = [{"id": run.card["id"], "end": run.end, "next": self._succession.next_id} for run in runs]
                if self._rules > 2:
                    ends = first_of(ends, _BATCH_BYTES)
                await workflow.execute_activity(
                    "tell",
                    ends,
                    task_queue=follower,
                    start_to_close_timeout=timedelta(seconds=30),
                    summary=f"{len(ends)} ends",
                )
                for run in runs[: len(ends)]:
                    if run.follower == follower:
                        self._untold.pop(run.card["id"], None)
        finally:
            # Here, not in a callback of the task: between the last look and that, another end may come.
            del self._tellers[follower]

    def _show(self) -> None:
        workflow.set_current_details(f"{len(self._live)} live runs, {len(self._runs)} in all")
