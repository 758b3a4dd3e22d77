"""Waiting for a job in the triggerer: :class:`AirJobTrigger`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from air_executor.errors import AirExecutorError
from air_executor.jobs.progress import Progress
from air_executor.jobs.store import JobStore
from air_executor.jobs.watch import Watch

#: How often it looks though no file has changed, in seconds.
_POLL_S = 5.0


class AirJobTrigger(BaseTrigger):
    """Fires when a job has ended. It watches the job's files; it holds neither a slot nor a thread.

    :param job_name: the job.
    :param state_dir: where jobs are kept.
    """

    def __init__(self, *, job_name: str, state_dir: str) -> None:
        super().__init__()
        self.job_name = job_name
        self.state_dir = state_dir

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what makes this trigger again, elsewhere."""
        return "air_executor.triggers.AirJobTrigger", {"job_name": self.job_name, "state_dir": self.state_dir}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the end, and log how far the job has come."""
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

    def _event(self, state: str, error: str | None = None) -> TriggerEvent:
        return TriggerEvent(
            {
                "job_name": self.job_name,
                "state_dir": self.state_dir,
                "state": state,
                **({"error": error} if error else {}),
            }
        )
