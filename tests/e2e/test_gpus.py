"""More tasks than GPUs: they wait for as long as it takes, and nobody waits for them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.flights import kill_scheduler, launcher, start_scheduler
from tests.support.waiting import wait_for

#: Airflow fails what is queued for longer than this, in seconds.
TIMEOUT_S = 60

OPTIONS = {
    "AIRFLOW__AIR_EXECUTOR__GPUS": "0",
    "AIRFLOW__CORE__PARALLELISM": "2",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": str(TIMEOUT_S),
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "0",
}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, shared_dir) -> Iterator[Airflow]:  # type: ignore[no-untyped-def]
    env = airflow_env.make(tmp_path_factory.mktemp("gpus") / "home", shared_dir, OPTIONS, airflow_env.FEW)
    env.start()
    try:
        launcher(env)  # what is queued meanwhile would wait for it, too
        yield env
    finally:
        env.end()


def test_a_task_that_waits_for_a_gpu_is_neither_failed_for_it_nor_in_the_way_of_others(env: Airflow) -> None:
    env.api.unpause("gpus")
    run = env.api.trigger("gpus")

    def others_ended() -> int:
        return sum(record.identity.task_id == "cpu" and record.state.is_end for record in env.records("gpus"))

    wait_for(lambda: others_ended() == 6, "all that need no GPU to end")
    wait_for(lambda: env.run("air-executor", "status").stdout.count("1 of 1 GPUs to be free") == 2, "two to wait")
    (env.out / "seen").touch()
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
    assert waited.total_seconds() > TIMEOUT_S


def test_those_that_wait_can_be_given_up_and_outlive_their_scheduler(env: Airflow) -> None:
    env.api.unpause("gpu_line")
    run = env.api.trigger("gpu_line")

    def waiting() -> list[str]:
        shown = json.loads(env.run("air-executor", "status", "--json").stdout)["waiting"]
        return sorted(each["name"] for each in shown)

    wait_for(lambda: waiting() == ["gpu_line.given_up", "gpu_line.waits", "gpu_line.waits"], "three to wait")
    run.mark("given_up", "failed")
    wait_for(lambda: waiting() == ["gpu_line.waits", "gpu_line.waits"], "the one that was given up to leave the line")
    kill_scheduler(env)
    assert waiting() == []
    start_scheduler(env)
    wait_for(lambda: waiting() == ["gpu_line.waits", "gpu_line.waits"], "the next scheduler to have them in line")
    (env.out / "release").touch()
    assert run.wait() == "failed"
    tries = {(each["task_id"], each["map_index"]): (each["state"], each["try_number"]) for each in run.instances()}
    assert tries.pop(("given_up", -1))[0] == "failed"
    assert tries == {("holds", -1): ("success", 1), ("waits", 0): ("success", 1), ("waits", 1): ("success", 1)}
    assert "given_up" not in {record.identity.task_id for record in env.records("gpu_line")}
