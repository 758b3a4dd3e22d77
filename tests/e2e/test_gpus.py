"""More tasks than GPUs: they wait for as long as it takes, and nobody waits for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.waiting import wait_for

OPTIONS = {
    "AIRFLOW__AIR_EXECUTOR__GPUS": "0",
    "AIRFLOW__CORE__PARALLELISM": "2",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "12",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "0",
}

DAG = """
import time
from airflow.sdk import dag, task

@dag(schedule=None)
def gpus():
    @task(executor_config={"air": {"gpus": 1}})
    def train(number):
        time.sleep(18)

    @task
    def cpu(number):
        time.sleep(0.1)

    train.expand(number=[1, 2, 3])
    cpu.expand(number=list(range(6)))

gpus()
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, shared_dir) -> Iterator[Airflow]:  # type: ignore[no-untyped-def]
    env = airflow_env.make(tmp_path_factory.mktemp("gpus") / "home", shared_dir, OPTIONS)
    (env.dags / "gpus.py").write_text(DAG)
    env.start()
    yield env
    env.end()


def test_a_task_that_waits_for_a_gpu_is_neither_failed_for_it_nor_in_the_way_of_others(env: Airflow) -> None:
    env.api.unpause("gpus")
    run = env.api.trigger("gpus")
    wait_for(lambda: len(env.records("gpus")) >= 7, "all that need no GPU, and one that does, to run")
    shown = env.run("air-executor", "status").stdout
    assert shown.count("1 of 1 GPUs to be free") == 2
    assert run.wait() == "success"

    records = env.ended_records("gpus")
    assert [record.identity.try_number for record in records] == [1] * 9
    trained = sorted((r for r in records if r.identity.task_id == "train"), key=lambda r: r.running_at or "")
    assert [record.gpus for record in trained] == [["0"]] * 3
    for former, latter in itertools.pairwise(trained):
        assert (former.ended_at or "") <= (latter.running_at or "")
    first_end = trained[0].ended_at or ""
    assert all((r.ended_at or "") < first_end for r in records if r.identity.task_id == "cpu")
    waited = datetime.fromisoformat(trained[2].running_at or "") - datetime.fromisoformat(trained[0].running_at or "")
    assert waited.total_seconds() > 36
