"""Callbacks and mails of a task's failure are asked for once for each try, whoever asks."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from airflow.api_fastapi.execution_api.datamodels.taskinstance import TaskInstance
from airflow.callbacks.callback_requests import DagCallbackRequest, EmailRequest, TaskCallbackRequest

from air_executor import AirExecutor
from air_executor.runs import record as runs
from air_executor.runs.record import RunState
from tests.unit.documents import identity

pytestmark = pytest.mark.core

FILE: dict[str, Any] = {"filepath": "dag.py", "bundle_name": "dags", "bundle_version": None}
TI_ID = uuid.uuid4()


class Sink:
    """Keeps what the DAG processor would be asked for."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def send(self, request: Any) -> None:
        self.requests.append(request)


@pytest.fixture
def executor() -> AirExecutor:
    executor = AirExecutor(parallelism=1)
    executor.callback_sink = Sink()  # type: ignore[assignment]
    return executor


def callback(try_number: int = 1, ti_id: uuid.UUID = TI_ID) -> TaskCallbackRequest:
    ti = TaskInstance.model_construct(id=ti_id, task_id="t", dag_id="d", run_id="r", try_number=try_number)
    return TaskCallbackRequest.model_construct(ti=ti, **FILE)


def mail(try_number: int = 1) -> EmailRequest:
    return EmailRequest.model_construct(ti=callback(try_number).ti, **FILE)


def asked(executor: AirExecutor, *requests: Any) -> list[Any]:
    for request in requests:
        executor.send_callback(request)
    return executor.callback_sink.requests  # type: ignore[no-any-return,union-attr]


def test_a_try_whose_heartbeats_are_missed_has_its_callbacks_run_once(executor: AirExecutor) -> None:
    """Airflow asks for them when it misses the heartbeats, and when it handles the event that follows."""
    first, of_the_event, its_mail = callback(), callback(), mail()
    assert asked(executor, first, of_the_event, its_mail) == [first, its_mail]


def test_other_tries_and_tasks_and_dag_runs_are_told_of_too(executor: AirExecutor) -> None:
    of_dag = DagCallbackRequest.model_construct(dag_id="d", run_id="r", **FILE)
    requests = [callback(1), callback(2), callback(1, uuid.uuid4()), of_dag, of_dag]
    assert asked(executor, *requests) == requests


@pytest.mark.parametrize(
    ("outcome", "wanted"), [("failed", False), ("up_for_retry", False), ("success", True), (None, True)]
)
def test_a_task_that_has_run_its_callbacks_but_could_not_tell_airflow_has_no_others_run(
    executor: AirExecutor, outcome: str | None, wanted: bool
) -> None:
    who = identity(workload_id=str(TI_ID), try_number=1)
    began = runs.queued(str(uuid.uuid4()), who, limits={}, log_file=None).advance(RunState.STARTING)
    executor._ends.report("key", began.advance(RunState.FAILED, outcome=outcome, reason="Airflow could not be told"))
    requests = [callback(), mail()]
    assert asked(executor, *requests) == (requests if wanted else [])
