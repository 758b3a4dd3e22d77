"""The places of a job's runners: as many as the job may have runners at a time."""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Iterator

#: The place of a task whose runner's place is not known, as after ``max_runners`` was lowered.
UNKNOWN = -1


class Places:
    """Which tasks of a job have a runner, and in which place. Places are numbered from 0.

    A runner holds the lock of its place's workload id, so even two managers have one runner in each place.
    """

    def __init__(self, job_id: str, name: str) -> None:
        """Begin with no runner.

        :param name: the job's. A copy of the job below another name has its id, too.
        """
        self._job_id, self._name = job_id, name
        self._of_tasks: dict[str, int] = {}
        #: Free places below :attr:`used`, as a heap.
        self._free: list[int] = []
        self.used = 0
        """All places that were ever taken are below this number."""
        self._workload_ids: dict[int, str] = {}
        #: Workload ids of runs that a former version has ordered.
        self._former_ids: set[str] = set()

    def __len__(self) -> int:
        """Return how many tasks have a runner."""
        return len(self._of_tasks)

    def free(self, limit: int) -> int | None:
        """Return the lowest free place below ``limit``, if there is one."""
        place = self._free[0] if self._free else self.used
        return place if place < limit else None

    def take(self, task_id: str, place: int) -> None:
        """Give a place to the runner of a task."""
        self._of_tasks[task_id] = place
        if place >= self.used:
            self._free += range(self.used, place)
            self.used = place + 1
            heapq.heapify(self._free)
        elif self._free and self._free[0] == place:
            heapq.heappop(self._free)
        elif place in self._free:
            self._free.remove(place)
            heapq.heapify(self._free)

    def leave(self, task_id: str) -> None:
        """Note that a task has no runner any more."""
        place = self._of_tasks.pop(task_id, UNKNOWN)
        if place != UNKNOWN:
            heapq.heappush(self._free, place)

    def workload_id(self, place: int) -> str:
        """Return the workload id of the runs in a place."""
        if place not in self._workload_ids:
            self._workload_ids[place] = self._id_of(place)
        return self._workload_ids[place]

    def find(self, workload_id: str, limit: int) -> int:
        """Return the place below ``limit`` whose runs have a workload id; :data:`UNKNOWN` if none has."""
        for place in range(limit):
            if workload_id == self._id_of(place):
                return place
            if workload_id == _uuid(f"air-executor:{self._job_id}/{place}"):
                self._former_ids.add(workload_id)
                return place
        return UNKNOWN

    def workload_ids(self) -> Iterator[str]:
        """Return the workload ids of all runs that were in a place."""
        yield from map(self.workload_id, range(self.used))
        yield from self._former_ids

    def _id_of(self, place: int) -> str:
        return _uuid(f"air-executor-place:{self._name}/{self._job_id}/{place}")  # no name has a slash


def _uuid(what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, what))
