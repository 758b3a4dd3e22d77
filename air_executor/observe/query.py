"""Which runs are live, and which launchers: from records, locks, processes and the launchers' own answers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import orjson

from air_executor.errors import StateDirError
from air_executor.launcher.address import all_addresses
from air_executor.launcher.client import control
from air_executor.observe import usage
from air_executor.observe.everywhere import AllRuns
from air_executor.runs.lock import is_held
from air_executor.runs.record import RunRecord
from air_executor.runs.records import public
from air_executor.runs.store import RunStore


@dataclass(frozen=True)
class ObservedRun:
    """A live run with what its processes use."""

    record: RunRecord
    age_s: float
    memory_bytes: int | None
    cpu_time_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        used = {"age_s": self.age_s, "memory_bytes": self.memory_bytes, "cpu_time_s": self.cpu_time_s}
        return {**public(self.record), "usage": used}


def launchers(store: RunStore) -> list[dict[str, Any]]:
    """Return what each launcher says of itself."""
    answers = ((address, control.status(address)) for address in all_addresses(store))
    return [{"key": address.key, **answer} for address, answer in answers if answer is not None]


def waiting_for_gpus(store: RunStore) -> list[dict[str, Any]]:
    """Return the tasks that wait for GPUs: their name, for how many (``gpus``) of how many (``of``), ``since`` when."""
    waiting: list[dict[str, Any]] = []
    for path in sorted(store.waiting.glob("*.json")):
        with contextlib.suppress(OSError, StateDirError, orjson.JSONDecodeError):
            if is_held(store.executors / path.stem):  # otherwise it is of an executor that died
                waiting += orjson.loads(path.read_bytes())
    return waiting


def observe_runs(runs: AllRuns) -> list[ObservedRun]:
    """Return the live runs, the oldest first."""
    live = [record for record in runs.open_records() if not record.state.is_end]
    live = [record for record in map(runs.settled, live) if not record.state.is_end]
    return [
        _observe(runs.store_of(record.id), record) for record in sorted(live, key=lambda record: record.queued_at or "")
    ]


def _observe(store: RunStore, record: RunRecord) -> ObservedRun:
    began = record.starting_at or record.queued_at
    age = datetime.now(tz=timezone.utc) - datetime.fromisoformat(began) if began else None
    memory, cpu = usage.of_family(record.pid) if record.pid and store.is_runner(record) else (None, None)
    return ObservedRun(record, round(age.total_seconds(), 1) if age else 0.0, memory, cpu)
