"""Tasks that wait for GPUs."""

import os
import time
from pathlib import Path

from airflow.sdk import dag, task


@dag(schedule=None)
def gpus():
    @task(executor_config={"air": {"gpus": 1}})
    def train(number):
        while not (Path(os.environ["AIR_TEST_OUT"]) / "seen").exists():
            time.sleep(0.1)
        time.sleep(35)

    @task
    def cpu(number):
        time.sleep(0.1)

    train.expand(number=[1, 2, 3])
    cpu.expand(number=list(range(6)))


gpus()


@dag(schedule=None)
def gpu_line():
    @task(executor_config={"air": {"gpus": 1}}, priority_weight=9)
    def holds():
        while not (Path(os.environ["AIR_TEST_OUT"]) / "release").exists():
            time.sleep(0.1)

    @task(executor_config={"air": {"gpus": 1}})
    def given_up(): ...

    @task(executor_config={"air": {"gpus": 1}})
    def waits(number): ...

    holds()
    given_up()
    waits.expand(number=[1, 2])


gpu_line()
