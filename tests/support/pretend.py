"""A backend without processes: its runs end at once, or when a test says so. For what is tried many times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from air_executor.config import Config
from air_executor.launcher import protocol
from air_executor.runs.backend import Boundless, RunRequest
from air_executor.runs.record import UNWANTED, RunRecord, RunState
from air_executor.runs.store import RunStore


class PretendedBackend:
    """Stands in for :class:`air_executor.launcher.client.backend.LocalBackend`."""

    def __init__(self, config: Config) -> None:
        self.room = Boundless()
        self.store = RunStore(config.state_dir)
        self.started: list[str] = []
        self.held: set[str] = set()
        """Labels of runs that go on until :meth:`finish_all`."""
        self.files: dict[str, dict[str, bytes]] = {}
        """What runs leave in their folders, by their labels."""
        self._running: dict[str, RunRecord] = {}
        self._ended: list[RunRecord] = []

    def open(self, owner: str | None) -> bool:
        self.store.prepare()
        return True

    def warm_up(self) -> None:
        """There is nothing to warm up."""

    def order(self, request: RunRequest, record: RunRecord) -> None:
        protocol.encode({"type": "start", "request": request.to_message()})
        self.store.create(record)
        label = request.identity.name
        self.started.append(label)
        for name, data in self.files.get(label, {}).items():
            (self.store.folder(record.id) / name).write_bytes(data)
        record = self.store.write(record.advance(RunState.STARTING).advance(RunState.RUNNING))
        self._running[record.id] = record
        if label not in self.held:
            self._end(record, RunState.SUCCEEDED, exit_code=0)

    def finish_all(self) -> None:
        for record in list(self._running.values()):
            self._end(record, RunState.SUCCEEDED, exit_code=0)

    def _end(self, record: RunRecord, state: RunState, **fields: Any) -> None:
        del self._running[record.id]
        self._ended.append(self.store.write(record.advance(state, **fields)))

    def follow(self, record: RunRecord) -> None:
        """What another one has begun is lost with it."""
        self._running[record.id] = record
        self._end(record, RunState.LOST, reason="its manager is gone")

    def take_ends(self) -> list[RunRecord]:
        ended, self._ended = self._ended, []
        return ended

    def record(self, run_id: str) -> RunRecord:
        return self.store.read(run_id)

    def withdraw(self, record: RunRecord, reason: str) -> RunRecord:
        return self.store.withdraw(record, reason)

    def release(self, workload_ids: Iterable[str]) -> None:
        """It keeps nothing for them."""

    def folder(self, run_id: str) -> str:
        return self.store.path(run_id)

    def knows(self, run_id: str) -> bool:
        return self.store.has(run_id)

    def acknowledge(self, record: RunRecord) -> RunRecord:
        return self.store.mark_reported(record)

    def fileno(self) -> None:
        return None

    def due_in_s(self) -> float | None:
        return 0.0 if self._ended else None

    def stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        if (record := self._running.get(run_id)) is not None:
            self._end(record, RunState.KILLED, reason=reason, outcome=UNWANTED if unwanted else "failed")

    def close(self) -> None:
        """There is nothing to close."""
