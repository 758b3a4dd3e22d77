"""What the pages show, as plain data. Nothing here writes.

A poll reads what is live, by its index, never all records: the cost follows from what runs, not from what is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
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
from air_executor.runs.ledger import BEFORE
from air_executor.runs.record import Identity, RunRecord
from air_executor.web.index import index_of

#: Of ended runs and of ended jobs, a page has at most this many.
MOST_ENDED = 200

#: Of a job, a page has at most this many tasks.
MOST_TASKS = 2000

#: Tells whether the one who asks may see the runs of an identity.
Sees = Callable[[Identity], bool]

#: Tells whether the one who asks may stop a run, and can.
MayStop = Callable[[RunRecord], bool]

#: How long what is the same for all who ask is good for, in seconds.
_FRESH_S = 2.0

_found: dict[Any, tuple[float, Any]] = {}
_finding = threading.Lock()


def _cached(key: Any, find: Callable[[], Any]) -> Any:
    """Return what ``find`` returns, or has returned just now: many may ask at once."""
    with _finding:
        until_s, value = _found.get(key, (0.0, None))
        if time.monotonic() >= until_s:
            value = find()
            _found[key] = time.monotonic() + _FRESH_S, value
        return value


def live(runs: AllRuns, sees: Sees, may_stop: MayStop) -> list[dict[str, Any]]:
    """Return the runs that live, the oldest first."""
    records = [record for record in runs.open_records() if not record.state.is_end and sees(record.identity)]
    records = [record for record in map(runs.settled, records) if not record.state.is_end]
    ordered = sorted(records, key=lambda record: record.queued_at or "")
    return [_line(runs, record, may_stop) for record in ordered]


def ended(runs: AllRuns, sees: Sees, most: int = MOST_ENDED) -> list[dict[str, Any]]:
    """Return the runs that have ended, the last first: of those that one may see, those that changed last."""
    found: list[RunRecord] = []
    for run_id, note in index_of(runs).newest(runs):
        if note.is_over and sees(note.identity):
            with contextlib.suppress(AirExecutorError):
                found.append(runs.store_of(run_id).read(run_id))
        if len(found) >= most:
            break
    return [_line(runs, record) for record in sorted(found, key=lambda each: each.ended_at or "", reverse=True)]


def machine(runs: AllRuns, sees_dag: Callable[[str | None], bool] = lambda _: True) -> dict[str, Any]:
    """Return the launchers, the budget, and what waits for room or for GPUs.

    :param sees_dag: tells whether the one who asks may know of a DAG's tasks; ``None`` is none.
    """
    found: dict[str, Any] = _cached(("machine", runs.here.root), lambda: _machine(runs))
    waiting = [each for each in found["waiting"] if sees_dag(each.get("dag_id"))]
    return {**found, "waiting": [_masked(each) for each in waiting]}


def _machine(runs: AllRuns) -> dict[str, Any]:
    room = budget.look_if_possible()
    return {
        "version": __version__,
        "launchers": launchers(runs.here),
        "budget": room.to_dict() if room else None,
        "waiting": [*waiting_for_gpus(runs.here), *(budget.documents(room.waiting) if room else ())],
    }


def _masked(waiting: dict[str, Any]) -> dict[str, Any]:
    """Return what waits, without the name of another in its reason."""
    if str(waiting.get("why", "")).endswith(BEFORE):
        return {**waiting, "why": f"another{BEFORE}"}
    return waiting


def run(runs: AllRuns, record: RunRecord, may_stop: MayStop) -> dict[str, Any]:
    """Return a run with all that was measured of it."""
    points: list[usage.Point] = []
    with contextlib.suppress(AirExecutorError):
        points = usage.read(runs.store_of(record.id), record.id)
    return {**_line(runs, record, may_stop), "points": [vars(point) for point in points]}


def instance(
    runs: AllRuns, dag_id: str, dag_run_id: str, task_id: str, map_index: int, may_stop: MayStop
) -> list[dict[str, Any]]:
    """Return the runs of a task instance, the last first: one for each try, and for each part of one that waited."""
    found: list[RunRecord] = []
    for run_id in index_of(runs).of_instance(runs, dag_id, dag_run_id, task_id, map_index):
        with contextlib.suppress(AirExecutorError):
            found.append(runs.settled(runs.store_of(run_id).read(run_id)))
    ordered = sorted(found, key=lambda record: record.queued_at or "", reverse=True)
    return [run(runs, record, may_stop) for record in ordered]


def jobs(runs: AllRuns) -> dict[str, Any]:
    """Return the jobs: those that have not ended, and then those that changed last."""
    found: dict[str, Any] = _cached(("jobs", runs.here.root), lambda: _jobs(runs))
    return found


def _jobs(runs: AllRuns) -> dict[str, Any]:
    found = listed(runs.here.root, most_ended=MOST_ENDED)
    newest = sorted(found.jobs, key=lambda job: job.updated_at, reverse=True)
    ordered = sorted(newest, key=lambda job: job.state.is_end)
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


def _line(runs: AllRuns, record: RunRecord, may_stop: MayStop = lambda _: False) -> dict[str, Any]:
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
        "may_stop": not record.state.is_end and may_stop(record),
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
