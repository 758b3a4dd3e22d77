"""Which memory limit a task should have, from what its runs have held."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from air_executor.runs.limits import ENOUGH_RUNS, MARGIN
from air_executor.runs.record import RunRecord
from air_executor.runs.usage import percentile

#: A limit that is advised has this many significant digits, in MiB.
_DIGITS = 2


@dataclass(frozen=True)
class Advice:
    """What the runs of one task have held at most, in bytes."""

    task: str
    """``dag.task`` of Airflow, or ``job/task``."""
    runs: int
    """How many were measured: those that lasted longer than a second, or reached their limit before."""
    p50_bytes: int
    p95_bytes: int
    max_bytes: int
    is_at_least: bool
    """Whether the run that held most was killed at its limit, so that nobody knows how much it would have held."""
    limit_bytes: int | None
    """The limit of the newest run."""
    advised_bytes: int | None
    """``None``: there were too few runs."""


def advise(records: Iterable[RunRecord]) -> list[Advice]:
    """Return advice for each task that has measured runs among these, by name. Mapped instances are one task."""
    by_task: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        is_measured = record.p95_memory_bytes is not None or _hit_its_limit(record)
        if record.state.is_end and is_measured and record.peak_memory_bytes:
            by_task[_name(record)].append(record)
    return [_of(name, by_task[name]) for name in sorted(by_task)]


def _name(record: RunRecord) -> str:
    who = record.identity
    return f"{who.dag_id}.{who.task_id or who.name}" if who.dag_id is not None else who.name


def _of(name: str, records: list[RunRecord]) -> Advice:
    peaks = [record.peak_memory_bytes or 0 for record in records]
    newest = max(records, key=lambda record: record.queued_at or "")
    weighted = [(float(peak), 1.0) for peak in peaks]
    return Advice(
        task=name,
        runs=len(peaks),
        p50_bytes=int(percentile(weighted, 0.5)),
        p95_bytes=int(percentile(weighted, 0.95)),
        max_bytes=max(peaks),
        is_at_least=_hit_its_limit(max(records, key=lambda record: record.peak_memory_bytes or 0)),
        limit_bytes=_limit(newest),
        advised_bytes=_rounded_up(max(peaks) * MARGIN) if len(peaks) >= ENOUGH_RUNS else None,
    )


def _hit_its_limit(record: RunRecord) -> bool:
    limit = _limit(record)
    return limit is not None and (record.peak_memory_bytes or 0) > limit


def _limit(record: RunRecord) -> int | None:
    limit = record.limits.get("memory")
    return limit if isinstance(limit, int) else None  # otherwise it has not begun


def _rounded_up(size: float) -> int:
    """Return a size of a few significant digits in MiB that is not less."""
    mib = size / (1 << 20)
    step = 10 ** max(0, math.floor(math.log10(max(mib, 1.0))) - _DIGITS + 1)
    return int(math.ceil(mib / step) * step) << 20
