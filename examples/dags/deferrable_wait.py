"""A task that waits without a process: it defers, its runner ends, and a new runner resumes it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, Context, dag


class WaitWithoutAProcess(BaseOperator):
    """Wait for a time in the triggerer."""

    def __init__(self, *, wait: timedelta, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.wait = wait

    def execute(self, context: Context) -> None:
        """Give the slot back until the time is over."""
        self.log.info("Deferring for %s; no process waits meanwhile.", self.wait)
        self.defer(trigger=TimeDeltaTrigger(self.wait), method_name="resume")

    def resume(self, context: Context, event: Any = None) -> str:
        """Go on in a new runner."""
        self.log.info("Resumed by %s", event)
        return "resumed"


@dag(schedule=None, catchup=False, tags=["air-executor", "example"])
def deferrable_wait():
    """One deferrable task: two runs of one task instance."""
    WaitWithoutAProcess(task_id="wait", wait=timedelta(seconds=5))


deferrable_wait()
