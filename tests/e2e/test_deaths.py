"""Whatever a task dies of is told as Airflow tells failures: each callback, listener and mail once, with the reason."""

from __future__ import annotations

import collections
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from air_executor.runs.record import RunRecord, RunState
from tests.conftest import give_postgres
from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun
from tests.support.flights import launchers
from tests.support.mail import MailServer
from tests.support.waiting import wait_for

pytestmark = pytest.mark.core

#: Notes that it is told of a task's failure, in the task process or in the scheduler.
PLUGIN = """
import json, os
from pathlib import Path

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin


class Listener:
    @hookimpl
    def on_task_instance_failed(self, previous_state, task_instance, error):
        line = {"kind": "listener", "exception": str(error)}
        for name in ("dag_id", "task_id", "run_id", "map_index", "try_number"):
            line[name] = getattr(task_instance, name)
        with (Path(os.environ["AIR_TEST_OUT"]) / "alerts").open("a") as file:
            file.write(json.dumps(line) + "\\n")


class Plugin(AirflowPlugin):
    name = "alerts"
    listeners = [Listener()]
"""

#: Reasons of the deaths in the DAG ``deaths``: mapped tasks first, in the order of their indexes.
MAPPED = [
    "SIGSEGV (signal 11)",
    "SIGBUS (signal 7)",
    "SIGSEGV (signal 11)",
    "SIGKILL (signal 9)",
    "exit code 3",
    "SIGHUP (signal 1)",
    "exit code 0 without telling",
    "the runner",
]
REASONS: dict[tuple[str, int], str] = {
    **{("dies", index): reason for index, reason in enumerate(MAPPED)},
    ("too_long", -1): "wall time limit of 1 s reached",
    ("too_busy", -1): "CPU time limit of 1 s reached",
    ("too_big", -1): "memory limit of 100 MiB reached",
    ("refused", -1): "unknown keys: memoryy",
}


@pytest.fixture(scope="module")
def mail_server() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, shared_dir: Any, mail_server: MailServer) -> Iterator[Airflow]:
    folder = tmp_path_factory.mktemp("deaths")
    (folder / "subject").write_text("{{ti.task_id}} {{ti.map_index}} {{try_number}}")
    (folder / "text").write_text("{{exception_html}}")
    options = {
        **mail_server.options(),
        "AIRFLOW__EMAIL__SUBJECT_TEMPLATE": str(folder / "subject"),
        "AIRFLOW__EMAIL__HTML_CONTENT_TEMPLATE": str(folder / "text"),
        "AIRFLOW__EMAIL__FROM_EMAIL": "airflow@example.com",
        "AIRFLOW__AIR_EXECUTOR__STOP_GRACE_SECONDS": "1",
        "AIRFLOW__CORE__PARALLELISM": "6",
        # A callback that comes while its DAG file is being read waits for the next time in Airflow 3.1.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
    }
    env = airflow_env.make(folder / "home", shared_dir, options, airflow_env.READING, ["deaths.py"])
    (env.home / "plugins").mkdir()
    (env.home / "plugins" / "alerts.py").write_text(PLUGIN)
    give_postgres(env, shared_dir)
    env.start()
    yield env
    env.end()


def alerts(env: Airflow, run: DagRun) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in env.effects("alerts")]
    return [alert for alert in found if alert["run_id"] == run.run_id and alert["kind"] != "success"]


def counted(env: Airflow, run: DagRun) -> collections.Counter[Any]:
    """Return how often there was each alert of a task: its kind, the task, its map index and its try."""
    told = [a for a in alerts(env, run) if a["kind"] != "dag failure"]
    return collections.Counter((a["kind"], a["task_id"], a["map_index"], a["try_number"]) for a in told)


def of_a_task(task_id: str, map_index: int = -1) -> dict[tuple[str, str, int, int], int]:
    """Return the alerts of a task that fails, is tried again, and fails for good."""
    told = (("retry", 1), ("listener", 1), ("failure", 2), ("listener", 2))
    return {(kind, task_id, map_index, attempt): 1 for kind, attempt in told}


def settled(env: Airflow, run: DagRun, expected: dict[Any, int]) -> collections.Counter[Any]:
    """Wait until there are as many alerts as expected, and the last one that was asked for, the DAG's; return them.

    The DAG processor runs what it is asked for by a DAG file one after the other.
    """

    def is_told() -> bool:
        is_over = any(alert["kind"] == "dag failure" for alert in alerts(env, run))
        return is_over and sum(counted(env, run).values()) >= sum(expected.values())

    try:
        wait_for(is_told, f"{len(expected)} alerts", 300, every_s=0.5)
    except AssertionError as error:
        missing = {alert for alert in expected if not counted(env, run)[alert]}
        raise AssertionError(f"{error}: {missing}") from None
    return counted(env, run)


@pytest.fixture(scope="module")
def deaths(env: Airflow) -> DagRun:
    run = env.api.trigger("deaths", run_id="deaths")
    assert run.wait(600) == "failed"
    env.ended_records("deaths")
    return run


def test_each_callback_and_listener_is_called_once_for_each_try(env: Airflow, deaths: DagRun) -> None:
    expected = {alert: n for who in REASONS for alert, n in of_a_task(*who).items()}
    assert settled(env, deaths, expected) == expected


def test_the_dag_is_told_of_once(env: Airflow, deaths: DagRun) -> None:
    wait_for(lambda: [a for a in alerts(env, deaths) if a["kind"] == "dag failure"], "the DAG's callback")
    assert len([a for a in alerts(env, deaths) if a["kind"] == "dag failure"]) == 1


def test_each_try_is_mailed_once_with_the_reason(env: Airflow, deaths: DagRun, mail_server: MailServer) -> None:
    subjects = {f"{task_id} {index} {attempt}": (task_id, index) for task_id, index in REASONS for attempt in (1, 2)}
    wait_for(lambda: len([m for m in mail_server.mails if m.subject in subjects]) >= len(subjects), "the mails")
    mails = [mail for mail in mail_server.mails if mail.subject in subjects]
    assert collections.Counter(mail.subject for mail in mails) == dict.fromkeys(subjects, 1)
    for mail in mails:
        assert REASONS[subjects[mail.subject]] in mail.text, mail


@pytest.mark.parametrize("who", REASONS, ids=lambda who: f"{who[0]}-{who[1]}")
def test_the_reason_is_in_the_exception_the_record_the_log_and_the_audit_log(
    env: Airflow, deaths: DagRun, who: tuple[str, int]
) -> None:
    reason = REASONS[who]
    errors = [a["exception"] for a in alerts(env, deaths) if (a["task_id"], a["map_index"]) == who]
    told = [
        a["exception"] for a in alerts(env, deaths) if a["kind"] == "listener" and (a["task_id"], a["map_index"]) == who
    ]
    assert len(told) == 2 and all(reason in error for error in told), errors
    records = [r for r in env.records("deaths") if (r.identity.task_id, r.identity.map_index) == who]
    assert len(records) == 2
    for record in records:
        assert reason in (record.reason or "")
        assert not record.delivered
        # Of a try that never began, Airflow keeps no history to show its log by.
        began = record.running_at or record.identity.try_number == 2
        log = (
            deaths.log(who[0], record.identity.try_number or 0, who[1])
            if began
            else Path(record.log_file or "").read_text()
        )
        assert reason in log
    wait_for(lambda: reason in " ".join(str(event["extra"]) for event in deaths.events(who[0])), "the audit entry")


def test_what_a_task_has_told_before_it_died_stands_and_is_told_once(env: Airflow) -> None:
    run = env.api.trigger("told", run_id="told")
    assert run.wait() == "failed"
    env.ended_records("told")
    assert run.states() == {
        "succeeds": "success",
        "fails_once": "success",
        "fails_for_good": "failed",
        "fails": "failed",
    }
    assert run.instance("fails_for_good")["try_number"] == 1
    expected = {
        ("retry", "fails_once", -1, 1): 1,
        ("failure", "fails_for_good", -1, 1): 1,
        **of_a_task("fails"),
    }
    assert settled(env, run, expected) == expected
    successes = [a for a in map(json.loads, env.effects("alerts")) if a["kind"] == "success" and a["run_id"] == "told"]
    assert sorted(a["task_id"] for a in successes) == ["fails_once", "succeeds"]
    outcomes = {"succeeds": "success", "fails_once": "up_for_retry", "fails_for_good": "failed"}
    for task_id, outcome in outcomes.items():
        record = next(r for r in env.records("told") if r.identity.task_id == task_id and r.identity.try_number == 1)
        assert (record.state, record.outcome, record.delivered) == (RunState.KILLED, outcome, True)
        assert "killed by SIGKILL (signal 9)" in (record.reason or "")
        assert f"after the task had ended as {outcome}" in (record.reason or "")


def test_a_death_with_no_scheduler_is_told_by_the_next_one(env: Airflow) -> None:
    run = env.api.trigger("dies_later", run_id="later")

    def live(attempt: int) -> RunRecord | None:
        records = [r for r in env.records("dies_later") if r.identity.try_number == attempt]
        return next(
            (r for r in records if r.state is RunState.RUNNING and (env.out / f"waits-{attempt}").exists()), None
        )

    for attempt in (1, 2):
        record = wait_for(lambda attempt=attempt: live(attempt), "the task to run")  # type: ignore[misc]
        env.stop("scheduler", signum=signal.SIGKILL, alone=True)
        if attempt == 1:
            os.kill(record.task_pid or 0, signal.SIGKILL)
            wait_for(lambda record=record: env.store.read(record.id).state.is_end, "the end")  # type: ignore[misc]
        else:
            for process in launchers(env):
                process.kill()
            os.kill(record.pid or 0, signal.SIGKILL)
        assert run.instance("waits")["state"] == "running"
        assert not [a for a in alerts(env, run) if a["try_number"] == attempt]
        env.start("scheduler")
    assert run.wait() == "failed"
    expected = of_a_task("waits")
    assert settled(env, run, expected) == expected
