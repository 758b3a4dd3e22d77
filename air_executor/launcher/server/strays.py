"""What dead runners leave behind: processes that the launcher adopts as orphans, and kills."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from air_executor.machine import children, marks, processes
from air_executor.machine.leftovers import CLEANS_UP_S, STUCK_S
from air_executor.machine.processes import Process


@dataclass
class DeadRunner:
    """A runner that died. Its run ends when nothing of it is left."""

    run_id: str
    workload_id: str
    pid: int
    tell: Callable[[list[Process]], None]
    """Called once, with what could not be killed."""
    died_s: float = field(default_factory=time.monotonic)


class Strays:
    """Kills what dead runners leave, and tells when nothing of a run is left. It never waits.

    The launcher adopts orphans. So a child that it did not start comes from a runner that died; when such a child
    dies, the launcher adopts its children in turn.
    """

    def __init__(self, *, has_others: bool = False) -> None:
        """:param has_others: this process has children from before it was the launcher."""
        self._dead: list[DeadRunner] = []
        #: Children that may outlive their task, or can't be killed.
        self._left_alone: set[int] = set()
        #: The first process of a container adopts all its orphans, even those of a shell that somebody opens there.
        self._has_others = has_others or os.getpid() == 1
        self._is_due = False

    @property
    def are_due(self) -> bool:
        """Whether :meth:`end` has something to do."""
        return self._is_due or bool(self._dead)

    def expect(self, dead: DeadRunner | None = None) -> None:
        """Take note that there may be strays: of ``dead``, or of any other process that has died."""
        self._is_due = True
        if dead is not None:
            self._dead.append(dead)

    def reaped(self, pid: int) -> None:
        """Take note that a stray has ended: the launcher adopts its children now."""
        self._left_alone.discard(pid)
        children.reaped(pid)
        self._is_due = True

    def end(self, own: Collection[int]) -> None:
        """Kill the present strays, and report the ends of runs of which nothing is left.

        :param own: the launcher's own children, which are no strays.
        """
        self._is_due = False
        left = self._kill(own)
        for dead in list(self._dead):
            of_it = [process for process, of in left if of in (None, dead)]
            if of_it and time.monotonic() - dead.died_s < STUCK_S:
                continue
            self._left_alone |= {process.pid for process in of_it}
            self._dead.remove(dead)
            dead.tell([process for process in of_it if not process.is_dead])

    def _kill(self, own: Collection[int]) -> list[tuple[Process, DeadRunner | None]]:
        """Kill strays. Return those that are still there, each with the runner that left it, if that is known."""
        left = []
        for pid in children.children():
            if pid in own or pid in self._left_alone:
                continue
            process = processes.look(pid) or Process(pid, "hidden", "?", os.getpid(), 0, 0, None)
            owner = marks.whose(pid)
            dead = self._dead_runner(process, owner)
            if dead is None and marks.is_launcher(pid):  # a successor's successor, adopted when the successor ended
                self._left_alone.add(pid)
                continue
            if self._has_others and dead is None and owner is None and not process.is_dead:
                continue
            if marks.is_kept(pid):
                self._left_alone.add(pid)
                continue
            if dead is None or time.monotonic() - dead.died_s >= CLEANS_UP_S or not marks.is_cleaner(pid):
                processes.kill(pid)
            left.append((process, dead))
        return left

    def _dead_runner(self, process: Process, owner: str | None) -> DeadRunner | None:
        for dead in self._dead:
            if process.session == dead.pid or (
                owner is not None and owner in marks.signs_of(dead.run_id, dead.workload_id)
            ):
                return dead
        return None
