"""Tasks that die in every way, and note what is told of it: by callbacks, listeners and mails."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

from airflow.exceptions import AirflowFailException
from airflow.sdk import dag, get_current_context, task

from tests.support import deaths as ways

OUT = Path(os.environ["AIR_TEST_OUT"])


def note(kind, context):
    ti = context.get("ti")
    line = {
        "kind": kind,
        "dag_id": context["dag"].dag_id,
        "run_id": context["run_id"],
        "task_id": ti.task_id if ti else None,
        "map_index": ti.map_index if ti else None,
        "try_number": ti.try_number if ti else None,
        "exception": repr(context.get("exception")),
    }
    with (OUT / "alerts").open("a") as file:
        file.write(json.dumps(line) + "\n")


def on_failure(context):
    note("failure", context)


def on_retry(context):
    note("retry", context)


def on_success(context):
    note("success", context)


def on_dag_failure(context):
    note("dag failure", context)


def die(_context=None):
    os.kill(os.getpid(), signal.SIGKILL)


ALERTS = {
    "retries": 1,
    "retry_delay": timedelta(0),
    "on_failure_callback": on_failure,
    "on_retry_callback": on_retry,
    "on_success_callback": on_success,
    "email": ["on-call@example.com"],
    "email_on_failure": True,
    "email_on_retry": True,
}

OTHER_WAYS = {
    "is_killed": die,
    "exits_with_a_code": lambda: os._exit(3),
    "hangs_up": lambda: os.kill(os.getpid(), signal.SIGHUP),
    "tells_nothing": lambda: os._exit(0),
    "its_runner_dies": lambda: os.kill(os.getppid(), signal.SIGKILL) or time.sleep(600),
}


@dag(schedule=None, default_args=ALERTS, on_failure_callback=on_dag_failure)
def deaths():
    @task
    def dies(way):
        (OTHER_WAYS.get(way) or getattr(ways, way))()

    def takes_its_time():
        while True:
            pass

    def takes_memory():
        block = b"x" * (300 << 20)
        time.sleep(600)
        return len(block)

    dies.expand(way=["segmentation_fault", "bus_error", "stack_overflow", *OTHER_WAYS])
    limited = {"too_long": {"timeout": 1}, "too_busy": {"cpu_time": 1}, "too_big": {"memory": "100MiB"}}
    for name, air in {**limited, "refused": {"memoryy": 1}}.items():
        work = takes_memory if name == "too_big" else takes_its_time
        task(task_id=name, executor_config={"air": air})(work)()


@dag(schedule=None, default_args=ALERTS, on_failure_callback=on_dag_failure)
def told():
    """Tasks that tell what became of them; the first four die after that, or while it is told."""

    @task(on_success_callback=[on_success, die])
    def succeeds():
        pass

    @task(on_retry_callback=[on_retry, die])
    def fails_once():
        if get_current_context()["ti"].try_number == 1:
            raise ValueError("once")

    @task(on_failure_callback=[on_failure, die])
    def fails_for_good():
        raise AirflowFailException("for good")

    @task
    def fails():
        raise ValueError("by itself")

    succeeds()
    fails_once()
    fails_for_good()
    fails()


@dag(schedule=None, default_args=ALERTS, on_failure_callback=on_dag_failure)
def dies_later():
    @task
    def waits():
        ti = get_current_context()["ti"]
        (OUT / f"waits-{ti.try_number}").touch()
        time.sleep(600)

    waits()


deaths()
told()
dies_later()
