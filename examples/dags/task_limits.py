"""What ``executor_config={"air": {...}}`` can do for one task."""

from __future__ import annotations

import os

from airflow.sdk import dag, task


@dag(schedule=None, catchup=False, tags=["air-executor", "example"])
def task_limits():
    """A task in a small room, and one that is told something through its environment."""

    @task(
        executor_config={
            "air": {
                "memory": "512MiB",  # of the task and its children together; more ends the task with the reason
                "cpu_time": 60,  # seconds
                "timeout": 300,  # seconds of wall time
                "cpus": 1,
                "nice": 10,
            }
        }
    )
    def careful() -> int:
        block = bytearray(50 << 20)
        print(f"I hold {len(block) >> 20} MiB, run on {os.cpu_count()} CPUs at most one at a time, and am nice.")
        return os.nice(0)

    @task(executor_config={"air": {"environment": {"GREETING": "Hello"}}})
    def greeted() -> str:
        return os.environ["GREETING"]

    careful() >> greeted()


task_limits()
