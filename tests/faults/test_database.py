"""The database is away: tasks run on, once, and the executor makes up for what it missed.

Airflow's scheduler ends when it finds its database away at a bad moment. That is Airflow's way, under any executor, and
whoever runs it has it restarted; so do these tests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from air_executor.runs.record import RunState
from tests.support import airflow_env, away
from tests.support.airflow_env import Airflow
from tests.support.postgres import Postgres
from tests.support.proxy import Mode, Proxy
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults


#: Each of these is how long a fault lasts, in seconds.
REFUSED_S = 10.0
SILENT_S = 10.0
FULL_S = 10.0


@pytest.fixture(scope="module")
def env(
    proxy: Proxy,
    postgres: Postgres,
    components: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
    shared_dir: Path,
) -> Iterator[Airflow]:
    proxy.upstream = postgres.socket
    url = f"postgresql+psycopg2://postgres@127.0.0.1:{proxy.port}/postgres"
    env = airflow_env.make(
        tmp_path_factory.mktemp("database-away") / "home",
        shared_dir,
        {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url, **away.IMPATIENT_AIRFLOW},
        components,
    )
    try:
        env.start()
        yield env
    finally:
        env.end()


def begin(env: Airflow, run_id: str) -> away.Work:
    """Trigger a run, and wait until its task is at work, while whatever of Airflow has ended is started again."""
    work = away.order(env, run_id)

    def begun() -> list[str]:
        env.revive()
        return work.effects

    wait_for(begun, f"{run_id} to begin", every_s=0.5)
    return work


def check_success(env: Airflow, work: away.Work) -> None:
    """Check that ``work`` is a success in its first try, while whatever of Airflow has ended is started again."""

    def ended() -> bool:
        env.revive()
        return work.run.state in ("success", "failed")

    wait_for(ended, f"the end of {work.run.run_id}", every_s=0.5)
    work.check_success()


def test_tasks_outlive_a_restart_of_the_database(env: Airflow, postgres: Postgres) -> None:
    running, ending = begin(env, "restart-runs"), begin(env, "restart-ends")
    postgres.restart()
    ending.finish_work()
    check_success(env, ending)
    running.release()
    check_success(env, running)
    away.check_nothing_left(env)


@pytest.mark.parametrize(("mode", "lasts_s"), [("refuse", REFUSED_S), ("black hole", SILENT_S)])
def test_tasks_go_on_while_the_database_is_away(env: Airflow, proxy: Proxy, mode: Mode, lasts_s: float) -> None:
    name = mode.replace(" ", "-")
    ending, running = begin(env, f"{name}-ends"), begin(env, f"{name}-runs")
    proxy.set(mode)
    ending.finish_work()
    time.sleep(lasts_s)
    assert ending.record.state is RunState.RUNNING
    assert running.record.state is RunState.RUNNING
    proxy.set("pass")
    check_success(env, ending)
    running.release()
    check_success(env, running)
    after = away.order(env, f"{name}-after")
    after.release()
    check_success(env, after)
    away.check_nothing_left(env)


def test_tasks_go_on_while_the_database_has_no_connection_to_spare(env: Airflow, postgres: Postgres) -> None:
    ending, running = begin(env, "no-slots-ends"), begin(env, "no-slots-runs")
    with postgres.without_slots():
        ending.finish_work()
        time.sleep(FULL_S)
        assert ending.record.state is RunState.RUNNING
        assert running.record.state is RunState.RUNNING
    check_success(env, ending)
    running.release()
    check_success(env, running)
    away.check_nothing_left(env)
