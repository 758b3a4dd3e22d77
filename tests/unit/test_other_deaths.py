"""Callbacks and connection tests whose runner died are told as failed once, with the reason."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from air_executor import AirExecutor
from air_executor.airflow import compat, task_instances
from air_executor.runs.record import RunRecord, RunState, queued
from tests.unit.documents import identity

pytestmark = pytest.mark.core

REASON = "the runner was killed by SIGKILL (signal 9)"


def died(kind: str, workload_id: str) -> RunRecord:
    who = identity(kind=kind, workload_id=workload_id)
    return queued(str(uuid.uuid4()), who, limits={}, log_file=None).advance(RunState.KILLED, reason=REASON)


def test_a_callback_whose_runner_died_has_failed() -> None:
    if compat.AIRFLOW_VERSION < (3, 2):
        assert not hasattr(AirExecutor(parallelism=1), "queued_callbacks")  # this Airflow has none
        return
    executor, callback_id = AirExecutor(parallelism=1), str(uuid.uuid4())
    key: Any = compat.callback_key(callback_id)
    executor.running.add(key)
    executor._ends.report(key, died("callback", callback_id))
    assert executor.event_buffer == {key: (compat.states_of("callback").FAILED, REASON)}
    assert key not in executor.running


def test_a_connection_test_whose_runner_died_has_failed_unless_it_has_told_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compat.AIRFLOW_VERSION < (3, 3):
        assert not hasattr(AirExecutor(parallelism=1), "queued_connection_tests")  # this Airflow has none
        return
    from airflow.models.connection_test import ConnectionTestKey, ConnectionTestRequest, ConnectionTestState

    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'db'}")
    ConnectionTestRequest.__table__.create(engine)  # type: ignore[attr-defined]

    @contextmanager
    def session(**_: Any) -> Iterator[Session]:
        with Session(engine, expire_on_commit=False) as session:
            yield session
            session.commit()

    monkeypatch.setattr(task_instances, "create_session", session)
    executor = AirExecutor(parallelism=1)
    for state, expected in (
        (ConnectionTestState.RUNNING, ("failed", REASON, None)),
        (ConnectionTestState.SUCCESS, ("success", "connected", None)),
    ):
        request = ConnectionTestRequest(connection_id="c", conn_type="http")
        request.id, request.state = uuid.uuid4(), state
        request.result_message = "connected" if state == ConnectionTestState.SUCCESS else None
        with session() as connection:
            connection.add(request)
        executor._ends.report(ConnectionTestKey(id=str(request.id)), died("connection_test", str(request.id)))
        with session() as connection:
            told = connection.get(ConnectionTestRequest, request.id)
            assert told is not None
            assert (told.state, told.result_message, told.active_connection_id) == expected
    engine.dispose()
