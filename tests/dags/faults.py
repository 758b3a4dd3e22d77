"""Work in flight while something breaks: tasks that say when they begin and end, and wait to be released between."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.triggers.file import FileTrigger
from airflow.sdk import BaseHook, BaseOperator, dag, get_current_context, task


def note(run_id: str, text: str) -> None:
    with (Path(os.environ["AIR_TEST_OUT"]) / f"effects-{run_id}").open("a") as file:
        file.write(text + "\n")


def work(index):
    context = get_current_context()
    run_id, attempt = context["dag_run"].run_id, context["ti"].try_number
    out = Path(os.environ["AIR_TEST_OUT"])
    (out / f"pid-{run_id}-{index}").write_text(str(os.getpid()))
    note(run_id, f"begin {index} {attempt}")
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


class Deferring(BaseOperator):
    """Begins, gives its slot back until it is released, and ends in another runner."""

    def execute(self, context):
        run_id = context["dag_run"].run_id
        note(run_id, f"begin 0 {context['ti'].try_number}")
        release = Path(os.environ["AIR_TEST_OUT"]) / f"release-{run_id}"
        self.defer(trigger=FileTrigger(filepath=str(release), poke_interval=0.5), method_name="resume")

    def resume(self, context, event=None):
        note(context["dag_run"].run_id, f"end 0 {context['ti'].try_number}")


@dag(schedule=None)
def deferring_flight():
    Deferring(task_id="work", retries=1, retry_delay=timedelta(0))


@dag(schedule=None)
def flight_of_one():
    task(retries=1, retry_delay=timedelta(0))(work)(0)


@dag(schedule=None)
def flight_of_one_elsewhere():
    """For a queue that no worker serves unless a test wants it."""
    task(queue="elsewhere", retries=1, retry_delay=timedelta(0))(work)(0)


@dag(schedule=None)
def flight_of_five():
    task(retries=1, retry_delay=timedelta(0))(work).expand(index=list(range(5)))


@dag(schedule=None)
def flight_of_sixteen():
    task(retries=1, retry_delay=timedelta(0))(work).expand(index=list(range(16)))


@dag(schedule=None, max_active_runs=100, max_active_tasks=100)
def load():
    """Mapped tasks of as many seconds as the run is told."""

    @task(retries=100, retry_delay=timedelta(seconds=1))
    def seconds():
        return get_current_context()["dag_run"].conf["seconds"]

    @task(retries=100, retry_delay=timedelta(seconds=1))
    def busy(index_and_seconds):
        index, seconds = index_and_seconds
        context = get_current_context()
        run_id, attempt = context["dag_run"].run_id, context["ti"].try_number
        note(run_id, f"begin {index} {attempt}")
        time.sleep(seconds)
        note(run_id, f"end {index} {attempt}")
        return index

    @task(retries=100, retry_delay=timedelta(seconds=1))
    def total(indexes):
        return sorted(indexes)

    total(busy.expand(index_and_seconds=seconds()))


@dag(schedule=None)
def secretive():
    """Uses secrets of all kinds, which nobody else should come to know."""

    @task(executor_config={"air": {"environment": {"AIR_TEST_LIMITED": "planted-in-the-limits"}, "memory": "1GiB"}})
    def use():
        password = BaseHook.get_connection("bank").password
        found = [password, os.environ["AIR_TEST_SECRET"], os.environ["AIR_TEST_LIMITED"]]
        assert [secret.startswith("planted") for secret in found] == [True] * 3
        work(0)

    use()


@dag(schedule=None)
def endless():
    Endless(task_id="work")


flights = (flight_of_one, flight_of_one_elsewhere, flight_of_five, flight_of_sixteen)
for build_dag in (secretive, load, deferring_flight, endless, *flights):
    build_dag()
