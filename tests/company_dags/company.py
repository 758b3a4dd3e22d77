"""Dags for an Airflow with several executors and a team."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DeadlineAlert, DeadlineReference, SyncCallback, dag, task

OUT = Path(os.environ["AIR_TEST_OUT"])


def supervisor_title() -> str:
    return Path(f"/proc/{os.getppid()}/cmdline").read_text().replace("\0", " ").strip()


def on_deadline(text, context=None):
    (OUT / "deadline").write_text(text)


@dag(schedule=None)
def mixed():
    @task
    def by_local():
        return supervisor_title()

    @task(executor="air")
    def by_air():
        return supervisor_title()

    by_local() >> by_air()


@dag(
    schedule=None,
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=1),
        callback=SyncCallback(on_deadline, kwargs={"text": "missed"}, executor="air"),
    ),
)
def late():
    @task(executor="air")
    def wait_for_the_callback():
        import time

        while not (OUT / "deadline").exists():
            time.sleep(0.1)

    wait_for_the_callback()


@dag(schedule=None)
def impersonated():
    @task(executor="air", run_as_user="root")
    def as_another_user():
        from airflow.sdk import Variable

        return {"sudo": os.environ.get("CAME_THROUGH_SUDO"), "variable": Variable.get("nothing", default="default")}

    as_another_user()


mixed()
late()
impersonated()
