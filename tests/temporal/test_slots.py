"""The slots of a host: all its queues share them, and runs that were taken over count."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import psutil
import pytest

from air_executor.machine import room
from air_executor.temporal.slots import HostSlots, QueueSlots, Room


class Context:
    """What the SDK hands to a supplier, as far as it is looked at."""

    def __init__(self, permit: Any = None) -> None:
        self.permit = permit


def used(supplier: QueueSlots, permit: Any) -> None:
    supplier.mark_slot_used(cast(Any, Context(permit)))


def given_back(supplier: QueueSlots, permit: Any) -> None:
    supplier.release_slot(cast(Any, Context(permit)))


def test_one_queue_never_has_more_than_there_are() -> None:
    async def check() -> None:
        live: list[str] = []
        slots = HostSlots(2, lambda: len(live))
        queue = slots.supplier()
        first = await queue.reserve_slot(cast(Any, Context()))
        second = await queue.reserve_slot(cast(Any, Context()))
        assert queue.try_reserve_slot(cast(Any, Context())) is None
        used(queue, first)
        live.append("first")
        slots.has_begun()
        assert queue.try_reserve_slot(cast(Any, Context())) is None
        used(queue, second)  # it has not begun yet, and counts
        assert queue.try_reserve_slot(cast(Any, Context())) is None
        waiting = asyncio.create_task(queue.reserve_slot(cast(Any, Context())))
        await asyncio.sleep(0)
        live.clear()
        slots.note_change()
        await asyncio.wait_for(waiting, 10)
        given_back(queue, first)

    asyncio.run(check())


def test_queues_that_ask_leave_each_other_room() -> None:
    async def check() -> None:
        live: list[str] = []
        slots = HostSlots(2, lambda: len(live))
        busy, idle = slots.supplier(), slots.supplier()
        # The SDK keeps permits. One that is gone was lost by it, and counts no more.
        asked = [busy.try_reserve_slot(cast(Any, Context())) for _ in range(2)]
        # All slots are asked for, none is taken: the other queue may ask for one order.
        asked.append(idle.try_reserve_slot(cast(Any, Context())))
        assert None not in asked
        assert idle.try_reserve_slot(cast(Any, Context())) is None
        live += ["taken", "over"]
        third = slots.supplier()
        assert third.try_reserve_slot(cast(Any, Context())) is None

    asyncio.run(check())


@pytest.mark.parametrize("most", [2, None])
def test_a_host_that_can_take_nothing_takes_nothing_for_a_while(
    most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("air_executor.temporal.slots._FIRST_PAUSE_S", 0.2)

    async def check() -> None:
        slots = HostSlots(most, lambda: 0)
        queue = slots.supplier()
        assert slots.pause() == 0.2
        assert 0 < slots.pause() <= 0.2, "a second order was on its way"
        assert queue.try_reserve_slot(cast(Any, Context())) is None
        assert await asyncio.wait_for(queue.reserve_slot(cast(Any, Context())), 10) is not None

    asyncio.run(check())


def test_without_a_number_a_host_takes_orders_while_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("air_executor.temporal.slots._MEASURE_S", 0.05)

    async def check() -> None:
        live: list[str] = []
        has_room = False
        slots = HostSlots(None, lambda: len(live), lambda: has_room)
        queue = slots.supplier()
        first = await asyncio.wait_for(queue.reserve_slot(cast(Any, Context())), 10)  # one it can have always
        used(queue, first)
        live.append("first")
        slots.has_begun()
        await asyncio.sleep(0.1)
        assert queue.try_reserve_slot(cast(Any, Context())) is None
        waiting = asyncio.create_task(queue.reserve_slot(cast(Any, Context())))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        has_room = True  # nobody tells that
        second = await asyncio.wait_for(waiting, 10)
        assert queue.try_reserve_slot(cast(Any, Context())) is None, "the second is not felt yet"
        await asyncio.sleep(0.1)
        assert queue.try_reserve_slot(cast(Any, Context())) is not None
        given_back(queue, second)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("free", "cpu", "has_room"), [(50, 50.0, True), (16, 89.0, True), (14, 10.0, False), (50, 91.0, False)]
)
def test_room_is_measured(free: int, cpu: float, has_room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("air_executor.temporal.slots._MEASURE_S", 0)
    monkeypatch.setattr(room, "available_bytes", lambda: free)
    monkeypatch.setattr(room, "memory_bytes", lambda: 100)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: cpu)
    assert Room()() is has_room
