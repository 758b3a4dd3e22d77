"""Tasks that wait for GPUs. While they wait, they hold no slot and no process.

A GPU is free when nobody holds its lock and no run was ordered for it. Executors that share a state directory take
turns: while one has ordered runs that have not leased their GPUs yet, no other orders any such run.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

from air_executor.airflow.compat import workloads
from air_executor.errors import LimitsError, RecordError
from air_executor.runs import limits
from air_executor.runs import record as runs
from air_executor.runs.backend import RunBackend
from air_executor.runs.record import RunState

#: How often, in seconds, the queue is written to a file for other processes, and how many of its entries.
_PUBLISH_S = 1.0
_MAX_PUBLISHED = 1000


@dataclass(frozen=True, order=True)
class _Waiting:
    rank: tuple[int, int]
    """Priority and arrival: higher priorities first, then first come, first served."""
    key: Any = field(compare=False)
    workload: Any = field(compare=False)
    gpus: int = field(compare=False)
    ti_id: str = field(compare=False)
    name: str = field(compare=False)
    dag_id: str | None = field(compare=False)
    since: str = field(compare=False)


class GpuQueue:
    """The tasks of one executor that wait for GPUs."""

    def __init__(self) -> None:
        self._backend: RunBackend
        self._waiting: dict[Any, _Waiting] = {}
        self._numbers = itertools.count()
        #: Runs that were ordered and have not leased their GPUs yet: how many GPUs, and the task instance.
        self._promised: dict[str, tuple[int, str]] = {}
        self._has_turn = False
        self._is_published = True
        self._next_publish_s = 0.0

    def open(self, backend: RunBackend) -> None:
        """Accept workloads from now on.

        :param backend: where their runs will happen, and the GPUs are.
        """
        self._backend = backend

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: object) -> bool:
        return key in self._waiting

    def keys(self) -> set[Any]:
        """Return the keys of the workloads that wait."""
        return set(self._waiting)

    def instances(self) -> list[str]:
        """Return the ids of the task instances that wait here, or whose runs may wait for their leases."""
        return [each.ti_id for each in self._waiting.values()] + [ti_id for _, ti_id in self._promised.values()]

    def takes(self, key: Any, workload: Any) -> bool:
        """Queue a workload if it needs GPUs; return whether it does.

        A workload that asks for more than there are does not wait: its runner refuses it and says why.
        """
        air = workloads.executor_config(workload).get("air")
        if not isinstance(air, dict) or not air.get("gpus"):
            return False
        try:
            count = limits.parse(limits.as_json(air)).gpus or 0
        except LimitsError:
            return False
        if not 0 < count <= self._backend.gpus.size:
            return False
        identity = workloads.identity_of(workload, team=None)
        rank = -workloads.priority_of(workload), next(self._numbers)
        name = f"{identity.dag_id}.{identity.task_id}" if identity.dag_id else identity.name
        self._waiting[key] = _Waiting(
            rank, key, workload, count, identity.workload_id, name, identity.dag_id, runs.now()
        )
        self._is_published = False
        return True

    def drop(self, key: Any) -> bool:
        """Remove a workload; return whether it waited."""
        dropped = self._waiting.pop(key, None) is not None
        self._is_published = self._is_published and not dropped
        return dropped

    def key_of(self, ti_id: str) -> Any:
        """Return the key of a task instance that waits; ``None`` when it does not."""
        return next((each.key for each in self._waiting.values() if each.ti_id == ti_id), None)

    def promise(self, run_id: str, count: int, ti_id: str) -> None:
        """Remember that a run was ordered which will lease ``count`` GPUs."""
        self._promised[run_id] = count, ti_id

    def ready(self, slots: int) -> list[tuple[Any, Any]]:
        """Remove the workloads that are next and whose GPUs are free; return their keys and workloads.

        Nothing overtakes a workload that needs more GPUs than are free: otherwise it could wait for ever.

        :param slots: how many workloads at most.
        """
        ready: list[tuple[Any, Any]] = []
        self._forget_promises()
        if self._waiting and self._take_turn():
            free = self._backend.gpus.free() - sum(count for count, _ in self._promised.values())
            line = list(self._waiting.values())
            heapq.heapify(line)
            while line and line[0].gpus <= free and len(ready) < slots:
                each = heapq.heappop(line)
                free -= each.gpus
                self.drop(each.key)
                ready.append((each.key, each.workload))
        if not self._promised and not ready:
            self._leave_turn()
        self._publish()
        return ready

    def _forget_promises(self) -> None:
        for run_id in list(self._promised):
            with contextlib.suppress(RecordError):
                record = self._backend.record(run_id)
                if record.state in (RunState.QUEUED, RunState.STARTING) and record.gpus is None:
                    continue
            del self._promised[run_id]

    def _take_turn(self) -> bool:
        self._has_turn = self._backend.gpus.take_turn()
        return self._has_turn

    def _leave_turn(self) -> None:
        if self._has_turn:
            self._backend.gpus.leave_turn()
            self._has_turn = False

    def clear(self) -> None:
        """Remove everything."""
        self._is_published = self._is_published and not self._waiting
        self._waiting.clear()

    def close(self) -> None:
        """Release everything. What waits stays queued in Airflow, which offers it to the next executor."""
        self._waiting.clear()
        self._promised.clear()
        self._leave_turn()

    def _publish(self) -> None:
        if self._is_published or time.monotonic() < self._next_publish_s:
            return
        self._next_publish_s = time.monotonic() + _PUBLISH_S
        self._is_published = True
        line = heapq.nsmallest(_MAX_PUBLISHED, self._waiting.values())
        document = [
            {
                "name": each.name,
                "dag_id": each.dag_id,
                "gpus": each.gpus,
                "of": self._backend.gpus.size,
                "since": each.since,
            }
            for each in line
        ]
        self._backend.gpus.publish(document)
