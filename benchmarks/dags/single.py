"""One task that does nothing."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None)
def single() -> None:
    """Make one."""

    @task
    def noop() -> None:
        """Do nothing."""

    noop()


single()
