"""The API server is away, in all the ways in which it can be: tasks run on, once, and what they did is delivered."""

from __future__ import annotations

import signal
import time

import pytest

from air_executor.runs.record import RunState
from tests.support import away
from tests.support.airflow_env import Airflow
from tests.support.proxy import Mode, Proxy
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

#: Each of these is how long a fault lasts, in seconds.
SHORT_S = 4.0
BLACK_HOLE_S = 6.0
ERRORS_S = 6.0
FLAP_S = 2.0


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    return away.IMPATIENT_AIRFLOW


def test_a_task_that_finds_no_server_at_its_start_begins_when_it_is_back(env: Airflow, proxy: Proxy) -> None:
    proxy.set("refuse")
    work = away.order(env, "before-the-start")
    records = lambda: [r for r in env.records("away") if r.identity.dag_run_id == "before-the-start"]  # noqa: E731
    wait_for(lambda: any(record.state is RunState.STARTING for record in records()), "the runner")
    time.sleep(SHORT_S)
    assert work.record.state is RunState.STARTING
    assert work.effects == []
    proxy.set("pass")
    work.wait_for_begin()
    work.release()
    work.check_done_once()


@pytest.mark.parametrize(
    ("mode", "lasts_s"), [("refuse", SHORT_S), ("error 500", ERRORS_S), ("black hole", BLACK_HOLE_S)]
)
def test_a_task_that_ends_while_the_server_is_away_is_a_success_when_it_is_back(
    env: Airflow, proxy: Proxy, mode: Mode, lasts_s: float
) -> None:
    work = away.begin(env, f"ends-{mode.replace(' ', '-')}")
    proxy.set(mode)
    work.finish_work()
    wait_for(lambda: mode == "refuse" or proxy.requests(mode=mode) > 0, "a request that fails")
    time.sleep(lasts_s)
    assert work.record.state is RunState.RUNNING
    proxy.set("pass")
    work.check_done_once()


def test_a_success_whose_answer_is_lost_is_told_once(env: Airflow, proxy: Proxy) -> None:
    work = away.begin(env, "cut-at-the-end")
    lost = proxy.lost_answers
    proxy.cut_at = "/state"
    proxy.set("cut")
    work.finish_work()
    wait_for(lambda: proxy.lost_answers > lost, "the lost answer")
    assert work.run.instance("work")["state"] == "success"  # Airflow knows, the runner does not
    proxy.set("pass")
    work.check_done_once()


def test_a_start_whose_answer_is_lost_happens_once(env: Airflow, proxy: Proxy) -> None:
    lost = proxy.lost_answers
    proxy.cut_at = "/run"
    proxy.set("cut")
    work = away.order(env, "cut-at-the-start")
    wait_for(lambda: proxy.lost_answers > lost, "the lost answer")
    proxy.set("pass")
    work.wait_for_begin()
    work.release()
    work.check_done_once()


def test_a_server_that_is_killed_and_started_again_loses_nothing(env: Airflow) -> None:
    ending, running = away.begin(env, "killed-ends"), away.begin(env, "killed-runs")
    env.stop("api-server", signum=signal.SIGKILL)
    ending.finish_work()
    time.sleep(SHORT_S)
    assert ending.record.state is RunState.RUNNING
    env.start("api-server")
    ending.check_success()
    running.finish_work()
    running.check_done_once()


def test_tasks_get_through_to_a_server_that_comes_and_goes(env: Airflow, proxy: Proxy) -> None:
    work = away.order(env, "flapping", "away_mapped")
    wait_for(lambda: work.run.states().get("numbers") == "success", "the tasks to map")

    def has_ended() -> bool:
        proxy.set("refuse" if proxy.mode == "pass" else "pass")
        return work.run.state in ("success", "failed")

    wait_for(has_ended, "the tasks to end", 400, every_s=FLAP_S)
    proxy.set("pass")
    assert work.run.wait() == "success"
    assert work.run.xcom("total") == sum(range(10))
    expected = [f"{what} {number} 1" for what in ("begin", "end") for number in range(10)]
    assert sorted(work.effects) == sorted(expected)
    assert {ti["try_number"] for ti in work.run.instances()} == {1}
    records = env.ended_records("away_mapped")
    assert len(records) == 12
    assert {record.state for record in records} == {RunState.SUCCEEDED}
    away.check_nothing_left(env)


def test_a_slow_server_makes_a_task_late_and_nothing_else(env: Airflow, proxy: Proxy) -> None:
    proxy.set("slow")
    work = away.begin(env, "slow")
    work.finish_work()
    work.check_done_once()
    assert proxy.mode == "slow"
