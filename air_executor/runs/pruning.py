"""Removing the records of ended runs that are old or too many."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass

from air_executor.errors import RecordError, RecordVersionError, StateDirError
from air_executor.runs.lock import KernelLock
from air_executor.runs.record import UNWANTED
from air_executor.runs.store import RunStore

#: An executor reads the end of a run within this many seconds.
_READ_S = 600.0


@dataclass(frozen=True)
class Pruned:
    """How many were removed, and how many are left."""

    removed: int
    kept: int


def prune(store: RunStore, *, keep_days: float, keep_runs: int) -> Pruned:
    """Remove ended, reported runs that are older than ``keep_days`` days or beyond the newest ``keep_runs``.

    A run that lives, or whose end was not reported yet, stays however old it is. Lock files that killed runners left
    are removed too.

    :raises StateDirError: something could not be looked at or removed; everything else was.
    """
    if not store.runs.is_dir():
        return Pruned(removed=0, kept=0)
    troubles: list[str] = []
    _remove_free_locks(store, troubles)
    store.leftovers.prune()
    store.learned.prune()
    oldest_s = time.time() - keep_days * 86400
    folders = sorted(store.changed(), key=lambda entry: entry[0], reverse=True)
    removed = 0
    for rank, (changed_s, run_id) in enumerate(folders):
        try:
            if (rank >= keep_runs or changed_s < oldest_s) and _may_go(store, run_id, changed_s):
                _remove_tree(store.path(run_id))
                store.open.remove(run_id)
                removed += 1
        except (StateDirError, OSError) as error:
            troubles.append(str(error))
    store.open.remove_stale(set(store.ids()))
    if troubles:
        raise StateDirError(f"{removed} runs were removed; {len(troubles)} could not be, as {troubles[0]}")
    return Pruned(removed=removed, kept=len(folders) - removed)


def _may_go(store: RunStore, run_id: str, changed_s: float) -> bool:
    try:
        record = store.read(run_id)
    except RecordVersionError:
        return False
    except RecordError:
        # Nobody can report its end any more, so only its age counts.
        return True
    if not record.state.is_end:
        return False
    if record.identity.kind == "job" and store.open.has(run_id):
        return False
    # Nobody sets `reported_at` of these: Airflow may have the outcome from the runner, a connection test reports its
    # own end, and a job's run has lost its link instead. They stay long enough for an executor to read them.
    is_known = record.delivered or record.outcome == UNWANTED or record.identity.kind in ("connection_test", "job")
    return record.reported_at is not None or (is_known and changed_s < time.time() - _READ_S)


def _remove_free_locks(store: RunStore, troubles: list[str]) -> None:
    # A runner removes its own lock file as it ends: a free one belonged to a runner that was killed.
    for name in os.listdir(store.locks):
        try:
            lock = KernelLock(os.path.join(store.locks, name))
            if lock.acquire(timeout_s=0):
                lock.release()
        except (StateDirError, OSError) as error:
            troubles.append(str(error))


def _remove_tree(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody else prunes too
        shutil.rmtree(path)
