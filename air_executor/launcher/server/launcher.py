"""The launcher process: takes orders from executors, forks a runner for each, and tells when one has ended.

This is its loop: when it serves, when it waits, and when it ends. The modules beside it do the work: ``clients``
(connections and messages), ``births`` and ``spares`` (orders become runners), ``reaper`` and ``strays`` (children
end), ``janitor``, ``trials`` and ``chores`` (work beside), ``succession`` (the next launcher), ``farewell`` (SIGTERM).
"""

from __future__ import annotations

import math
import os
import resource
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from air_executor import __version__
from air_executor.config import Config
from air_executor.errors import ProtocolError, StateDirError
from air_executor.launcher import protocol
from air_executor.launcher.address import Address
from air_executor.launcher.exec import Spawn
from air_executor.launcher.order import Order
from air_executor.launcher.server.births import TRY_S, Births
from air_executor.launcher.server.chores import Chores
from air_executor.launcher.server.clients import Client, Clients
from air_executor.launcher.server.farewell import Farewell
from air_executor.launcher.server.janitor import PRUNE_S, Janitor
from air_executor.launcher.server.keeper import pass_on
from air_executor.launcher.server.listening import Listening
from air_executor.launcher.server.reaper import Reaper, Runner
from air_executor.launcher.server.spares import Spares
from air_executor.launcher.server.strays import Strays
from air_executor.launcher.server.succession import Succession, let_go_of_address
from air_executor.launcher.server.trials import Trials
from air_executor.launcher.server.wakeups import Wakeups
from air_executor.machine import children, system
from air_executor.runs.store import RunStore

if TYPE_CHECKING:
    from air_executor.launcher.preload.preloader import Preloader  # not for launchers that import nothing ahead

#: Without a client and without a runner, the launcher stays this many seconds for a scheduler that restarts.
_ABANDONED_S = 10.0

#: How often the launcher tries again to end what dead runners left, in seconds.
_STRAYS_S = 0.5


class Launcher:
    """Serves executors until there is nothing left to do."""

    def __init__(
        self,
        store: RunStore,
        config: Config,
        address: Address,
        listener: socket.socket,
        spawn: Spawn | None = None,
        preloader: Preloader | None = None,
        succession: Succession | None = None,
    ) -> None:
        """Prepare to serve.

        :param spawn: starts a runner for an order; without it, runners are forked from this process.
        :param preloader: decides what launchers import ahead, if they do.
        """
        self._config = config
        self._started_s = self._active_s = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._wakeups: Wakeups | None = None
        self._clients = Clients(self._selector, self._handle, greeting=self._hello, gone=self._client_gone)
        self._listening = Listening(listener, address, self._selector, self._clients.accept)
        self._spares = Spares(store, config, self._let_go, died=self._spare_died, are_used=spawn is None)
        self._farewell = Farewell(store, config)
        self._births = Births(
            spawn or self._spares.spawn,
            tell=self._clients.tell,
            born=self._born,
            may_start=lambda: not self._farewell.is_near,
        )
        self._chores = Chores(self._let_go)
        self._janitor = Janitor(store, config, address, self._chores)
        self._succession = succession or Succession(address, config)
        self._trials = (
            Trials(preloader, self._chores, self._selector, self._succession.wish) if preloader is not None else None
        )
        self._reaper = Reaper(
            store,
            Strays(has_others=children.has_older()),
            [self._spares, self._chores, self._succession],
            tell=self._clients.tell,
            ended=self._run_ended,
        )

    def serve(self) -> None:
        """Serve until the idle time is over, everybody has gone, or SIGTERM comes and what it asks for is done."""
        self._wakeups = Wakeups(self._selector, stop=self._on_sigterm, renew=self._on_sigusr2)
        self._listening.watch()
        while not self._may_end():
            for key, _ in self._selector.select(self._wait_s()):
                key.data()
            self._reaper.reap()
            self._listening.look()
            if self._farewell.is_near:
                self._take_leave()
                continue
            self._births.start_waiting()
            self._chores.end_overdue()
            self._janitor.work(prunes=not self._succession.is_over)
            if self._trials is not None and not (self._succession.is_under_way or self._succession.is_over):
                self._trials.begin_next()
            self._succession.look(self._listening.socket, self._watch_successor)
            self._fork_ahead()
            if self._is_useless() and self._retire():
                return
        self._listening.remove_file()
        self._spares.dismiss()

    # When to look again, and when to end

    def _wait_s(self) -> float:
        waits_s = (self._own_wait_s(), self._succession.due_in_s(), self._listening.due_in_s())
        return min(wait_s for wait_s in waits_s if wait_s is not None)

    def _own_wait_s(self) -> float:
        if self._reaper.is_clearing:
            return _STRAYS_S
        if self._farewell.is_near or self._births.waiting:
            return TRY_S
        if self._wants_spare():
            return self._spares.due_in_s()
        if self._reaper.has_runners:
            return PRUNE_S
        return max(0.0, min(self._patience_s() - (time.monotonic() - self._active_s), PRUNE_S))

    def _patience_s(self) -> float:
        idle_s = self._config.launcher_idle_seconds
        return idle_s if len(self._clients) or math.isinf(idle_s) else min(idle_s, _ABANDONED_S)

    def _may_end(self) -> bool:
        is_done = not self._reaper.has_runners and not self._reaper.is_clearing
        return self._farewell.is_immediate or (self._farewell.is_near and is_done)

    def _is_useless(self) -> bool:
        if self._reaper.has_runners or self._reaper.is_clearing or self._births.waiting:
            return False
        if self._succession.is_under_way:
            return False
        return self._succession.is_over or time.monotonic() - self._active_s >= self._patience_s()

    def _retire(self) -> bool:
        """Leave the address, unless a message waits or somebody is about to connect; tell whether it is left."""
        if self._succession.is_over:
            if self._selector.select(0):
                return False
            self._listening.remove_file()
            return True
        if not self._listening.address.lock.parent.is_dir():  # to lock a file would make its folder again
            self._leave()
            return True
        # Imported late: each fork of a runner or task would pay for the fork handlers that it registers.
        from filelock import FileLock, Timeout

        # Whoever starts a launcher holds this lock, so none starts at this address while this one leaves it. An
        # executor that connects at the last moment finds its connection closed, and starts the next launcher.
        try:
            with FileLock(self._listening.address.lock, timeout=0):
                if self._selector.select(0):
                    return False
                self._leave()
                return True
        except Timeout:
            return False

    def _take_leave(self) -> None:
        """Drain: take no new orders, and let the runs end, or stop them. The next launcher gets orders that wait."""
        if self._farewell.begin():
            self._leave()
        self._farewell.stop(self._reaper.runs)

    def _leave(self) -> None:
        self._listening.close()
        self._spares.dismiss()

    def _on_sigterm(self, *_: object) -> None:
        self._farewell.ask()
        if self._listening.address.is_service:  # its service manager knows the first launcher only
            pass_on(signal.SIGTERM)

    def _on_sigusr2(self, *_: object) -> None:
        if self._succession.is_over:
            pass_on(signal.SIGUSR2)
        else:
            self._succession.wish(now=True)

    # The successor

    def _watch_successor(self, ready: socket.socket) -> None:
        def hear() -> None:
            self._selector.unregister(ready)
            if self._succession.hear():
                self._hand_over()

        self._selector.register(ready, selectors.EVENT_READ, hear)

    def _hand_over(self) -> None:
        """Leave the address to the successor, and listen at another one, for whoever follows the present runs."""
        self._spares.dismiss()
        address = let_go_of_address(self._listening.address)
        try:
            self._listening.move(address)
        except (OSError, StateDirError) as error:
            print(f"executors that come from now on follow these runs by their records: {error}", flush=True)
        system.set_title(f"air-executor launcher {address.key}")
        self._clients.tell_all({"type": "superseded"})

    # Messages

    def _handle(self, client: Client, message: dict[str, Any], body: bytes) -> None:
        kind, run_id = message.get("type"), message.get("id")
        client.orders |= kind in ("start", "follow")
        client.asks |= kind == "status"
        if kind == "start":
            self._births.order(client, message, body)
        elif kind == "status":
            self._clients.tell(client, {"type": "status", **self._status()})
        elif kind == "follow":
            self._reaper.follow(client, run_id)
        elif kind in ("stop", "kill"):
            self._reaper.end(client, run_id, kind)
        elif kind == "keep":
            self._janitor.keep(message)
        else:
            raise ProtocolError(f"a message of type {kind!r}")

    def _client_gone(self, client: Client) -> None:
        self._reaper.forget(client)
        if client.is_executor:  # requests for the status alone do not keep a launcher from ending
            self._active_s = time.monotonic()

    def _hello(self) -> dict[str, Any]:
        return {"type": "hello", **self._status()}

    def _status(self) -> dict[str, Any]:
        troubles = (self._succession.trouble(), self._spares.trouble())
        return {
            "pid": os.getpid(),
            "version": __version__,
            "protocol": protocol.VERSION,
            "understands": protocol.OLDEST,
            "launch": self._config.launch,
            "age_s": round(time.monotonic() - self._started_s, 1),
            "runners": len(self._reaper),
            "waiting": len(self._births.waiting),
            "clients": len(self._clients),
            "hides_processes": children.hides_processes(),
            "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "spare_deaths": self._spares.deaths,
            "troubles": [trouble for trouble in troubles if trouble],
            **self._succession.status(),
        }

    # Runners

    def _born(self, pid: int, order: Order, client: Client) -> None:
        self._reaper.adopt(pid, Runner(order.id, order.workload_id, client))
        self._spares.pause()

    def _spare_died(self) -> None:
        self._clients.tell_all({"type": "spare_died"})

    def _run_ended(self, run_id: str) -> None:
        self._active_s = time.monotonic()
        if self._trials is not None:
            self._trials.take_note(run_id)

    def _wants_spare(self) -> bool:
        """Whether an order may come for which no spare is ready."""
        may_come = len(self._clients) > 0 and not self._births.waiting and not self._succession.is_over
        return may_come and self._spares.is_one_missing

    def _fork_ahead(self) -> None:
        """Fork a spare when it is due, and there is nothing else to do."""
        if self._wants_spare() and self._spares.due_in_s() <= 0 and not self._selector.select(0):
            self._spares.fork_ahead()

    def _let_go(self) -> None:
        """In a forked child: close and reset what belongs to the launcher."""
        if self._wakeups is not None:
            self._wakeups.let_go()
        # Whatever the launcher listens to, such as a trial or a successor: a child that held it would hide its end.
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._listening.socket.close()
        self._clients.forget()
        self._births.forget()
        self._spares.dismiss()  # closes this process's copy only: the launcher's spare waits on
