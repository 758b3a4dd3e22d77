"""One DAG for each thing that tasks do. They leave lines in files below $AIR_TEST_OUT, one per execution."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from pathlib import Path

from airflow.exceptions import AirflowSkipException
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import Asset, BaseOperator, dag, get_current_context, setup, task, teardown


def note(name: str, text: str = "once") -> None:
    with (Path(os.environ["AIR_TEST_OUT"]) / name).open("a") as file:
        file.write(text + "\n")


def noted(name: str) -> int:
    path = Path(os.environ["AIR_TEST_OUT"]) / name
    return len(path.read_text().splitlines()) if path.exists() else 0


class DeferOnce(BaseOperator):
    """Gives its slot back for a second and is resumed."""

    def execute(self, context):
        note("deferral", f"before {os.getpid()}")
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="resume")

    def resume(self, context, event=None):
        note("deferral", f"after {os.getpid()}")
        return "resumed"


def on_task_failure(context):
    note("callbacks", "task failure")


def on_task_success(context):
    note("callbacks", "task success")


def on_task_retry(context):
    note("callbacks", "task retry")


def on_dag_success(context):
    note("callbacks", "dag success")


@dag(schedule=None)
def held():
    @task
    def shares():
        """Holds 150 MiB for some seconds, which three processes share."""
        mine = b"x" * (150 << 20)
        if not (os.fork() and os.fork()):
            time.sleep(600)
        time.sleep(6)
        return len(mine)

    shares()


held()


@dag(schedule=None)
def retries():
    @task(retries=2, retry_delay=timedelta(seconds=0), on_retry_callback=on_task_retry)
    def third_time_lucky():
        attempt = get_current_context()["ti"].try_number
        note("retries", str(attempt))
        if attempt < 3:
            raise ValueError("not yet")

    third_time_lucky()


@dag(schedule=None)
def deferral():
    DeferOnce(task_id="defer_once")


@dag(schedule=None)
def reschedule():
    @task.sensor(mode="reschedule", poke_interval=1, timeout=60)
    def third_poke():
        note("reschedule")
        return noted("reschedule") >= 3

    third_poke()


@dag(schedule=None)
def impatient():
    """Sensors that are due again at once, of which some always wait for a slot."""

    @task.sensor(mode="reschedule", poke_interval=0, timeout=300, max_active_tis_per_dag=3)
    def third_look(number):
        note(f"impatient-{number}")
        return noted(f"impatient-{number}") >= 3

    third_look.expand(number=list(range(8)))


@dag(schedule=None)
def mapped():
    @task
    def numbers():
        return list(range(6))

    @task
    def square(number):
        note("mapped", str(number))
        if number == 5:
            raise AirflowSkipException
        return number * number

    @task(trigger_rule="none_failed")
    def total(squares):
        return sum(squares)

    total(square.expand(number=numbers()))


@dag(schedule=None)
def branching():
    @task.branch
    def choose():
        return "left"

    @task
    def left():
        note("branching", "left")

    @task
    def right():
        note("branching", "right")

    @task.short_circuit
    def stop_here():
        return False

    @task
    def never():
        note("branching", "never")

    choose() >> [left(), right()]
    stop_here() >> never()


@dag(schedule=None)
def cleanup():
    @setup
    def build():
        note("cleanup", "setup")

    @task
    def work():
        note("cleanup", "work")
        raise RuntimeError("the work fails, the teardown runs")

    @teardown(on_failure_fail_dagrun=True)
    def tear_down():
        note("cleanup", "teardown")

    built, gone = build(), tear_down()
    with gone.as_teardown(setups=built):
        work()


FEATURES_ASSET = Asset("air-executor-features")


@dag(schedule=None)
def asset_producer():
    @task(outlets=[FEATURES_ASSET])
    def produce():
        note("assets", "produced")

    produce()


@dag(schedule=[FEATURES_ASSET], is_paused_upon_creation=False)
def asset_consumer():
    @task
    def consume(triggering_asset_events=None):
        note("assets", f"consumed {len(triggering_asset_events or {})}")

    consume()


@dag(schedule=None, on_success_callback=on_dag_success)
def callbacks():
    @task(on_failure_callback=on_task_failure)
    def fail():
        raise RuntimeError("for the callback")

    @task(trigger_rule="all_done", on_success_callback=on_task_success)
    def succeed():
        pass

    fail() >> succeed()


@dag(schedule=None)
def timeouts():
    @task(execution_timeout=timedelta(seconds=1))
    def too_slow():
        import time

        note("timeouts")
        time.sleep(120)

    too_slow()


@dag(schedule=None)
def shell():
    BashOperator(task_id="bash", bash_command='echo "from bash: {{ params.word }}"', params={"word": "rendered"})


@dag(schedule=None, is_paused_upon_creation=True)
def debugged():
    """For ``airflow tasks test`` and ``dags test``: of a DAG that is not paused, the scheduler may take their runs."""
    BashOperator(task_id="bash", bash_command='echo "from bash: {{ params.word }}"', params={"word": "rendered"})


@dag(schedule=None)
def xcoms():
    @task(multiple_outputs=True)
    def push():
        return {"text": "grüße \N{GRINNING FACE}", "number": 7, "nested": {"list": [1, 2.5, None]}}

    @task
    def pull(value):
        return value

    pull(push())


@dag(schedule=None, start_date=datetime(2026, 1, 1))
def long_running():
    """Runs until the file ``release`` appears; says when it begins and when it is killed."""

    @task(retries=1, retry_delay=timedelta(seconds=0))
    def wait():
        import time

        context = get_current_context()
        note("long_running", f"begin {context['ti'].try_number}")
        release = Path(os.environ["AIR_TEST_OUT"]) / f"release-{context['dag_run'].run_id}"
        while not release.exists():
            time.sleep(0.1)
        note("long_running", f"end {context['ti'].try_number}")

    wait()


class OnKill(BaseOperator):
    """Waits for ever, and notes that it was asked to end."""

    def execute(self, context):
        import time

        note("on_kill", "begin")
        while True:
            time.sleep(1)

    def on_kill(self):
        note("on_kill", "on_kill")


@dag(schedule=None)
def on_kill():
    OnKill(task_id="wait")


for build_dag in (
    retries,
    deferral,
    reschedule,
    impatient,
    mapped,
    branching,
    cleanup,
    asset_producer,
    asset_consumer,
    callbacks,
    timeouts,
    shell,
    debugged,
    xcoms,
    long_running,
    on_kill,
):
    build_dag()


@dag(schedule=None, max_active_tasks=64)
def hundreds():
    @task
    def numbers():
        return list(range(200))

    @task
    def one(number):
        note("hundreds", "done")

    one.expand(number=numbers())


hundreds()
