"""Mapped tasks that do nothing: all that is seen is what running them costs."""

from __future__ import annotations

import os

from airflow.sdk import dag, task


@dag(schedule=None)
def noops() -> None:
    """Make as many as the benchmark says."""

    @task
    def noop(number: int) -> None:
        """Do nothing."""

    noop.expand(number=list(range(int(os.environ["BENCHMARK_NOOPS"]))))


noops()
