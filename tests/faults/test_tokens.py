"""A task's token lives shorter than the task."""

from __future__ import annotations

import time

import pytest

from air_executor.runs.record import RunState
from tests.support import away
from tests.support.airflow_env import Airflow
from tests.support.proxy import Proxy

pytestmark = pytest.mark.faults

#: How long a token is good, in seconds.
TOKEN_S = 30

#: How long the tasks run, in seconds: until their first token has long expired.
LONGER_S = 45.0


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    return {"AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": str(TOKEN_S)}


def test_a_task_that_outlives_its_token_is_a_success(env: Airflow, proxy: Proxy) -> None:
    work = away.begin(env, "outlives-its-token")
    time.sleep(LONGER_S)
    work.finish_work()
    work.check_done_once()


def test_a_task_whose_token_expires_while_the_server_is_away_is_a_success(env: Airflow, proxy: Proxy) -> None:
    work = away.begin(env, "expires-meanwhile")
    proxy.set("refuse")
    time.sleep(LONGER_S)
    work.finish_work()
    assert work.record.state is RunState.RUNNING
    proxy.set("pass")
    work.check_done_once()
