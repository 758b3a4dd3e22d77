"""Heartbeats are the executor's business; without it runners send them, and survive that nobody hears them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from air_executor.runs.record import RunState
from tests.support import away
from tests.support.airflow_env import Airflow
from tests.support.proxy import Proxy
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

#: So long a task runs for the proof that it sends no heartbeats, in seconds. Airflow would send one each second.
QUIET_S = 5.0

#: This many heartbeats fail while neither the API server nor an executor is there. Airflow ends a task after three.
UNHEARD = 6


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    return {
        "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "3",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    }


def test_no_heartbeat_reaches_the_server_while_an_executor_reconciles(env: Airflow, proxy: Proxy) -> None:
    work = away.begin(env, "quiet")
    time.sleep(QUIET_S)
    work.finish_work()
    work.check_done_once()
    assert proxy.requests("/run") > 0
    assert proxy.requests("/heartbeat") == 0


def test_runners_without_an_executor_send_heartbeats_and_outlive_a_server_that_is_away(
    env: Airflow, proxy: Proxy
) -> None:
    work = away.begin(env, "alone")
    env.stop("scheduler")
    wait_for(lambda: proxy.requests("/heartbeat") > 0, "a heartbeat")
    proxy.set("error 500")
    wait_for(lambda: proxy.requests("/heartbeat", mode="error 500") >= UNHEARD, "heartbeats that nobody hears", 60)
    assert work.record.state is RunState.RUNNING
    proxy.set("pass")
    heard = proxy.requests("/heartbeat", mode="pass")
    wait_for(lambda: proxy.requests("/heartbeat", mode="pass") > heard, "a heartbeat that is heard")
    env.start("scheduler")
    looked_after_s = time.time()
    wait_for(lambda: (env.store.last_reconciled_s(work.record.id) or 0) > looked_after_s, "the takeover")
    work.finish_work()
    work.check_done_once()


@pytest.fixture
def impatient(env: Airflow) -> Iterator[Airflow]:
    """The same Airflow with less patience."""
    env.stop("scheduler")
    env.env["AIRFLOW__AIR_EXECUTOR__API_PATIENCE_SECONDS"] = "15"
    env.start("scheduler")
    yield env
    env.stop("scheduler")
    del env.env["AIRFLOW__AIR_EXECUTOR__API_PATIENCE_SECONDS"]
    env.start("scheduler")


def test_a_server_that_is_away_for_longer_than_the_patience_fails_the_task_with_the_reason(
    impatient: Airflow, proxy: Proxy
) -> None:
    ending = away.begin(impatient, "impatient-at-the-end", "away_once")
    proxy.set("refuse")
    starting = away.order(impatient, "impatient-at-the-start", "away_once")
    ending.finish_work()
    works = (ending, starting)

    def have_given_up() -> bool:
        records = impatient.records("away_once")
        return [record.state for record in records] == [RunState.FAILED] * len(works)

    wait_for(have_given_up, "the server to be given up")
    proxy.set("pass")
    for work in works:
        assert work.run.wait() == "failed"
        assert work.run.instance("work")["try_number"] == 1
        assert work.record.state is RunState.FAILED
        assert not work.record.delivered
        reason = work.record.reason or ""
        assert "ConnectError" in reason
        assert "Airflow could not be told" in reason or "API server" in reason
        assert any(reason in (event["extra"] or "") for event in work.run.events("work"))
    assert ending.effects == ["begin 1", "end 1"]
    assert starting.effects == []
    away.check_nothing_left(impatient)
