"""Births: each order becomes a runner, first come, first served, as soon as the machine has room for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from air_executor.errors import ProtocolError
from air_executor.launcher.exec import Spawn
from air_executor.launcher.order import Order
from air_executor.launcher.server.clients import Client
from air_executor.machine import system

#: How often orders that wait for room are tried again, in seconds.
TRY_S = 1.0


@dataclass
class Waiting:
    """An order that waits for the machine to have room for its runner."""

    order: Order
    client: Client
    until_s: float
    """When it is refused, on the monotonic clock."""


class Births:
    """Turns orders into runners, and answers them: ``started`` or ``refused``."""

    def __init__(
        self,
        spawn: Spawn,
        *,
        tell: Callable[[Client | None, dict[str, Any]], None],
        born: Callable[[int, Order, Client], None],
        may_start: Callable[[], bool],
    ) -> None:
        """Begin without orders.

        :param tell: sends a message to a client.
        :param born: called with each new runner's process id.
        :param may_start: whether orders become runners now; otherwise they wait.
        """
        self._spawn = spawn
        self._tell = tell
        self._born = born
        self._may_start = may_start
        self.waiting: deque[Waiting] = deque()

    def order(self, client: Client, message: Mapping[str, Any], body: bytes) -> None:
        """Take a ``start`` message. An invalid one is refused, and affects no other."""
        try:
            order = Order.from_message(message, body)
        except ProtocolError as error:
            request = message.get("request")
            self._refuse(client, request.get("id") if isinstance(request, dict) else None, error)
            return
        self.waiting.append(Waiting(order, client, time.monotonic() + system.NO_ROOM_S))
        if len(self.waiting) == 1:  # otherwise it waits behind the others
            self.start_waiting()

    def start_waiting(self) -> None:
        """Start runners for the orders that wait, until the machine has no room for more."""
        while self.waiting and self._may_start():
            first = self.waiting[0]
            try:
                pid = self._spawn(first.order)
            except Exception as error:
                if isinstance(error, OSError) and system.has_no_room(error) and time.monotonic() < first.until_s:
                    return
                self._refuse(first.client, first.order.id, error)
            else:
                self._born(pid, first.order, first.client)
                self._tell(first.client, {"type": "started", "id": first.order.id, "pid": pid})
            self.waiting.popleft()

    def forget(self) -> None:
        """In a forked child: drop the orders that wait: they hold other tasks' tokens."""
        self.waiting.clear()

    def _refuse(self, client: Client, run_id: Any, error: Exception) -> None:
        self._tell(client, {"type": "refused", "id": run_id, "reason": f"no runner could be started: {error}"})
