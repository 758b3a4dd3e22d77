"""Work in flight while something breaks: tasks that say when they begin and end, and wait to be released between."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import BaseOperator, dag, get_current_context, task


def note(run_id: str, text: str) -> None:
    with (Path(os.environ["AIR_TEST_OUT"]) / f"effects-{run_id}").open("a") as file:
        file.write(text + "\n")


def work(index):
    context = get_current_context()
    run_id, attempt = context["dag_run"].run_id, context["ti"].try_number
    note(run_id, f"begin {index} {attempt}")
    out = Path(os.environ["AIR_TEST_OUT"])
    while not any((out / name).exists() for name in (f"release-{run_id}", f"release-{run_id}-{index}")):
        time.sleep(0.1)
    note(run_id, f"end {index} {attempt}")


class Endless(BaseOperator):
    """Waits for ever, and notes that it was asked to end."""

    def execute(self, context):
        self.run_id = context["dag_run"].run_id
        note(self.run_id, "begin")
        while True:
            time.sleep(1)

    def on_kill(self):
        note(self.run_id, "on_kill")


@dag(schedule=None)
def flight_of_one():
    task(retries=1, retry_delay=timedelta(0))(work)(0)


@dag(schedule=None)
def flight_of_five():
    task(retries=1, retry_delay=timedelta(0))(work).expand(index=list(range(5)))


@dag(schedule=None)
def flight_of_sixteen():
    task(retries=1, retry_delay=timedelta(0))(work).expand(index=list(range(16)))


@dag(schedule=None)
def endless():
    Endless(task_id="work")


for build_dag in (flight_of_one, flight_of_five, flight_of_sixteen, endless):
    build_dag()
