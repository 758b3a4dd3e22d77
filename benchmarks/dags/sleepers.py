"""Mapped tasks that sleep until they are released by a file, so that all sleep at once however slow the start."""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow.sdk import dag, task

#: So rarely that it costs nothing.
LOOK_S = 2.0


@dag(schedule=None)
def sleepers() -> None:
    """Make as many as the benchmark says."""

    @task
    def sleep(number: int) -> None:  # noqa: ARG001
        """Sleep until released."""
        release = Path(os.environ["BENCHMARK_RELEASE"])
        while not release.exists():
            time.sleep(LOOK_S)

    sleep.expand(number=list(range(int(os.environ["BENCHMARK_SLEEPERS"]))))


sleepers()
