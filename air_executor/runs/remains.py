"""Runs whose runner and launcher are both gone: nothing of them may live on when their end is reported."""

from __future__ import annotations

import functools
import os
import signal
import time
from dataclasses import dataclass, field

from air_executor.machine import leftovers, marks, processes, system
from air_executor.machine.processes import Process, ProcessId

#: All processes of the machine are looked at no more often than this, however many runs have died, in seconds.
_TABLE_S = 0.5


@dataclass(frozen=True)
class DeadRun:
    """What is known of a run whose runner died, to find its processes."""

    id: str
    workload_id: str
    runner: ProcessId | None
    task_pid: int | None

    @functools.cached_property
    def signs(self) -> tuple[str, ...]:
        """What identifies its processes, wherever they are, see :func:`marks.signs_of`."""
        return marks.signs_of(self.id, self.workload_id)


@dataclass
class _Table:
    """All processes that this one can see, and whose they are."""

    taken_s: float = field(default_factory=time.monotonic)
    living: dict[int, Process] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)

    @classmethod
    def take(cls) -> _Table:
        table = cls()
        for pid in processes.all_pids():
            process = processes.look(pid)
            if process is not None and not process.is_dead:
                table.living[pid] = process
                if (owner := marks.whose(pid)) is not None:
                    table.owners[pid] = owner
        return table

    def of(self, run: DeadRun) -> list[Process]:
        """Return a run's processes: its runner's session, those with its signs, and all that these started."""
        found = {pid for pid, process in self.living.items() if self._belongs(process, run)}
        offspring: dict[int, list[int]] = {}
        for process in self.living.values():
            offspring.setdefault(process.parent, []).append(process.pid)
        kept = {pid for pid in found if marks.is_kept(pid)}
        doomed: set[int] = set()
        left = list(found - kept)
        while left:
            pid = left.pop()
            if pid not in doomed and pid not in kept and pid != os.getpid():
                doomed.add(pid)
                left += [child for child in offspring.get(pid, ()) if not marks.is_kept(child)]
        return [self.living[pid] for pid in doomed]

    def _belongs(self, process: Process, run: DeadRun) -> bool:
        owner = self.owners.get(process.pid)
        if owner is not None:
            return owner in run.signs
        runner = run.runner
        if runner is None or runner.ticks is None or process.ticks is None or not runner.is_of_here:
            return False
        # The kernel reuses no pid that is the id of a session or group. So if the leader is the run's, or dead, and
        # this process is younger than the runner, it is the run's.
        leaders = {process.session, process.group} & {pid for pid in (runner.pid, run.task_pid) if pid and pid > 1}
        return bool(leaders) and process.ticks >= runner.ticks and all(self._is_led(leader, run) for leader in leaders)

    def _is_led(self, leader: int, run: DeadRun) -> bool:
        """Tell whether a session or group of this id is a run's: its leader is, or is dead."""
        process = self.living.get(leader)
        if process is None or run.runner is None:
            return process is None
        if leader == run.runner.pid:
            return process.ticks == run.runner.ticks
        return process.session == run.runner.pid or self.owners.get(leader) in run.signs


class Undertaker:
    """Ends what is left of runs whose runner and launcher are both gone. No call waits for anything."""

    def __init__(self) -> None:
        self._table: _Table | None = None
        #: By run, on the monotonic clock: when it was first found dead, and when its processes were last killed.
        self._since_s: dict[str, float] = {}
        self._looked_s: dict[str, float] = {}

    def end(self, run: DeadRun) -> list[Process] | None:
        """Kill what is left of a run.

        :return: ``None`` while something may be left, so that a later call must look again; then what can't be killed.
        """
        now_s = time.monotonic()
        since_s, looked_s = self._since_s.setdefault(run.id, now_s), self._looked_s.setdefault(run.id, now_s)
        if self._table is None or self._table.taken_s < looked_s:
            # One look at the machine serves all runs that died before it.
            if self._table is not None and now_s - self._table.taken_s < _TABLE_S:
                return None
            self._table = _Table.take()
        left = self._table.of(run)
        for process in left:
            if now_s - since_s < leftovers.CLEANS_UP_S and marks.is_cleaner(process.pid):
                continue
            system.signal_if(process.pid, process.id.lives, signal.SIGKILL)
        if left and now_s - since_s < leftovers.STUCK_S:
            self._looked_s[run.id] = time.monotonic()
            return None
        del self._since_s[run.id], self._looked_s[run.id]
        return [process for process in left if process.id.lives()]
