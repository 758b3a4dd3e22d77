"""The clock is set back by an hour while tasks run, and goes on from there."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.conftest import Fly
from tests.support import machine
from tests.support.airflow_env import Airflow
from tests.support.flights import kill_scheduler, probe, start_scheduler
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> machine.Clock:
    return machine.Clock(tmp_path_factory.mktemp("clock") / "clock")


@pytest.fixture(scope="module")
def options(clock: machine.Clock) -> dict[str, str]:
    return clock.environment


def test_nothing_is_lost_when_the_clock_is_set_back(airflow: Airflow, fly: Fly, clock: machine.Clock) -> None:
    flight = fly("clock").begun()
    before_s = airflow.store.last_heartbeat_s(flight.record(4).id)

    def states() -> dict[int, str]:
        return {row["map_index"]: row["state"] for row in flight.rows()}

    clock.shift("-1h", airflow.ours)
    os.kill(flight.record(0).pid or 0, signal.SIGKILL)
    wait_for(lambda: states()[0] == "up_for_retry", "the death to be told")
    wait_for(lambda: airflow.store.last_heartbeat_s(flight.record(4).id) != before_s, "a heartbeat")
    kill_scheduler(airflow)
    job = start_scheduler(airflow)
    probe(airflow, "clock-later")
    live = [row for row in flight.rows() if row["state"] == "running" and row["map_index"]]
    assert [row["queued_by_job_id"] for row in live] == [job] * 4
    for index in (1, 2, 3, 4):
        flight.release(index)
        wait_for(lambda index=index: states()[index] == "success", f"task {index} to succeed")
    # Airflow does not look at a DAG run before its time, and that has not come yet again.
    clock.shift("+0", airflow.ours)
    flight.wait_for("begin 0 2")
    flight.release()
    assert flight.run.wait() == "success"
    once = [f"{word} {index} 1" for index in (1, 2, 3, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 0 1", "begin 0 2", "end 0 2", *once])
