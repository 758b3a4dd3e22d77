"""What the pages show, as plain data. Nothing here writes.

A poll reads what is live, by its index, never all records: the cost follows from what runs, not from what is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from air_executor import __version__
from air_executor.errors import AirExecutorError
from air_executor.jobs.store import JobStore
from air_executor.observe import budget
from air_executor.observe.everywhere import AllRuns
from air_executor.observe.jobs import listed
from air_executor.observe.query import launchers, waiting_for_gpus
from air_executor.runs import usage
from air_executor.runs.record import Identity, RunRecord

#: Of ended runs and of ended jobs, a page has at most so many.
MOST_ENDED = 200

#: Of a job, a page has at most so many tasks.
MOST_TASKS = 2000

#: Tells whether the one who asks may see the runs of an identity.
Sees = Callable[[Identity], bool]


def live(runs: AllRuns, sees: Sees) -> list[dict[str, Any]]:
    """Return the runs that live, the oldest first."""
    records = [record for record in runs.open_records() if not record.state.is_end and sees(record.identity)]
    records = [record for record in map(runs.settled, records) if not record.state.is_end]
    return [_line(runs, record) for record in sorted(records, key=lambda record: record.queued_at or "")]


def ended(runs: AllRuns, sees: Sees, most: int = MOST_ENDED) -> list[dict[str, Any]]:
    """Return the runs that have ended, the last first, of those whose files changed last."""
    newest = heapq.nlargest(4 * most, runs.here.changed())
    found: list[RunRecord] = []
    for _, run_id in newest:
        with contextlib.suppress(AirExecutorError):
            record = runs.here.read(run_id)
            if record.state.is_end and sees(record.identity):
                found.append(record)
        if len(found) >= most:
            break
    return [_line(runs, record) for record in sorted(found, key=lambda each: each.ended_at or "", reverse=True)]


def machine(runs: AllRuns) -> dict[str, Any]:
    """Return the launchers, the budget, and what waits for room or for GPUs."""
    room = budget.look_if_possible()
    return {
        "version": __version__,
        "launchers": launchers(runs.here),
        "budget": room.to_dict() if room else None,
        "waiting": [*waiting_for_gpus(runs.here), *(budget.documents(room.waiting) if room else ())],
    }


def run(runs: AllRuns, record: RunRecord) -> dict[str, Any]:
    """Return a run with all that was measured of it."""
    points: list[usage.Point] = []
    with contextlib.suppress(AirExecutorError):
        points = usage.read(runs.store_of(record.id), record.id)
    return {**_line(runs, record), "points": [vars(point) for point in points]}


def jobs(runs: AllRuns) -> dict[str, Any]:
    """Return the jobs, those that have not ended first."""
    found = listed(runs.here.root, most_ended=MOST_ENDED)
    ordered = sorted(found.jobs, key=lambda job: (job.state.is_end, job.updated_at), reverse=False)
    return {"jobs": [dataclasses.asdict(job) for job in ordered], "left_out": found.left_out}


def job(runs: AllRuns, name: str) -> dict[str, Any]:
    """Return a job with its tasks.

    :raises JobError: there is none, or it can't be read.
    """
    files = JobStore(runs.here.root, is_looking=True).open(name)
    tasks = list(files.tasks.values())
    return {
        "name": files.job.name,
        "state": files.job.state.value,
        "error": files.job.error,
        "left_out": max(0, len(tasks) - MOST_TASKS),
        "tasks": [
            {
                "id": task.id,
                "status": task.status.value,
                "dependencies": task.dependencies,
                "queued_by": task.queued_by,
                "tries": task.tries,
                "started_at": task.started_at,
                "completed_at": task.completed_at,
                "error": task.error,
                "run_id": task.run_id,
            }
            for task in tasks[:MOST_TASKS]
        ],
    }


def _line(runs: AllRuns, record: RunRecord) -> dict[str, Any]:
    """Return what a table shows of a run."""
    store, who = runs.store_of(record.id), record.identity
    point = None if record.state.is_end else usage.last_point(store.path(record.id))
    limit = record.limits.get("memory")
    began, end = record.running_at or record.starting_at or record.queued_at, record.ended_at
    return {
        "id": record.id,
        "label": record.label,
        "kind": who.kind,
        "dag_id": who.dag_id,
        "task_id": who.task_id,
        "dag_run_id": who.dag_run_id,
        "map_index": who.map_index,
        "job": who.job_name,
        "try_number": who.try_number,
        "host": record.host,
        "state": record.state.value,
        "is_over": record.state.is_end,
        "queued_at": record.queued_at,
        "began_at": began,
        "ended_at": end,
        "age_s": _seconds(began, end),
        "memory_bytes": point.memory_bytes if point else record.peak_memory_bytes,
        "memory_limit_bytes": limit if isinstance(limit, int) else None,
        "cpu_s": point.cpu_s if point else record.cpu_time_s,
        "processes": point.processes if point else None,
        "reason": record.why,
        "exit_code": record.exit_code,
        "signal": record.signal,
    }


def _seconds(began: str | None, ended: str | None) -> float | None:
    if began is None:
        return None
    end = datetime.fromisoformat(ended) if ended else datetime.now(tz=timezone.utc)
    return round(max(0.0, (end - datetime.fromisoformat(began)).total_seconds()), 1)
