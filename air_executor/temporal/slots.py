"""How many runs a host takes: its slots, which all its queues share."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable

from temporalio.worker import (
    CustomSlotSupplier,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
)


class HostSlots:
    """Counts the runs of a host: also those that its worker has taken over, and those that just begin."""

    def __init__(self, most: int, live: Callable[[], int]) -> None:
        """Have no run yet. Make it in the event loop of the worker.

        :param most: at most so many runs at a time. Each queue asks for one order ahead, so it may be one more for each
            queue but the first.
        :param live: returns how many runs the host has that have not ended.
        """
        self._most, self._live = most, live
        self._lock = threading.Lock()
        self._beginning = 0
        self._paused_until_s = 0.0
        self._suppliers: list[QueueSlots] = []
        self._loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()

    def supplier(self) -> QueueSlots:
        """Return what hands out slots for one queue."""
        self._suppliers.append(QueueSlots(self))
        return self._suppliers[-1]

    def take(self, supplier: QueueSlots) -> SlotPermit | None:
        """Return a slot in which to ask for an order; ``None``: there is none now."""
        with self._lock:
            taken = self._live() + self._beginning
            asking = sum(len(each.asking) for each in self._suppliers)
            if time.monotonic() < self._paused_until_s:
                return None
            if taken + asking < self._most or (taken < self._most and not supplier.asking):
                permit = SlotPermit()
                supplier.asking.add(permit)
                return permit
            return None

    def begin(self, supplier: QueueSlots, permit: SlotPermit) -> None:
        """Note that there is an order for a slot."""
        with self._lock:
            supplier.asking.discard(permit)
            self._beginning += 1

    def has_begun(self) -> None:
        """Note that the run of an order is among the live ones now, or won't be."""
        with self._lock:
            self._beginning -= 1
        self.note_change()

    def give_back(self, supplier: QueueSlots, permit: SlotPermit) -> None:
        """Note that a slot is not needed any more."""
        with self._lock:
            supplier.asking.discard(permit)
        self.note_change()

    def pause(self, seconds: float) -> None:
        """Take no order for so long."""
        self._paused_until_s = time.monotonic() + seconds
        self._loop.call_later(seconds, self.changed.set)

    def note_change(self) -> None:
        """Let those who wait for a slot look again. May be called in any thread."""
        self._loop.call_soon_threadsafe(self.changed.set)


class QueueSlots(CustomSlotSupplier):
    """The slots of a host, for one queue. See :class:`temporalio.worker.CustomSlotSupplier`."""

    def __init__(self, host: HostSlots) -> None:
        self._host = host
        #: Those in which an order is asked for. Some are never given back when a worker ends.
        self.asking: weakref.WeakSet[SlotPermit] = weakref.WeakSet()

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:  # noqa: ARG002
        """Return a slot, as soon as there is one."""
        while True:
            self._host.changed.clear()
            if (permit := self._host.take(self)) is not None:
                return permit
            await self._host.changed.wait()

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:  # noqa: ARG002
        """Return a slot, if there is one."""
        return self._host.take(self)

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        """Note that there is an order for a slot."""
        self._host.begin(self, ctx.permit)

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        """Note that a slot is not needed any more."""
        self._host.give_back(self, ctx.permit)
