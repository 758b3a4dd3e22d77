"""The trigger that waits for a job, when Airflow cancels it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from asgiref.sync import async_to_sync

from air_executor import triggers
from air_executor.jobs import api
from air_executor.jobs.model import JobState
from air_executor.jobs.owner import Owner
from air_executor.triggers import AirJobTrigger
from tests.jobs.conftest import Yard
from tests.support.waiting import wait_for

OWNER = Owner("d", "t", "r")


class Airflow:
    """Answers who asks for the state of the task instance, through the triggerer's loop, as soon as it may."""

    def __init__(self, state: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = state
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.times, self.has_answered, self.was_cancelled = 0, False, False
        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", self._get_task_states)

    def _get_task_states(self, **_: Any) -> Any:
        return async_to_sync(self._answer)()

    async def _answer(self) -> dict[str, Any]:
        self.times += 1
        self.is_asked.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        self.has_answered = True
        return {OWNER.run_id: {} if self.state is None else {OWNER.task_id: self.state}}


@pytest.fixture
def trigger(yard: Yard) -> AirJobTrigger:
    """The trigger of a job whose task runs."""
    task = {"id": "a", "shell": True, "command": "touch begun; sleep 600"}
    job, made, values = api.describe("long", [task], yard.state_dir, folder=yard.folder)
    job.made_by = OWNER.to_document()
    yard.store.create(job, made, values)
    yard.start_manager()
    wait_for((yard.folder / "begun").exists, "the task")
    return AirJobTrigger(job_name="long", state_dir=str(yard.state_dir), owner=OWNER.to_document())


async def _waiting(trigger: AirJobTrigger) -> asyncio.Task[None]:
    async def consume() -> None:
        async for _ in trigger.run():
            raise AssertionError("the job has not ended")

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.1)  # it waits; nothing is different if it is only about to
    return task


@pytest.mark.parametrize(("state", "ends"), [("failed", True), (None, True), ("deferred", False)])
def test_a_trigger_that_is_cancelled_again_and_again_asks_once_and_does_what_it_has_to(
    yard: Yard, trigger: AirJobTrigger, state: str | None, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow cancels it each second until it is over. Airflow 3.1's triggerer ends if that cancels a request."""

    async def work() -> None:
        airflow = Airflow(state, monkeypatch)
        task = await _waiting(trigger)
        task.cancel()
        await airflow.is_asked.wait()
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        airflow.may_answer.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (airflow.times, airflow.has_answered, airflow.was_cancelled) == (1, True, False)

    asyncio.run(work())
    if ends:
        wait_for(lambda: yard.store.open("long").job.state is JobState.CANCELLED, "the job's end")
    else:
        assert list(yard.store.open("long").asks()) == []
        assert not yard.store.open("long").job.state.is_end


def test_a_request_without_an_answer_is_left_alone_and_so_is_the_job(
    yard: Yard, trigger: AirJobTrigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = SimpleNamespace(info=print, warning=lambda text, *args: said.append(text % args))
    monkeypatch.setattr(AirJobTrigger, "log", log)
    monkeypatch.setattr(triggers, "_ANSWER_S", 0.1)

    async def work() -> None:
        airflow = Airflow("failed", monkeypatch)
        task = await _waiting(trigger)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (airflow.times, airflow.has_answered, airflow.was_cancelled) == (1, False, False)
        airflow.may_answer.set()

    asyncio.run(work())
    (warning,) = said
    assert "job long keeps running" in warning and "no answer for 0.1 s" in warning
    assert not yard.store.open("long").job.state.is_end
