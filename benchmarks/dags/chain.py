"""Tasks that do nothing, one after the other."""

from __future__ import annotations

import os

from airflow.sdk import chain, dag, task


@dag(schedule=None, dag_id="chain")
def links() -> None:
    """Make as many as the benchmark says."""

    @task
    def link() -> None:
        """Do nothing."""

    chain(*(link.override(task_id=f"link_{number}")() for number in range(int(os.environ["BENCHMARK_CHAIN"]))))


links()
