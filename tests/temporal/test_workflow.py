"""The workflow of a DAG run on a real Temporal server, with activities that only pretend to run tasks."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle, WorkflowHistory
from temporalio.exceptions import ApplicationError
from temporalio.worker import Replayer, Worker

from air_executor.temporal.execution import AGAIN, DETACHED, UNFIT
from air_executor.temporal.workflow import MOST_AT_ONCE, MOST_EVENTS, NAME, RULES, DagRunWorkflow
from tests.temporal.conftest import Temporal

#: Recorded histories, each by the version of the workflow that wrote it. They must replay for ever: a workflow that is
#: open while AirExecutor is upgraded goes on with the new code.
HISTORIES = Path(__file__).parent / "histories"


class Hosts:
    """Activities as workers and executors have them."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.told: dict[str, Any] = {}
        self.release = asyncio.Event()
        self.release.set()
        self.is_stubborn = False
        """A task that is stopped ends when it is released."""
        self.stopped = 0

    @activity.defn(name="run")
    async def run(self, card: dict[str, Any]) -> dict[str, Any]:
        self.begun.append(card["id"])
        if card["summary"] == "detached":
            raise ApplicationError("the worker ends", "host", type=DETACHED)
        if card["summary"] == "unfit" and self.begun.count(card["id"]) == 1:
            raise ApplicationError("the disk of this host is full", type=UNFIT)
        if card["summary"] == "refused":
            raise ApplicationError("no key opens it")
        try:
            while not self.release.is_set():
                activity.heartbeat()  # by which it hears that it is stopped
                await asyncio.wait([asyncio.create_task(self.release.wait())], timeout=0.5)
        except asyncio.CancelledError:
            self.stopped += 1
            if self.is_stubborn:
                await self.release.wait()
            return {"state": "killed", "reason": "stopped"}
        return {"state": "succeeded", "reason": None}

    @activity.defn(name="attach")
    async def attach(self, card: dict[str, Any]) -> dict[str, Any]:
        return {"state": "succeeded", "reason": "by its host's next worker"}

    @activity.defn(name="judge")
    async def judge(self, identity: dict[str, Any], silent_s: float) -> str:
        return AGAIN  # on a crowded machine, an activity may not begin before it counts as silent

    @activity.defn(name="tell")
    async def tell(self, ends: list[dict[str, Any]]) -> None:
        for each in ends:
            assert each["id"] not in self.told, "told twice"
            self.told[each["id"]] = each["end"]


def cards(count: int, summary: str = "task") -> list[dict[str, Any]]:
    return [
        {"id": str(uuid.uuid4()), "summary": summary, "queue": "tasks", "identity": {}, "limits": {}}
        for _ in range(count)
    ]


async def history_of(
    temporal: Temporal,
    hosts: Hosts,
    batches: list[list[dict[str, Any]]],
    close: str = "success",
    successors: int = 0,
    **header: Any,
) -> tuple[WorkflowHandle[Any, Any], WorkflowHistory]:
    """Run a workflow with these orders to its end, and return it with its history."""
    client = await Client.connect(temporal.address)
    # In the sandbox, which is slow; the debug mode takes that for no deadlock.
    activities = [hosts.tell, hosts.judge]
    ours = Worker(client, task_queue="ours", workflows=[DagRunWorkflow], activities=activities, debug_mode=True)
    tasks = Worker(client, task_queue="tasks", activities=[hosts.run])
    host = Worker(client, task_queue="host", activities=[hosts.attach])
    async with ours, tasks, host:
        ids: set[str] = set()
        for batch in batches:
            handle = await client.start_workflow(
                NAME,
                {"dag": "d", "dag_run": "r", **header},
                id=f"airflow-{batches[0][0]['id']}",
                task_queue="ours",
                start_signal="order",
                start_signal_args=["ours", batch],
            )
            ids |= {card["id"] for card in batch}
            for _ in range(3000):
                if not successors or hosts.told.keys() >= ids:
                    break
                await asyncio.sleep(0.1)
        for _ in range(3000):
            if hosts.told.keys() >= ids:
                break
            await asyncio.sleep(0.1)
        assert hosts.told.keys() == ids
        await handle.signal("close", close)
        try:
            await handle.result()
        except WorkflowFailureError as error:
            assert close == "failed" and "failed" in str(error.cause)
        for number in range(2, 2 + successors):  # closed with the first
            assert await client.get_workflow_handle(f"{handle.id}~{number}").result() == close
        return handle, await handle.fetch_history()


async def serve(client: Client, hosts: Hosts, work: Callable[[], Awaitable[None]]) -> None:
    """Do something while workflows and activities are executed."""
    ours = Worker(client, task_queue="ours", workflows=[DagRunWorkflow], activities=[hosts.tell], debug_mode=True)
    async with ours, Worker(client, task_queue="tasks", activities=[hosts.run]):
        await work()


async def send(client: Client, workflow_id: str, batch: list[dict[str, Any]], **header: Any) -> None:
    """Order runs as an executor does."""
    await client.start_workflow(
        NAME,
        {"dag": "d", "dag_run": "r", "rules": RULES, **header},
        id=workflow_id,
        task_queue="ours",
        start_signal="order",
        start_signal_args=["ours", batch],
    )


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"still waiting for {what}")


def test_ends_are_told_once_and_history_is_short(temporal: Temporal) -> None:
    hosts = Hosts()
    batch = cards(200)
    # The second order repeats the first, as when its confirmation was lost.
    _, history = asyncio.run(history_of(temporal, hosts, [batch[:100], batch[:100], batch[100:]]))
    assert sorted(hosts.begun) == sorted(card["id"] for card in batch)
    assert len(history.events) <= 10 * len(batch)
    replay(history)


def test_runs_go_on_with_the_next_worker_and_failures_have_their_reason(temporal: Temporal) -> None:
    hosts = Hosts()
    detached, refused = cards(1, "detached"), cards(1, "refused")
    _, history = asyncio.run(history_of(temporal, hosts, [detached + refused], close="failed"))
    assert hosts.told == {
        detached[0]["id"]: {"state": "succeeded", "reason": "by its host's next worker"},
        refused[0]["id"]: {"state": "failed", "reason": "no key opens it"},
    }
    replay(history)


def test_an_order_that_a_host_can_not_take_goes_to_another(temporal: Temporal) -> None:
    hosts = Hosts()
    unfit = cards(1, "unfit")
    _, history = asyncio.run(history_of(temporal, hosts, [unfit]))
    assert hosts.begun == [unfit[0]["id"]] * 2
    assert hosts.told[unfit[0]["id"]]["state"] == "succeeded"
    replay(history)


def test_a_long_workflow_has_successors(temporal: Temporal) -> None:
    hosts = Hosts()
    batches = [cards(20) for _ in range(6)]

    _, history = asyncio.run(history_of(temporal, hosts, batches, successors=2, most_events=100))
    assert len(history.events) < 400
    replay(history)


@pytest.mark.parametrize("gone", ["successor", "first"])
def test_a_successor_that_is_gone_or_there_already_loses_no_order(temporal: Temporal, gone: str) -> None:
    """Somebody terminates the successor, or the first workflow while runs of its successor live."""

    async def run() -> list[WorkflowHistory]:
        client = await Client.connect(temporal.address)
        hosts, root = Hosts(), f"airflow-{uuid.uuid4()}"
        hosts.release.clear()
        batches = [cards(3) for _ in range(4)]
        handles = [client.get_workflow_handle(each) for each in (root, f"{root}~2")]

        async def order(batch: list[dict[str, Any]]) -> None:
            await send(client, root, batch, most_events=8)
            await until(lambda: set(hosts.begun) >= {card["id"] for card in batch}, "an order to begin")

        async def work() -> None:
            await order(batches[0])
            await order(batches[1])  # its successor's
            await handles[gone == "successor"].terminate()
            await order(batches[2])
            await order(batches[3])
            hosts.release.set()
            lost = batches[1] if gone == "successor" else batches[0]
            left = {card["id"] for batch in batches for card in batch} - {card["id"] for card in lost}
            await until(lambda: hosts.told.keys() >= left, "the ends")
            await handles[0].signal("close", "success")
            assert [await handle.result() for handle in handles] == ["success", "success"]

        await serve(client, hosts, work)
        return [await handle.fetch_history() for handle in handles]

    for history in asyncio.run(run()):
        replay(history)


def test_an_order_that_comes_while_its_workflow_is_cancelled_is_executed(temporal: Temporal) -> None:
    """As the retry of a task whose workflow somebody cancels in Temporal, while another task takes long to end."""
    hosts, root = Hosts(), f"airflow-{uuid.uuid4()}"
    hosts.release.clear()
    hosts.is_stubborn = True
    first, retry = cards(1), cards(1)

    async def run() -> list[WorkflowHistory]:
        client = await Client.connect(temporal.address)
        handle, successor = client.get_workflow_handle(root), client.get_workflow_handle(f"{root}~2")

        async def work() -> None:
            await send(client, root, first)
            await until(lambda: hosts.begun, "the first task")
            await handle.cancel()
            await until(lambda: hosts.stopped, "it to be stopped")
            await send(client, root, retry)
            await until(lambda: len(hosts.begun) == 2, "the retry")
            hosts.release.set()
            with pytest.raises(WorkflowFailureError):
                await handle.result()
            await until(lambda: len(hosts.told) == 2, "the ends")
            await successor.signal("close", "success")
            assert await successor.result() == "success"

        await serve(client, hosts, work)
        assert (await handle.describe()).status == WorkflowExecutionStatus.CANCELED
        return [await each.fetch_history() for each in (handle, successor)]

    histories = asyncio.run(run())
    assert hosts.told[retry[0]["id"]]["state"] == "succeeded"
    for history in histories:
        replay(history)


def test_a_queue_that_nobody_serves_keeps_no_other_waiting(temporal: Temporal) -> None:
    hosts, root = Hosts(), f"airflow-{uuid.uuid4()}"
    waiting, served = [{**card, "queue": "nobody's"} for card in cards(MOST_AT_ONCE + 1)], cards(1)

    async def run() -> WorkflowHistory:
        client = await Client.connect(temporal.address)

        async def work() -> None:
            for begin in range(0, len(waiting), 100):
                await send(client, root, waiting[begin : begin + 100], most_events=100_000)
            await send(client, root, served)
            await until(lambda: hosts.told, "the task whose queue is served")

        await serve(client, hosts, work)
        handle = client.get_workflow_handle(root)
        await handle.terminate()
        return await handle.fetch_history()

    history = asyncio.run(run())
    assert hosts.told.keys() == {served[0]["id"]}
    replay(history)


def test_runs_that_are_not_over_count_for_the_length_of_a_history(temporal: Temporal) -> None:
    hosts, root = Hosts(), f"airflow-{uuid.uuid4()}"
    hosts.release.clear()
    batches = [cards(20) for _ in range(3)]

    async def run() -> list[WorkflowHistory]:
        client = await Client.connect(temporal.address)
        handles = [client.get_workflow_handle(each) for each in (root, f"{root}~2", f"{root}~3")]

        def have_begun(count: int) -> bool:
            return len(hosts.begun) == count

        async def work() -> None:
            for number, batch in enumerate(batches, 1):
                await send(client, root, batch, most_events=100)
                await until(partial(have_begun, 20 * number), "the tasks")
            hosts.release.set()
            await until(lambda: len(hosts.told) == 60, "the ends")
            await handles[0].signal("close", "success")
            assert [await handle.result() for handle in handles] == ["success"] * 3

        await serve(client, hosts, work)
        return [await handle.fetch_history() for handle in handles]

    for history in asyncio.run(run()):
        assert len(history.events) < 250
        replay(history)


def test_more_than_a_thousand_tasks_of_one_dag_run_are_in_short_histories(temporal: Temporal) -> None:
    hosts = Hosts()
    batches = [cards(250) for _ in range(5)]
    most = MOST_EVENTS // 2  # which takes half as long
    _, history = asyncio.run(history_of(temporal, hosts, batches, successors=1, most_events=most))
    assert sorted(hosts.begun) == sorted(card["id"] for batch in batches for card in batch)
    assert most < len(history.events) < 2 * most
    replay(history)


def replay(history: WorkflowHistory) -> None:
    # Without the debug mode, two seconds without a turn on the CPU are a deadlock for it.
    asyncio.run(Replayer(workflows=[DagRunWorkflow], debug_mode=True).replay_workflow(history))


@pytest.mark.parametrize("path", sorted(HISTORIES.glob("*.json")), ids=lambda path: path.stem)
def test_histories_of_former_versions_replay(path: Path) -> None:
    document = json.loads(path.read_text())
    began = document["events"][0]["workflowExecutionStartedEventAttributes"]
    replay(WorkflowHistory.from_json(began["workflowId"], document))


def test_there_are_recorded_histories() -> None:
    assert list(HISTORIES.glob("*.json"))
