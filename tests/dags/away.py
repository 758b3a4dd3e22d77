"""Tasks that need what is taken away from them. Each dag run has a file of its own for what its tasks do."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import dag, get_current_context, task

OUT = Path(os.environ["AIR_TEST_OUT"])

#: A task that is retried is seen in its effects: "begin 2".
RETRIED = {"retries": 1, "retry_delay": timedelta(seconds=0)}


def note(what: str) -> None:
    context = get_current_context()
    with (OUT / f"away-{context['dag_run'].run_id}").open("a") as file:
        file.write(f"{what} {context['ti'].try_number}\n")


def work_until_released() -> str:
    note("begin")
    release = OUT / f"release-{get_current_context()['dag_run'].run_id}"
    while not release.exists():
        time.sleep(0.1)
    note("end")
    return "done"


@dag(schedule=None)
def away():
    """Begins, waits for its release, ends with a result."""
    task(task_id="work", **RETRIED)(work_until_released)()


@dag(schedule=None)
def away_once():
    """The same without a second try."""
    task(task_id="work")(work_until_released)()


@dag(schedule=None, max_active_tasks=32)
def away_mapped():
    @task(**RETRIED)
    def numbers():
        return list(range(10))

    @task(**RETRIED)
    def work(number):
        note(f"begin {number}")
        time.sleep(3)
        note(f"end {number}")
        return number

    @task(**RETRIED)
    def total(numbers):
        return sum(numbers)

    total(work.expand(number=numbers()))


away()
away_once()
away_mapped()
