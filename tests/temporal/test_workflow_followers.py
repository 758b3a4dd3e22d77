"""Ends reach the executor that waits for them, however late it is, and whoever else follows runs there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.worker import Worker

from air_executor.temporal import asking, execution, workflow
from air_executor.temporal.workflow import NAME, RULES
from air_executor.temporal.workflow_worker import workflow_worker
from tests.temporal.conftest import Temporal
from tests.temporal.test_workflow import Hosts, cards, replay, until


class Place:
    """Hosts, workers for workflows, and a workflow whose executors come and go."""

    def __init__(self, client: Client, hosts: Hosts) -> None:
        self.client, self.hosts = client, hosts
        self.handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(f"airflow-{uuid.uuid4()}")

    async def order(self, follower: str, batch: list[dict[str, Any]], **header: Any) -> None:
        await self.client.start_workflow(
            NAME,
            {"dag": "d", "dag_run": "r", "rules": RULES, **header},
            id=self.handle.id,
            task_queue="workflows",
            start_signal="order",
            start_signal_args=[follower, batch],
        )

    def executor(self, queue: str) -> Worker:
        return Worker(self.client, task_queue=queue, activities=[self.hosts.tell])

    async def execution(self) -> str:
        return str((await self.handle.describe()).run_id)

    async def events(self) -> list[str]:
        return [type_name(event) async for event in self.handle.fetch_history_events()]

    async def until_events(self, kind: str, count: int) -> None:
        for _ in range(600):
            if (await self.events()).count(kind) >= count:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{await self.events()} lack {kind}")

    async def is_running(self) -> bool:
        return (await self.handle.describe()).status == WorkflowExecutionStatus.RUNNING


def type_name(event: Any) -> str:
    return str(event.WhichOneof("attributes")).removesuffix("_event_attributes")


def at(temporal: Temporal, do: Callable[[Place], Awaitable[None]]) -> None:
    """Do something, and replay what became of the workflow."""

    async def run() -> Any:
        client = await Client.connect(temporal.address)
        place = Place(client, Hosts())
        # Not in the sandbox, which would not see the times that tests set.
        tasks = Worker(client, task_queue="tasks", activities=[place.hosts.run])
        async with workflow_worker(client, "workflows"), tasks:
            await do(place)
        return await place.handle.fetch_history()

    replay(asyncio.run(run()))


def test_a_workflow_is_patient_once_nothing_lives_and_then_still_knows_the_ends(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another executor's long callback, whose DAG run has ended; nobody takes its end in time."""
    monkeypatch.setattr(workflow, "_UNTOLD", timedelta(seconds=0.5))
    (callback,) = cards(1)

    async def do(place: Place) -> None:
        place.hosts.release.clear()
        await place.order("nobody's", [callback])
        await until(lambda: place.hosts.begun, "the callback")
        await place.handle.signal("close", "success")
        await asking.known(place.client, place.handle.id)  # the signal has arrived
        place.hosts.release.set()
        assert await place.handle.result() == "success"
        idle, patience = [number for number, kind in enumerate(await place.events()) if kind == "timer_started"]
        assert idle < (await place.events()).index("activity_task_completed") < patience
        asked = [callback["id"], str(uuid.uuid4())]
        (found,) = await asking.status(place.client, place.handle.id, await place.execution(), asked)
        assert (found.id, found.follower) == (callback["id"], "nobody's")
        assert found.end == {"state": "succeeded", "reason": None}

    at(temporal, do)


def test_those_who_followed_see_that_others_do_now(temporal: Temporal) -> None:
    batch = cards(10)
    ids = [card["id"] for card in batch]

    async def do(place: Place) -> None:
        place.hosts.release.clear()
        await place.order("former", batch)
        await until(lambda: len(place.hosts.begun) == 10, "the tasks")
        seen = await asking.look(place.client, place.handle.id, await place.execution())
        assert seen is not None and seen.takeovers == 0
        for run_id in ids[:8]:
            await place.handle.signal("follow", args=["other", [run_id]])
        found = await asking.status(place.client, place.handle.id, await place.execution(), ids)
        assert [each.follower for each in found] == ["other"] * 8 + ["former"] * 2
        seen = await asking.look(place.client, place.handle.id, await place.execution())
        assert seen is not None and 0 < seen.takeovers <= 8
        before = seen.takeovers
        await place.handle.signal("follow", args=["other", ids[:8]])  # again, as by a scheduler that was in doubt
        await asking.known(place.client, place.handle.id)
        seen = await asking.look(place.client, place.handle.id, await place.execution())
        assert seen is not None and seen.takeovers == before
        place.hosts.release.set()
        async with place.executor("former"), place.executor("other"):
            await place.handle.signal("close", "success")
            await place.handle.result()

    at(temporal, do)


def test_whoever_comes_is_asked_at_once_for_a_run_that_nobody_has_looked_at(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All executors are away, and a host is lost; the next look would be in an hour."""
    monkeypatch.setattr(execution, "HEARTBEAT_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(execution, "_JUDGE_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(execution, "_ATTACH_TIMEOUT", timedelta(hours=1))
    (lost,) = cards(1)

    async def do(place: Place) -> None:
        @activity.defn(name="run")
        async def run(card: dict[str, Any]) -> None:
            await asyncio.Event().wait()

        @activity.defn(name="judge")
        async def judge(identity: dict[str, Any], silent_s: float) -> str:
            return execution.LOST

        async with Worker(place.client, task_queue="dying", activities=[run]):
            await place.order("away", [{**lost, "queue": "dying"}])
            await place.until_events("timer_started", 2)  # after that for a day without news
        await place.handle.signal("follow", args=["here", [lost["id"]]])
        async with Worker(place.client, task_queue="here", activities=[judge, place.hosts.tell]):
            await place.handle.signal("close", "failed")
            with pytest.raises(WorkflowFailureError):
                await place.handle.result()
        assert place.hosts.told[lost["id"]]["state"] == "lost"

    at(temporal, do)


def test_a_worker_of_a_former_version_leaves_a_workflow_to_others(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = cards(1)

    async def do(place: Place) -> None:
        monkeypatch.setattr(workflow, "RULES", RULES - 1)
        await place.order("executor", batch)
        await until_attempts(place.handle, 2)
        assert "activity_task_scheduled" not in await place.events()
        monkeypatch.setattr(workflow, "RULES", RULES)  # another worker has it
        async with place.executor("executor"):
            await until(lambda: place.hosts.told, "the end")
            await place.handle.signal("close", "success")
            assert await place.handle.result() == "success"

    at(temporal, do)


async def until_attempts(handle: WorkflowHandle[Any, Any], count: int) -> None:
    """Wait until a workflow's task is attempted for the so manieth time."""
    for _ in range(600):
        if (await handle.describe()).raw_description.pending_workflow_task.attempt >= count:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("its task did not fail")


def test_an_end_waits_for_its_executor_for_longer_than_a_day(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over a weekend without the manager of a job."""
    monkeypatch.setattr(workflow, "_IDLE", timedelta(seconds=0.5))
    batch = cards(1)

    async def do(place: Place) -> None:
        await place.order("manager", batch)
        await place.until_events("timer_fired", 3)
        assert await place.is_running() and not place.hosts.told
        async with place.executor("manager"):
            assert await place.handle.result() == "nothing happened for a day"
        assert place.hosts.told.keys() == {batch[0]["id"]}

    at(temporal, do)
