"""Temporal takes 2 MB in one payload and 4 MB in one call, and ends a workflow whose history is too long."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Worker

from air_executor.temporal.sizes import first_of, size, slowness
from tests.temporal.conftest import Temporal
from tests.temporal.test_workflow import Hosts, cards, replay, send, serve, until

MANY = 120


def test_sizes_are_those_of_temporals_json() -> None:
    assert [size(text) for text in ("aa", "é", "字", "😀", "\n")] == [4, 8, 8, 14, 4]
    assert first_of(["a" * 8] * 5, 25) == ["a" * 8] * 2
    assert first_of(["a" * 100, "a"], 25) == ["a" * 100]


@pytest.mark.parametrize(
    ("events", "missing"), [(100, 1), (12_000, 1), (100, 64), (12_000, 64), (100, 500), (12_000, 500), (6_000, 1000)]
)
def test_who_looks_for_runs_for_a_year_has_no_history_that_is_too_long(events: int, missing: int) -> None:
    """A look every 10 s at first, then every 5 minutes; each adds 6 events for each run."""
    pauses, now_s = [10.0] * 6 + [20.0, 40.0, 80.0, 160.0], 0.0
    while now_s < 365 * 86400:
        now_s += (pauses.pop(0) if pauses else 300.0) * slowness(events, 800 * events, missing)
        events += 6 * missing
    assert events < 50_000


def test_a_host_that_is_dead_is_found_as_soon_as_ever() -> None:
    assert slowness(12_000, 15 << 20, 64) == slowness(6_000, 15 << 20, 500) == 1
    assert [slowness(30_000, 0, 1), slowness(0, 30 << 20, 1)] == [2**6, 2**6]


class Verbose(Hosts):
    """Hosts whose tasks end with long reasons, and an executor that is slow to take the first end."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0
        self.batches: list[int] = []

    @activity.defn(name="run")
    async def run(self, card: dict[str, Any]) -> dict[str, Any]:
        self.ended += 1
        return {"state": "failed", "reason": "字" * 8000}

    @activity.defn(name="tell")
    async def tell(self, ends: list[dict[str, Any]]) -> None:
        await until(lambda: self.ended == MANY, "all tasks")
        await super().tell(ends)
        self.batches.append(len(json.dumps(ends)))


class Detached(Hosts):
    """Hosts whose workers leave all runs to the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.attached: list[dict[str, Any]] = []

    @activity.defn(name="attach")
    async def attach(self, card: dict[str, Any]) -> dict[str, Any]:
        self.attached.append(card)
        return {"state": "succeeded", "reason": None}


@pytest.fixture
def root() -> str:
    return f"airflow-{uuid.uuid4()}"


def test_long_ends_are_told_in_several_parts(temporal: Temporal, root: str) -> None:
    hosts = Verbose()

    async def run() -> WorkflowHistory:
        client = await Client.connect(temporal.address)
        handle = client.get_workflow_handle(root)

        async def work() -> None:
            await send(client, root, cards(MANY))
            await until(lambda: len(hosts.told) == MANY, "the ends")
            await handle.signal("close", "success")
            assert await handle.result() == "success"

        await serve(client, hosts, work)
        return await handle.fetch_history()

    history = asyncio.run(run())
    assert max(hosts.batches) < 600_000
    replay(history)


def test_large_orders_that_come_at_once_are_offered_one_after_the_other(temporal: Temporal, root: str) -> None:
    """As after an outage of all workers; their hosts are asked for the runs again without what was sealed."""
    hosts = Detached()
    batches = [[{**card, "sealed": "x" * 190_000} for card in cards(1, "detached")] for _ in range(40)]

    async def run() -> WorkflowHistory:
        client = await Client.connect(temporal.address)
        handle = client.get_workflow_handle(root)

        async def work() -> None:
            await until(lambda: len(hosts.told) == 40, "the ends")
            await handle.signal("close", "success")
            assert await handle.result() == "success"

        for batch in batches:
            await send(client, root, batch)
        async with Worker(client, task_queue="host", activities=[hosts.attach]):
            await serve(client, hosts, work)
        return await handle.fetch_history()

    history = asyncio.run(run())
    assert [card.keys() & {"sealed", "stop"} for card in hosts.attached] == [{"stop"}] * 40
    replay(history)
