"""A place in memory where runs happen: the smallest that keeps the contract of ``air_executor.runs.backend``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from air_executor.errors import AirExecutorError, RecordError, StateDirError
from air_executor.runs.backend import Boundless, RunRequest
from air_executor.runs.record import UNWANTED, Identity, RunRecord, RunState, now


@dataclass
class Run:
    """A run at the place, with or without a runner."""

    record: RunRecord
    owner: str | None = None
    stop: tuple[str, bool] | None = None
    beat_s: float | None = None


@dataclass
class Place:
    """What outlives those who order runs: the runs, and the owners with the time of their last sign of life."""

    folder: Path
    """Where runs leave their results, each in a folder of its own."""
    runs: dict[str, Run] = field(default_factory=dict)
    owners: dict[str, float] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    """The owners that live."""
    kept: set[str] = field(default_factory=set)
    """The workloads that may be ordered again."""
    gpus: int = 0
    leased: int = 0
    turn: MemoryBackend | None = None
    waiting: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def begin(self, run_id: str) -> None:
        """Be the runner of a run, which begins."""
        run = self.runs[run_id]
        run.record = run.record.advance(RunState.STARTING).advance(RunState.RUNNING)
        run.beat_s = time.time()

    def finish(self, run_id: str, state: RunState, **changes: Any) -> RunRecord:
        """End a run as its runner would, or as whoever finds that its runner is gone."""
        run = self.runs[run_id]
        run.record = run.record.advance(state, **changes)
        return run.record

    def has_runner(self, run: Run) -> bool:
        return run.record.state in (RunState.STARTING, RunState.RUNNING)


class MemoryGpus:
    def __init__(self, place: Place, backend: MemoryBackend) -> None:
        self._place = place
        self._backend = backend
        self.size = place.gpus

    def free(self) -> int:
        return self.size - self._place.leased

    def take_turn(self) -> bool:
        self._place.turn = self._place.turn or self._backend
        return self._place.turn is self._backend

    def leave_turn(self) -> None:
        if self._place.turn is self._backend:
            self._place.turn = None

    def publish(self, waiting: list[dict[str, Any]]) -> None:
        self._place.waiting[self._backend.owner or ""] = waiting


class MemoryBackend:
    """Follows runs at a place. Runs begin as they are ordered, unless ``is_slow``."""

    def __init__(self, place: Place, *, is_slow: bool = False) -> None:
        self.place = place
        self.owner: str | None = None
        self._is_slow = is_slow
        self._followed: set[str] = set()
        self._gpus = MemoryGpus(place, self)
        self.room = Boundless()

    @property
    def gpus(self) -> MemoryGpus:
        return self._gpus

    def open(self, owner: str | None) -> bool:
        if owner in self.place.alive:
            return False
        if owner is not None:
            self.owner = owner
            self.place.owners[owner] = time.time()
            self.place.alive.add(owner)
        return True

    def warm_up(self) -> None:
        pass

    def show_life(self) -> None:
        if self.owner is not None:
            self.place.owners[self.owner] = time.time()

    def close(self) -> None:
        self._gpus.leave_turn()
        self._followed.clear()
        if self.owner is not None:
            self.place.alive.discard(self.owner)
            self.place.owners.pop(self.owner, None)

    def die(self) -> None:
        """Go without a word, as a process that is killed."""
        self._followed.clear()
        self.place.alive.discard(self.owner or "")

    def order(self, request: RunRequest, record: RunRecord) -> None:
        if record.id in self.place.runs:
            raise StateDirError(f"run {record.id} exists")
        self.place.runs[record.id] = Run(record, self.owner)
        self.place.kept.add(record.identity.workload_id)
        Path(self.folder(record.id)).mkdir()
        self._followed.add(record.id)
        if not self._is_slow:
            self.place.begin(request.id)

    def stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        run = self.place.runs.get(run_id)
        if run is not None and not run.record.state.is_end:
            run.stop = reason, unwanted
            outcome = UNWANTED if unwanted else None
            self.place.finish(run_id, RunState.KILLED, reason=f"stopped: {reason}", outcome=outcome)

    def is_stopping(self, run_id: str) -> bool:
        run = self.place.runs.get(run_id)
        return run is not None and run.stop is not None

    def kill(self, run_id: str) -> None:
        run = self.place.runs.get(run_id)
        if run is not None and not run.record.state.is_end:
            self.place.finish(run_id, RunState.KILLED, signal="SIGKILL", reason="the runner was killed by SIGKILL")

    def withdraw(self, record: RunRecord, reason: str) -> RunRecord:
        run = self.place.runs[record.id]
        if run.record.state is RunState.QUEUED:
            run.record = run.record.advance(RunState.LOST, reason=reason)
        return run.record

    def release(self, workload_ids: Iterable[str]) -> None:
        self.place.kept.difference_update(each for each in workload_ids if not self.is_alive(each))

    def adopt(self, run_id: str, identity: Callable[[], Identity]) -> RunRecord | None:
        run = self.place.runs.get(run_id)
        if run is None:
            return None
        if run.record.state is RunState.QUEUED:
            lost = self.withdraw(run.record, "its scheduler died before it began")
            run.record = replace(lost, outcome=UNWANTED, reported_at=now())
            return None
        return run.record

    def follow(self, record: RunRecord) -> None:
        if record.id not in self.place.runs:
            raise AirExecutorError(f"there is no run {record.id}")
        self.place.runs[record.id].owner = self.owner
        self._followed.add(record.id)

    def orphans(self, is_ours: Callable[[str], bool]) -> Iterator[RunRecord]:
        for run in list(self.place.runs.values()):
            is_free = run.owner is None or (run.owner not in self.place.alive and is_ours(run.owner))
            if is_free and run.record.reported_at is None:
                yield run.record

    def settle_owners(self, settle: Callable[[str, float], bool]) -> None:
        for name in self.place.owners.keys() - self.place.alive:
            if not settle(name, self.place.owners[name]):
                del self.place.owners[name]

    def knows(self, run_id: str) -> bool:
        return run_id in self.place.runs

    def record(self, run_id: str) -> RunRecord:
        if run_id not in self.place.runs:
            raise RecordError(f"there is no run {run_id}")
        return self.place.runs[run_id].record

    def folder(self, run_id: str) -> str:
        return str(self.place.folder / run_id)

    def is_mine(self, run_id: str) -> bool:
        run = self.place.runs.get(run_id)
        return run is None or run.owner in (None, self.owner)

    def is_alive(self, workload_id: str) -> bool:
        runs = (run for run in self.place.runs.values() if run.record.identity.workload_id == workload_id)
        return any(map(self.place.has_runner, runs))

    def last_beat_s(self, run_id: str) -> float | None:
        run = self.place.runs.get(run_id)
        return None if run is None else run.beat_s

    def launchers(self) -> None:
        """It has none."""

    def ends(self) -> list[str]:
        runs = self.place.runs
        return [run_id for run_id in self._followed if run_id in runs and runs[run_id].record.state.is_end]

    def take_ends(self) -> list[RunRecord]:
        ended = self.ends()
        self._followed.difference_update(ended)
        return [self.place.runs[run_id].record for run_id in ended]

    def acknowledge(self, record: RunRecord) -> RunRecord:
        run = self.place.runs[record.id]
        run.record = replace(record, reported_at=now())
        return run.record

    def has_news(self) -> bool:
        return bool(self.ends())

    def fileno(self) -> int | None:
        return None  # whoever finishes a run here is in the same process

    def due_in_s(self) -> float | None:
        return 0.05 if self._followed else None
