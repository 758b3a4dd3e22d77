"""How a workflow has a run executed: on a host, again on that host, or on another. Part of a workflow's code."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    TimeoutError,
    TimeoutType,
)
from temporalio.workflow import ActivityCancellationType

from air_executor.temporal.sizes import Portions, size, slowness

#: A worker that shows no life of a run for so long is asked for it through its host's own queue.
HEARTBEAT_TIMEOUT = timedelta(seconds=20)

#: When nobody answers there for so long, an executor looks in Airflow's database what became of the run.
_ATTACH_TIMEOUT = timedelta(seconds=10)

#: While the run still shows life there, its host is asked again, for longer each time, up to this.
_LAST_ATTACH_TIMEOUT = timedelta(minutes=5)

#: This many attempts are made before that: a lost host should be found soon.
_ATTEMPTS_IN_HASTE = 6

#: An executor may take so long to begin to look. Another one follows the run by then.
_JUDGE_TIMEOUT = timedelta(minutes=1)

#: Airflow limits how long a task runs, Temporal does not; it wants a number.
_NO_LIMIT = timedelta(days=3650)

#: The type of an activity's failure when its worker is shut down and leaves the run to its successor.
DETACHED = "Detached"

#: The type of an activity's failure when its host can't take orders, but others may. After this many, the run fails.
UNFIT = "Unfit"
_MOST_UNFIT = 10

#: The state that a worker returns for a run that its host does not have, or not any more.
UNKNOWN = "unknown"

#: What an executor says of a run: it shows life; it does not; it has not begun, so it can be ordered again; nobody
#: waits for it any more.
ALIVE, LOST, AGAIN, OVER = "alive", "lost", "again", "over"


@dataclass
class Run:
    """A run of a workflow."""

    card: dict[str, Any]
    follower: str
    """The task queue of the executor that wants to know the end."""
    number: int
    handle: workflow.ActivityHandle[Any] | None = None
    stop_reason: dict[str, Any] | None = None
    end: dict[str, Any] | None = None


def _waits(run: Run) -> timedelta | None:
    """Return how long an order may still wait for a host."""
    until_s = run.card.get("until")
    return None if until_s is None else timedelta(seconds=max(1.0, until_s - workflow.now().timestamp()))


def _pauses() -> Iterator[timedelta]:
    """Yield how long to wait before each further look at a run whose host is not known."""
    yield from itertools.repeat(_ATTACH_TIMEOUT, _ATTEMPTS_IN_HASTE)
    pause = _ATTACH_TIMEOUT
    while True:
        pause = min(2 * pause, _LAST_ATTACH_TIMEOUT)
        yield pause


def _card(run: Run, host: str | None) -> dict[str, Any]:
    """Return what a host is given: the order, or what one that has the run already needs to go on with it."""
    if host is None:
        return run.card
    return {**{name: value for name, value in run.card.items() if name != "sealed"}, "stop": run.stop_reason}


def stopped(run: Run, when: str) -> dict[str, Any]:
    """Return the end of a run that was stopped."""
    why = run.stop_reason or {}
    reason = f"stopped {when}: {why.get('reason', 'cancelled')}"
    return {"state": "killed", "reason": reason, "unwanted": why.get("unwanted", False)}


class Execution:
    """Has the runs of a workflow executed."""

    def __init__(self, rules: int) -> None:
        """Execute nothing yet.

        :param rules: the workflow's.
        """
        self._rules = rules
        self._portions = Portions()
        #: Runs for which no host answers.
        self._missing: set[str] = set()

    async def end_of(self, run: Run) -> dict[str, Any]:
        """Have a run executed, and return its end: its record, or the state and reason if there is none."""
        try:
            return await self._end_of(run)
        finally:
            self._missing.discard(run.card["id"])

    async def _end_of(self, run: Run) -> dict[str, Any]:
        host: str | None = None  # its task queue
        name = ""
        patience = _ATTACH_TIMEOUT
        silent_since: datetime | None = None
        unfit = 0
        for attempt in itertools.count(1):
            await self._has_room(_card(run, host))
            run.handle = self._start(run, host, patience, attempt)
            why = f"no worker answers on {name or host}" if host is not None else "its worker died as it began"
            try:
                end: dict[str, Any] = await run.handle
                if end["state"] != UNKNOWN:
                    return end
                cause, why = None, end["reason"]
            except (ActivityError, asyncio.CancelledError) as error:
                cause = error.cause if isinstance(error, ActivityError) else error
            if isinstance(cause, TimeoutError) and cause.last_heartbeat_details:
                said = cause.last_heartbeat_details[0]
                host, name = str(said["queue"]), str(said.get("host") or "")
            if isinstance(cause, CancelledError | asyncio.CancelledError):
                if host is None:
                    return stopped(run, "before it began")
                # Its worker was away. The request to attach to it says that it is to stop.
            elif host is None and isinstance(cause, TimeoutError) and cause.type is TimeoutType.SCHEDULE_TO_START:
                return {"state": "failed", "reason": f"no worker of {run.card['queue']} had a slot for it in time"}
            elif isinstance(cause, ApplicationError) and cause.type == UNFIT and unfit < _MOST_UNFIT:
                unfit += 1
                await workflow.sleep(min(_ATTACH_TIMEOUT * unfit, timedelta(minutes=1)))
                host = None
            elif isinstance(cause, ApplicationError) and cause.type == DETACHED:
                host, patience, silent_since = str(cause.details[0]), _ATTACH_TIMEOUT, workflow.now()
                name = str(cause.details[1]) if len(cause.details) > 1 else ""  # not from a former version
                self._missing.discard(run.card["id"])
            elif host is not None and isinstance(cause, TimeoutError) and cause.type is TimeoutType.HEARTBEAT:
                patience = _ATTACH_TIMEOUT
                # It was not only offered to a host that is gone.
                if cause.last_heartbeat_details or silent_since is None:
                    self._missing.discard(run.card["id"])
                    silent_since = workflow.now() - HEARTBEAT_TIMEOUT
            elif cause is None or isinstance(cause, TimeoutError):
                silent_since = silent_since or workflow.now() - HEARTBEAT_TIMEOUT
                self._missing.add(run.card["id"])
                verdict = await self._judge(run, silent_since)
                pauses = _pauses()
                while verdict == ALIVE and (host is None or cause is None):
                    await workflow.sleep(self._slowed(next(pauses)))  # until it ends, or its last heartbeat is old
                    verdict = await self._judge(run, silent_since)
                if verdict == LOST and run.stop_reason is not None:
                    return stopped(run, "and its host is lost")
                if verdict == LOST:
                    return {"state": "lost", "reason": f"its host was lost: {why}"}
                if verdict == OVER:
                    return {"state": "lost", "reason": "Airflow does not wait for it", "unwanted": True}
                if attempt >= _ATTEMPTS_IN_HASTE:
                    patience = min(2 * patience, _LAST_ATTACH_TIMEOUT)
                host = None if verdict == AGAIN else host
            else:
                return {"state": "failed", "reason": getattr(cause, "message", None) or str(cause)}
        raise AssertionError

    def _slowed(self, pause: timedelta) -> timedelta:
        """Return a pause between two looks for a run: a longer one if the history is long."""
        if self._rules < 3:
            return pause
        info = workflow.info()
        used = info.get_current_history_length(), info.get_current_history_size()
        return pause * slowness(*used, len(self._missing))

    async def _has_room(self, value: Any) -> None:
        """Return when the present workflow task has room for an activity that is given this."""
        if self._rules > 2:
            await self._portions.wait(size(value))

    def _start(
        self, run: Run, host: str | None, patience: timedelta, attempt: int
    ) -> workflow.ActivityHandle[dict[str, Any]]:
        handle: workflow.ActivityHandle[dict[str, Any]] = workflow.start_activity(
            "run" if host is None else "attach",
            _card(run, host),
            task_queue=run.card["queue"] if host is None else host,
            activity_id=run.card["id"] if attempt == 1 else f"{run.card['id']}-{attempt}",
            summary=run.card["summary"],
            schedule_to_start_timeout=_waits(run) if host is None else self._slowed(patience),
            start_to_close_timeout=_NO_LIMIT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            # Airflow decides whether there is another try.
            retry_policy=RetryPolicy(maximum_attempts=1),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            priority=Priority(priority_key=run.card.get("priority"), fairness_key=run.card.get("fairness")),
        )
        if host is None and run.stop_reason is not None:
            handle.cancel()
        return handle

    async def _judge(self, run: Run, silent_since: datetime) -> str:
        """Return what Airflow's database says of a run whose host has not answered since then."""
        pauses = _pauses()
        while True:
            asked = run.follower
            await self._has_room(run.card["identity"])
            try:
                verdict: str = await workflow.execute_activity(
                    "judge",
                    args=[run.card["identity"], (workflow.now() - silent_since).total_seconds()],
                    task_queue=asked,
                    schedule_to_start_timeout=_JUDGE_TIMEOUT,
                    start_to_close_timeout=_JUDGE_TIMEOUT,
                    retry_policy=RetryPolicy(maximum_attempts=1),
                    summary=run.card["summary"],
                )
                return verdict
            except ActivityError:
                # Nobody looks now: the database, or every executor, is away.
                if self._rules < 3:
                    await workflow.sleep(_ATTACH_TIMEOUT)
                else:
                    await self._wait_for_another(run, asked, next(pauses))

    async def _wait_for_another(self, run: Run, follower: str, pause: timedelta) -> None:
        """Wait until another executor follows a run, at most for this long."""
        with contextlib.suppress(asyncio.TimeoutError):
            await workflow.wait_condition(lambda: run.follower != follower, timeout=self._slowed(pause))
