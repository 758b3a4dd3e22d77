"""How many runs a host takes: its slots, which all its queues share."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import Callable

import psutil
from temporalio.worker import (
    CustomSlotSupplier,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
)

from air_executor.machine import room

#: A host that can take nothing pauses for this many seconds, each time twice as long, up to the last.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 30.0, 240.0

#: Without a number of slots, no order is taken while more than these parts of memory and CPUs are in use.
_MEMORY, _CPU = 0.85, 0.9

#: How often that is measured, and how soon after one slot the next is handed out, in seconds.
_MEASURE_S, _RAMP_S = 0.5, 0.05


class Room:
    """Measures whether this machine has memory and CPU time for another run."""

    def __init__(self) -> None:
        """Begin to measure."""
        self._measured_s = time.monotonic()
        self._is_there = True
        psutil.cpu_percent()  # from now on

    def __call__(self) -> bool:
        """Tell whether there is room, as it was half a second ago at most."""
        if time.monotonic() - self._measured_s >= _MEASURE_S:
            self._measured_s = time.monotonic()
            free = room.available_bytes() / room.memory_bytes()
            self._is_there = free > 1 - _MEMORY and psutil.cpu_percent() < 100 * _CPU
        return self._is_there


class HostSlots:
    """Counts the runs of a host: also those that its worker has taken over, and those that just begin."""

    def __init__(self, most: int | None, live: Callable[[], int], has_room: Callable[[], bool] | None = None) -> None:
        """Have no run yet. Make it in the event loop of the worker.

        :param most: at most this many runs at a time. Each queue asks for one order ahead, so it may be one more for
            each queue but the first. ``None``: one, and more while there is room.
        :param live: returns how many runs the host has that have not ended.
        :param has_room: tells whether there is, if not :class:`Room` does.
        """
        self._most, self._live = most, live
        self._has_room = (has_room or Room()) if most is None else None
        #: Nobody tells when there is room again.
        self.look_s = _MEASURE_S if most is None else None
        self._next_s = 0.0
        self._lock = threading.Lock()
        self._beginning = 0
        self._paused_until_s = 0.0
        self._pause_s = _FIRST_PAUSE_S
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
            if self._most is None:
                is_free = self._is_free(taken + asking)
            else:
                is_free = taken + asking < self._most or (taken < self._most and not supplier.asking)
            if not is_free:
                return None
            permit = SlotPermit()
            supplier.asking.add(permit)
            return permit

    def _is_free(self, taken: int) -> bool:
        """Tell whether there is a slot where room decides. Slots come one after the other: each may use much of it."""
        if taken and (time.monotonic() < self._next_s or (self._has_room is not None and not self._has_room())):
            return False
        self._next_s = time.monotonic() + _RAMP_S
        return True

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

    def pause(self) -> float:
        """Take no order for a while, longer each time until one was fit, and return for how many seconds."""
        left_s = self._paused_until_s - time.monotonic()
        if left_s > 0:
            return left_s  # another order, which was on its way
        seconds, self._pause_s = self._pause_s, min(2 * self._pause_s, _LAST_PAUSE_S)
        self._paused_until_s = time.monotonic() + seconds
        self._loop.call_later(seconds, self.changed.set)
        return seconds

    def note_fit(self) -> None:
        """Note that the host could take an order."""
        self._pause_s = _FIRST_PAUSE_S

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
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._host.changed.wait(), self._host.look_s)

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:  # noqa: ARG002
        """Return a slot, if there is one."""
        return self._host.take(self)

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        """Note that there is an order for a slot."""
        self._host.begin(self, ctx.permit)

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        """Note that a slot is not needed any more."""
        self._host.give_back(self, ctx.permit)
