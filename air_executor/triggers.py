"""Waiting for a job in the triggerer: :class:`AirJobTrigger`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent

from air_executor.errors import AirExecutorError
from air_executor.jobs.claim import ask_to_cancel
from air_executor.jobs.owner import Owner
from air_executor.jobs.progress import Progress
from air_executor.jobs.store import JobStore
from air_executor.machine.watch import Watch

#: How often to look even if no file has changed, in seconds.
_POLL_S = 5.0

#: How long to wait for the state of a task instance, in seconds.
_ANSWER_S = 20.0


class AirJobTrigger(BaseTrigger):
    """Fires when a job has ended. It watches the job's files, and needs neither a slot nor a thread.

    :param job_name: the job.
    :param state_dir: where jobs are kept.
    :param owner: the task instance that owns the job, see :class:`air_executor.jobs.owner.Owner`. When it is not
        deferred any more, and the job has not ended, the job is cancelled. ``None``: the job is never cancelled.
    """

    def __init__(self, *, job_name: str, state_dir: str, owner: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.job_name = job_name
        self.state_dir = state_dir
        self.owner = owner

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return this trigger's class and arguments, to make it again elsewhere."""
        values: dict[str, Any] = {"job_name": self.job_name, "state_dir": self.state_dir}
        return "air_executor.triggers.AirJobTrigger", {**values, **({"owner": self.owner} if self.owner else {})}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the job's end, and log its progress."""
        try:
            async for event in self._wait():
                yield event
        except asyncio.CancelledError:
            # Airflow cancels it when the task instance is marked, cleared or deleted, and when the triggerer stops, and
            # again each second, until it is over.
            await _undisturbed(self._cancel_if_unwanted())
            raise

    async def _wait(self) -> AsyncIterator[TriggerEvent]:
        progress = Progress(JobStore(self.state_dir), self.job_name)
        changed = asyncio.Event()
        watch = Watch()
        loop = asyncio.get_running_loop()

        def on_change() -> None:
            watch.drain()
            changed.set()

        fd = watch.fileno()
        if fd is not None:
            loop.add_reader(fd, on_change)
        try:
            watch.add(progress.folder)
            while True:
                changed.clear()
                try:
                    for line in await asyncio.to_thread(lambda: list(progress.news())):
                        self.log.info("%s", line)
                except AirExecutorError as error:
                    yield self._event("gone", str(error))
                    return
                if progress.is_over:
                    yield self._event("ended")
                    return
                try:
                    await asyncio.wait_for(changed.wait(), _POLL_S)
                except asyncio.TimeoutError:
                    continue
        finally:
            if fd is not None:
                loop.remove_reader(fd)
            watch.close()

    async def _cancel_if_unwanted(self) -> None:
        """Cancel the job, unless its task instance is still deferred."""
        if (owner := Owner.from_document(self.owner)) is None:
            return
        asked = asyncio.ensure_future(_state_of(owner))
        # It is never cancelled: Airflow 3.1 takes the answer to a cancelled request for that to the next one, and its
        # triggerer ends.
        await asyncio.wait([asked], timeout=_ANSWER_S)
        try:
            state = asked.result()
        except Exception as error:
            why = error if asked.done() else TimeoutError(f"no answer for {_ANSWER_S:g} s")
            self.log.warning("The state of %s can't be looked up; job %s keeps running: %r", owner, self.job_name, why)
            return
        if state == "deferred":
            return
        self.log.info("Job %s is cancelled: %s is %s", self.job_name, owner, state or "cleared or gone")
        try:
            await asyncio.to_thread(ask_to_cancel, JobStore(self.state_dir), self.job_name, owner)
        except AirExecutorError as error:
            self.log.error("Job %s can't be cancelled: %s", self.job_name, error)

    def _event(self, state: str, error: str | None = None) -> TriggerEvent:
        return TriggerEvent(
            {
                "job_name": self.job_name,
                "state_dir": self.state_dir,
                "state": state,
                **({"owner": self.owner} if self.owner else {}),
                **({"error": error} if error else {}),
            }
        )


async def _undisturbed(work: Coroutine[Any, Any, None]) -> None:
    """Do work to its end, however often the task that waits for it is cancelled."""
    doing = asyncio.ensure_future(work)
    while not doing.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(doing)


async def _state_of(owner: Owner) -> str | None:
    """Return the state of a task instance; ``None`` when it has none, or is gone."""
    # The call blocks, and Airflow requires triggers to make such calls through asgiref.
    from asgiref.sync import sync_to_async

    found = await sync_to_async(RuntimeTaskInstance.get_task_states)(
        dag_id=owner.dag_id, task_ids=[owner.task_id], run_ids=[owner.run_id], map_index=owner.map_index
    )
    return next((None if state is None else str(state) for state in found.get(owner.run_id, {}).values()), None)
