"""A task's token lives shorter than the task, and is, like all secrets, nowhere to be found."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time

import psutil
import pytest

from air_executor.runs.record import RunState
from tests.support import away
from tests.support.airflow_env import Airflow
from tests.support.contents import contents
from tests.support.flights import Flight
from tests.support.proxy import Proxy
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

#: How long a token is good, in seconds.
TOKEN_S = 10

#: How long the tasks run, in seconds: until their first token has long expired.
LONGER_S = 13.0


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    return {
        "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": str(TOKEN_S),
        "AIRFLOW__API_AUTH__JWT_LEEWAY": "1",
        "AIRFLOW_CONN_BANK": "postgres://user:planted-in-a-connection@localhost/bank",
        "AIR_TEST_SECRET": "planted-in-the-environment",
    }


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
    signed = work.record.tokens_signed
    assert signed

    def is_in_the_audit_log() -> bool:
        events = [event for event in work.run.events("work") if event["event"] == "air_executor token signed"]
        return len(events) == 1 and f"signed another, {signed} times" in events[0]["extra"]

    wait_for(is_in_the_audit_log, "the audit entry")


def test_no_secret_is_in_any_file_nor_on_any_command_line(env: Airflow) -> None:
    flight = Flight(env, env.api.trigger("secretive", run_id="secretive"), 1)
    killed = Flight(env, env.api.trigger("secretive", run_id="secretive-killed"), 1)
    for each in (flight, killed):
        each.wait_for("begin 0 1")
        wait_for(each.live, "it to be on record as running")
    titles = []
    for process in env.ours():
        with contextlib.suppress(psutil.Error):
            titles.append(" ".join(process.cmdline()))
    assert [title for title in titles if "air-executor runner" in title]
    os.kill(killed.record().pid or 0, signal.SIGKILL)
    flight.release()
    assert flight.run.wait() == "success"
    assert killed.run.wait() == "failed"

    secret = re.compile(
        rb"planted-in-[a-z-]+|eyJ[\w-]{8,}\.[\w-]{8,}|" + env.env["AIRFLOW__API_AUTH__JWT_SECRET"].encode()
    )
    assert secret.search(b"planted-in-x") and secret.search(b"eyJhbGciOiJIUzUxMiJ9.eyJzdWIiOiIwMTkifQ.x")
    assert [title for title in titles if secret.search(title.encode())] == []
    wait_for(lambda: away.runners(env) == [], "the runners to be gone")
    files = {path: data for path, data in contents(env.home).items() if env.dags not in path.parents}
    assert [path for path in files if path.name == "state.json"]
    assert [path for path in files if path.suffix == ".log" and env.home / "logs" in path.parents]
    assert [path for path in files if path.parent == env.store.launchers]
    assert {str(path): secret.findall(data) for path, data in files.items() if secret.search(data)} == {}
