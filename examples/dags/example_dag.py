"""The smallest example: say hello, then goodbye."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None, catchup=False, tags=["air-executor", "example"])
def example_dag():
    """Two tasks, one after the other; the second gets what the first returned."""

    @task
    def hello() -> str:
        import os

        print(f"Hello from process {os.getpid()}, which lives for this task alone.")
        return "world"

    @task
    def goodbye(whom: str) -> None:
        print(f"Goodbye, {whom}!")

    goodbye(hello())


example_dag()
