"""What the executor writes to Airflow's database, while others hold rows of it: on a real PostgreSQL."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from airflow.models.taskinstance import TaskInstance

from air_executor.airflow import reconcile, schedulers, task_instances
from air_executor.airflow.reconcile import Outcome, Reconciler
from air_executor.airflow.reports import Report
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.postgres import Postgres
from tests.support.waiting import wait_for
from tests.unit.documents import identity, kept
from tests.unit.instances import Database

OWNER = f"7.{uuid.uuid4()}"


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    server = Postgres()
    database = Database(server.url, connect_args={"options": "-c lock_timeout=30s"})
    yield database
    database.engine.dispose()
    server.stop()


@pytest.fixture
def reconciler(database: Database, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> Reconciler:
    monkeypatch.setattr(task_instances, "create_session", database.session)
    monkeypatch.setattr(schedulers, "create_session", database.session)
    monkeypatch.setattr(reconcile, "PASS_S", 0.0)
    backend = LocalBackend(config(store.root))
    assert backend.open(OWNER)
    return Reconciler(backend, store.root, OWNER.split(".")[0])


def live(database: Database, store: RunStore, **changes: Any) -> RunRecord:
    """A run at work, whose runner is well, and its task instance."""
    ti_id = database.add(**changes)
    record = kept(store, RunState.RUNNING, who=identity(workload_id=ti_id))
    store.heartbeat(record.id)
    return record


def make_pass(reconciler: Reconciler, *runs: RunRecord, reports: list[Report] | None = None) -> Outcome:
    reconciler.begin({run.id: run.identity.workload_id for run in runs}, reports=reports or [])
    return wait_for(reconciler.outcome, "the pass")


def has_beaten(database: Database, run: RunRecord) -> bool:
    return database.has_beaten(run.identity.workload_id)


def test_a_row_that_somebody_holds_delays_no_heartbeat_but_its_own(
    database: Database, store: RunStore, reconciler: Reconciler
) -> None:
    held, *others = [live(database, store) for _ in range(3)]
    with database.locked(held.identity.workload_id):
        make_pass(reconciler, held, *others)
        assert [has_beaten(database, run) for run in (held, *others)] == [False, True, True]
        assert not reconciler.is_database_away
    make_pass(reconciler, held, *others)  # long before the next heartbeats are due
    assert has_beaten(database, held)


def test_heartbeats_of_many_are_part_of_no_deadlock(
    database: Database, store: RunStore, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "_beat_s", 0.0)
    runs = [live(database, store) for _ in range(20)]
    table, errors, is_over = TaskInstance.__table__, list[Exception](), threading.Event()
    backwards = sorted((run.identity.workload_id for run in runs), reverse=True)

    def write_backwards() -> None:
        while not is_over.is_set():
            try:
                with database.engine.begin() as connection:
                    for ti_id in backwards:
                        row = table.c.id == task_instances.instance_id(ti_id)
                        connection.execute(sqlalchemy.update(table).where(row).values(pool_slots=1))
            except Exception as error:
                errors.append(error)

    other = threading.Thread(target=write_backwards)
    other.start()
    try:
        for _ in range(50):
            make_pass(reconciler, *runs)
            assert not reconciler.is_database_away
    finally:
        is_over.set()
        other.join()
    assert errors == []
    make_pass(reconciler, *runs)
    assert all(has_beaten(database, run) for run in runs)


def test_ids_of_runs_are_written_though_somebody_held_their_rows(database: Database, reconciler: Reconciler) -> None:
    first, second = database.add("queued"), database.add("queued")
    naming = threading.Thread(target=task_instances.name_runs, args=({first: "run-1", second: "run-2"},))
    with database.locked(first):
        naming.start()
        wait_for(lambda: database.value(second, "external_executor_id") == "run-2", "the other one")
        assert database.value(first, "external_executor_id") is None
    naming.join()
    assert database.value(first, "external_executor_id") == "run-1"


@pytest.mark.parametrize(
    ("changes", "is_missed"),
    [
        ({"state": "running"}, True),
        ({"state": "queued"}, True),
        ({"state": "restarting"}, True),
        ({"state": "up_for_retry"}, False),
        ({"state": "failed"}, False),
        ({"state": "deferred"}, False),
        ({"state": "queued", "external_executor_id": "its-next-run"}, False),
        ({"state": "running", "queued_by_job_id": 8}, False),
    ],
)
def test_only_what_the_scheduler_was_to_fail_and_has_not_was_missed(
    changes: dict[str, Any], is_missed: bool, database: Database, reconciler: Reconciler
) -> None:
    ti_id = database.add(**{"external_executor_id": "its-run", **changes})
    gone = Report("gone", ti_id=str(uuid.uuid4()), executor_id="its-run")
    found = make_pass(reconciler, reports=[Report("told", ti_id=ti_id, executor_id="its-run"), gone])
    assert found.missed == ({"told"} if is_missed else set())
    assert found.heard == {"told", "gone"} - found.missed


def test_one_run_that_cannot_be_looked_at_keeps_no_other_from_its_heartbeat(
    database: Database, store: RunStore, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = live(database, store), live(database, store)
    read = RunStore.last_heartbeat_s

    def read_most(store: RunStore, run_id: str) -> float | None:
        if run_id == bad.id:
            raise ValueError("odd")
        return read(store, run_id)

    monkeypatch.setattr(RunStore, "last_heartbeat_s", read_most)
    make_pass(reconciler, bad, good)
    assert [has_beaten(database, run) for run in (bad, good)] == [False, True]
