"""What needs no database of agreeing with one."""

from __future__ import annotations

import os

from air_executor.reconcile import fail_jobs_of_dead_executors
from air_executor.runs.lock import KernelLock
from air_executor.runs.store import RunStore


def test_what_cannot_be_looked_at_does_not_keep_the_rest_from_it(store: RunStore) -> None:
    alive = KernelLock(store.executors / "test.alive")
    assert alive.acquire(timeout_s=0)
    (store.executors / "test.dead").touch()
    (store.executors / "test.planted").symlink_to(store.root / "elsewhere")
    fail_jobs_of_dead_executors(store, "1")
    assert sorted(os.listdir(store.executors)) == ["test.alive", "test.planted"]
    alive.release()
