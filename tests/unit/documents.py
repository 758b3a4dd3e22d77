"""Records for the unit tests."""

from __future__ import annotations

import dataclasses
import os
import uuid
from typing import Any

from air_executor.machine import system
from air_executor.runs.record import Identity, RunRecord, RunState, queued
from air_executor.runs.store import RunStore

#: How a run comes to a state.
WAYS = {
    RunState.QUEUED: (),
    RunState.STARTING: (RunState.STARTING,),
    RunState.RUNNING: (RunState.STARTING, RunState.RUNNING),
    RunState.SUCCEEDED: (RunState.STARTING, RunState.RUNNING, RunState.SUCCEEDED),
    RunState.FAILED: (RunState.STARTING, RunState.RUNNING, RunState.FAILED),
    RunState.KILLED: (RunState.STARTING, RunState.RUNNING, RunState.KILLED),
    RunState.LOST: (RunState.STARTING, RunState.RUNNING, RunState.LOST),
}


def identity(**changes: Any) -> Identity:
    values: dict[str, Any] = {
        "kind": "task",
        "workload_id": str(uuid.uuid4()),
        "name": "some_dag.some_task",
        "dag_id": "some_dag",
        "task_id": "some_task",
        "dag_run_id": "manual__1",
        "map_index": -1,
        "try_number": 1,
    }
    return Identity(**{**values, **changes})


def record(
    state: RunState = RunState.QUEUED, run_id: str | None = None, who: Identity | None = None, **changes: Any
) -> RunRecord:
    """Return the record of a run that came to ``state`` by the legal way."""
    made = queued(run_id or str(uuid.uuid4()), who or identity(), limits={}, log_file=None)
    for step in WAYS[state]:
        made = made.advance(step)
    return dataclasses.replace(made, **changes)


def kept(store: RunStore, state: RunState = RunState.QUEUED, **changes: Any) -> RunRecord:
    """Return a record as :func:`record` does, written to ``store``."""
    made = record(state, **changes)
    store.create(made)
    return made


def of_process(pid: int | None = None) -> dict[str, Any]:
    """Return what a record says about its runner process, for process ``pid``, this one if none is given."""
    pid = pid or os.getpid()
    return {"pid": pid, "pid_started": system.start_time(pid), "host": system.host(), "boot_id": system.boot_id()}
