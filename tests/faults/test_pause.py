"""The whole machine stands still for longer than Airflow waits for heartbeats, and goes on, in whatever order."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Fly
from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.flights import check_nothing_left_behind, launchers
from tests.support.machine import suspend_all
from tests.support.postgres import Postgres

pytestmark = pytest.mark.faults


#: Airflow fails a task of which it has heard nothing for so long, in seconds.
HEARTBEAT_TIMEOUT_S = 15

#: For so long everything stands still, in seconds: the API server has been away for longer than runners wait for it,
#: too, and a runner that is about to be born has missed its time.
PAUSE_S = 40.0

#: Between the first process that goes on and the last one, in seconds.
WAKING_S = 6.0


@pytest.fixture(scope="module")
def airflow(
    postgres: Postgres, components: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, shared_dir: Path
) -> Iterator[Airflow]:
    options = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url,
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT_S),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "0.5",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "2",
        "AIRFLOW__AIR_EXECUTOR__API_PATIENCE_SECONDS": "25",
        "AIRFLOW__AIR_EXECUTOR__STOP_GRACE_SECONDS": "2",
    }
    airflow = airflow_env.make(tmp_path_factory.mktemp("pause") / "home", shared_dir, options, components)
    try:
        airflow.start()
        yield airflow
        check_nothing_left_behind(airflow)
    finally:
        airflow.end()


@pytest.mark.parametrize("order", ["by chance", "scheduler first", "scheduler last"])
def test_a_machine_that_was_paused_loses_no_try(
    airflow: Airflow, postgres: Postgres, fly: Fly, order: str, request: pytest.FixtureRequest
) -> None:
    flights = [fly(f"pause-{order}".replace(" ", "-")).begun()]
    flights.append(fly(f"pause-{order}-ending".replace(" ", "-")).begun())
    flights[1].release()  # these end, and others are born, just as everything stands still
    flights.append(fly(f"pause-{order}-starting".replace(" ", "-"), 16))
    assert len(launchers(airflow)) == 1
    first = {"scheduler first": 1, "scheduler last": -1}.get(order, 0)
    scheduler = airflow.processes["scheduler"].pid

    def in_order(processes: list[psutil.Process]) -> list[psutil.Process]:
        random.Random(order).shuffle(processes)
        return sorted(processes, key=lambda process: -first if process.pid == scheduler else 0)

    stopped: list[psutil.Process] = []
    try:
        suspend_all(lambda: in_order([*airflow.ours(), *postgres.processes()]), stopped)
        time.sleep(PAUSE_S)
    finally:
        for process in in_order(stopped):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
            time.sleep(WAKING_S / len(stopped))
    for flight in flights:
        flight.assert_each_ran_once()
