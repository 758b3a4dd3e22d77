"""Tasks that share the memory of a machine."""

import os
import time
from pathlib import Path

from airflow.sdk import dag, task

OUT = Path(os.environ["AIR_TEST_OUT"])


def hold(mebibytes, seconds):
    data = bytearray(mebibytes << 20)
    for at in range(0, len(data), 4096):
        data[at] = 1
    time.sleep(seconds)


def limited(name, mebibytes, **more):
    return task(task_id=name, executor_config={"air": {"memory": f"{mebibytes}MiB"}}, **more)


@dag(schedule=None)
def packed():
    for number, size in enumerate((300, 700, 450, 200, 350, 600, 250, 500)):
        limited(f"t{number}", size)(hold)(size - 60, 2)
    limited("huge", 3000)(hold)(10, 1)


packed()


@dag(schedule=None)
def line():
    @limited("holds", 800, priority_weight=9)
    def holds():
        (OUT / "holding").touch()
        while not (OUT / "release").exists():
            time.sleep(0.1)

    holds()
    limited("given_up", 500)(hold)(1, 0)
    limited("waits", 600)(hold)(1, 0)
    limited("fits", 150, priority_weight=1)(hold)(1, 0)
    task(task_id="unknown")(hold)(1, 0)


line()


@dag(schedule=None)
def learns():
    @task
    def once(number):
        (OUT / f"begun-{number}").touch()
        while not all((OUT / f"begun-{other}").exists() for other in (1, 2, 3)):  # those of the first run
            time.sleep(0.1)
        hold(400, 5)  # on a crowded machine nothing shorter than three seconds is measured

    once.expand(number=[1, 2, 3])


learns()
