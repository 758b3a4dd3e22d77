"""Follow-up work that is more than Airflow maps a task over, which is little here."""

from __future__ import annotations

import os

from airflow.sdk import dag, task

from air_executor.follow_up import follow_up
from air_executor.jobs import queue_tasks

# For this file's tasks alone: each of them reads it. A wave has to be smaller than what the API server allows.
os.environ["AIRFLOW__CORE__MAX_MAP_LENGTH"] = "3"


@task
def find_seven() -> None:
    queue_tasks([{"number": number} for number in range(7)])


@task
def take(number: int) -> int:
    if number == 1:
        queue_tasks([{"number": 10}])
    return number


@task
def tell(found: list[int]) -> list[int]:
    return found


@dag(schedule=None, catchup=False)
def follow_up_chunks():
    tell(follow_up(find_seven(), take, waves=4))


@dag(schedule=None, catchup=False)
def follow_up_chunks_continue():
    """Two waves of three, and the rest in another run."""
    tell(follow_up(find_seven(), take, waves=2, continue_in_new_run=True))


follow_up_chunks()
follow_up_chunks_continue()
