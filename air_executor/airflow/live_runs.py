"""The live runs of an executor, by their ids and by workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """A live run of this executor."""

    key: Any
    """The scheduler's key of the workload."""
    ti_id: str | None
    """Id of the task instance; ``None`` for what is not a task."""
    carrier: Mapping[str, Any] | None = None
    """Where in which trace it belongs, if Airflow traces."""


class LiveRuns(MutableMapping[str, Run]):
    """Runs by their ids. A task instance may briefly have two: one that resumes it, and one that is just ending."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._ids: dict[Any, list[str]] = {}
        #: The keys of each task instance's tries that have live runs.
        self._tries: dict[Any, set[Any]] = {}

    def __getitem__(self, run_id: str) -> Run:
        return self._runs[run_id]

    def __setitem__(self, run_id: str, run: Run) -> None:
        self.pop(run_id, None)
        self._runs[run_id] = run
        self._ids.setdefault(run.key, []).append(run_id)
        self._tries.setdefault(_instance(run.key), set()).add(run.key)

    def __delitem__(self, run_id: str) -> None:
        key = self._runs.pop(run_id).key
        ids = self._ids[key]
        ids.remove(run_id)
        if not ids:
            del self._ids[key]
            tries = self._tries[_instance(key)]
            tries.discard(key)
            if not tries:
                del self._tries[_instance(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def ids_of(self, key: Any) -> list[str]:
        """Return the ids of the live runs of a workload."""
        return list(self._ids.get(key, ()))

    def has_key(self, key: Any) -> bool:
        """Tell whether a workload has a live run."""
        return key in self._ids

    def has_other_try(self, key: Any) -> bool:
        """Tell whether another try of a task instance has a live run."""
        return bool(self._tries.get(_instance(key), set()) - {key})


def _instance(key: Any) -> Any:
    """Return what the keys of all tries of a task instance have in common; other workloads have one try."""
    return getattr(key, "primary", key)
