"""What an executor says of a run whose host does not answer, and what it does when Temporal has lost its order."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from air_executor.airflow import temporal_executor
from air_executor.airflow.temporal_executor import Judge, give_back
from air_executor.runs.record import Identity
from air_executor.temporal import jobs
from air_executor.temporal.execution import AGAIN, ALIVE, LOST, OVER
from tests.unit.documents import identity
from tests.unit.instances import Database

LOST_S = 45.0


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    database = Database(f"sqlite:///{tmp_path}/airflow.db")
    monkeypatch.setattr(temporal_executor, "create_session", database.session)
    return database


def who(ti_id: str) -> Identity:
    return identity(workload_id=ti_id)


def ago(seconds: float) -> datetime:
    return datetime.now(tz=timezone.utc) - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("state", "beat_s", "silent_s", "verdict"),
    [
        ("queued", 1000, 1000, AGAIN),
        ("restarting", 1000, 30, AGAIN),
        ("success", 1, 1000, OVER),
        ("failed", 1, 30, OVER),
        ("running", 5, 1000, ALIVE),
        ("running", 1000, 1000, ALIVE),  # by the API server's clock, which may be wrong
        ("running", -300, 1000, ALIVE),
        ("running", None, 30, ALIVE),  # the host has not had the time to end it
        ("running", None, 50, LOST),
    ],
)
def test_verdicts(database: Database, state: str, beat_s: float | None, silent_s: float, verdict: str) -> None:
    ti_id = database.add(state, last_heartbeat_at=None if beat_s is None else ago(beat_s))
    assert Judge(LOST_S)(who(ti_id), silent_s) == verdict


@pytest.mark.parametrize(("ahead_s", "needs_s"), [(300, 45), (0, 45), (-300, 20)])
def test_a_heartbeat_is_old_when_it_has_not_changed_for_long(
    database: Database, monkeypatch: pytest.MonkeyPatch, ahead_s: float, needs_s: int
) -> None:
    """With the API server's clock ahead, right and behind; this one stands still."""
    judge, now_s = Judge(LOST_S), 1000.0
    monkeypatch.setattr(temporal_executor.time, "monotonic", lambda: now_s)
    ti_id = database.add("running", last_heartbeat_at=ago(-ahead_s))
    assert judge(who(ti_id), 30) == ALIVE
    now_s += needs_s - 1
    assert judge(who(ti_id), 70) == ALIVE
    database.change(ti_id, last_heartbeat_at=ago(-ahead_s - 1))
    assert judge(who(ti_id), 70) == ALIVE
    now_s += needs_s - 1
    assert judge(who(ti_id), 114) == ALIVE
    now_s += 1
    assert judge(who(ti_id), 115) == LOST
    assert judge(who(ti_id), 30) == ALIVE  # the host has not had the time to end it
    now_s += 3600
    judge(who(database.add("running")), 1)
    assert ti_id not in judge._beats


def test_who_is_gone_or_no_task(database: Database) -> None:
    judge = Judge(LOST_S)
    assert judge(who(str(uuid.uuid4())), 10) == OVER
    callback = dataclasses.replace(who(str(uuid.uuid4())), kind="callback")
    assert [judge(callback, silent_s) for silent_s in (10, 100)] == [ALIVE, LOST]
    assert not give_back(callback, "run")
    # Nobody else hears of a job's.
    assert [jobs._judge(callback, silent_s) for silent_s in (100, 300)] == [ALIVE, LOST]


def test_a_task_that_has_not_begun_is_queued_again_in_the_same_try(database: Database) -> None:
    mine, others, begun = (
        database.add(state, external_executor_id=run_id)
        for state, run_id in (("queued", "mine"), ("queued", "another's"), ("running", "mine"))
    )
    assert [give_back(who(ti_id), "mine") for ti_id in (mine, others, begun)] == [True, False, False]

    def row(ti_id: str) -> list[Any]:
        return [database.value(ti_id, name) for name in ("state", "queued_by_job_id", "try_number")]

    assert row(mine) == ["scheduled", None, 1]
    assert row(others) == ["queued", 7, 1]
    assert row(begun) == ["running", 7, 1]
