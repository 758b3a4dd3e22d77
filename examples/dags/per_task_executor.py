"""Choosing the executor per task, where several are configured.

With ``[core] executor = LocalExecutor,air:air_executor.AirExecutor`` tasks go to LocalExecutor unless they say
``executor="air"``. The module path names it too, and works with any alias; so this example also runs where
AirExecutor is the only one.
"""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None, catchup=False, tags=["air-executor", "example"])
def per_task_executor():
    """One task for the default executor, one for AirExecutor by name."""

    @task
    def by_default() -> str:
        return "whichever executor comes first in [core] executor"

    @task(executor="air_executor.AirExecutor")
    def by_air() -> str:
        return "AirExecutor"

    by_default() >> by_air()


per_task_executor()
