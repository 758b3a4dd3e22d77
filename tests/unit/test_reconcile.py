"""Dead schedulers, as their executors' files and Airflow's database tell of them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from airflow.jobs.job import Job
from sqlalchemy.orm import Session

from air_executor import AirExecutor
from air_executor.airflow import schedulers, task_instances
from air_executor.airflow.schedulers import JobName, fail_jobs_of_dead_executors, own_name
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.lock import KernelLock
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.unit.documents import identity, kept


class Database:
    """A database with the jobs of schedulers."""

    def __init__(self, path: Path) -> None:
        self.engine = sqlalchemy.create_engine(f"sqlite:///{path}")
        Job.__table__.create(self.engine)  # type: ignore[attr-defined]

    @contextmanager
    def session(self, **_: Any) -> Iterator[Session]:
        with Session(self.engine) as session:
            yield session
            session.commit()

    def add_scheduler(self, job_id: int, begun: datetime | None = None, heard: datetime | None = None) -> None:
        begun = begun or datetime.now(tz=timezone.utc)
        values = {"start_date": begun, "latest_heartbeat": heard or begun, "state": "running"}
        with self.engine.begin() as connection:
            table = Job.__table__
            connection.execute(sqlalchemy.insert(table).values(id=job_id, job_type="SchedulerJob", **values))

    def state(self, job_id: int) -> Any:
        with self.session() as session:
            return session.scalar(sqlalchemy.select(Job.state).where(Job.id == job_id))


@pytest.fixture
def make_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make a database, which is the one of this process from then on."""
    made: list[Database] = []

    def make() -> Database:
        made.append(Database(tmp_path / f"{uuid.uuid4()}.db"))
        monkeypatch.setattr(schedulers, "create_session", made[-1].session)
        return made[-1]

    yield make
    for database in made:
        database.engine.dispose()


def backend_of(store: RunStore) -> LocalBackend:
    return LocalBackend(config(store.root))


def dead(store: RunStore, name: str, last_seen_s: float | None = None) -> Path:
    """The file of an executor that is dead."""
    path = store.executors / name
    path.touch()
    if last_seen_s is not None:
        os.utime(path, (last_seen_s, last_seen_s))
    return path


def test_what_cannot_be_looked_at_does_not_keep_the_rest_from_it(store: RunStore) -> None:
    alive = KernelLock(store.executors / "test.alive")
    assert alive.acquire(timeout_s=0)
    (store.executors / "test.dead").touch()
    (store.executors / "test.planted").symlink_to(store.root / "elsewhere")
    fail_jobs_of_dead_executors(backend_of(store), "1")
    assert sorted(os.listdir(store.executors)) == ["test.alive", "test.planted"]
    alive.release()


def test_the_job_of_a_dead_scheduler_is_failed_once_and_only_in_its_own_database(
    store: RunStore, make_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = make_database()
    former.add_scheduler(3)
    of_former = dead(store, own_name(3))
    database = make_database()  # as after a reset, or another Airflow with the same state directory
    for job_id in (3, 4):
        database.add_scheduler(job_id)
    ours = dead(store, own_name(4))
    fail_jobs_of_dead_executors(backend_of(store), 5)
    assert (database.state(3), database.state(4), former.state(3)) == ("running", "failed", "running")
    assert not ours.exists()
    assert of_former.exists()  # for the other database's next scheduler
    monkeypatch.setattr(schedulers, "create_session", former.session)
    fail_jobs_of_dead_executors(backend_of(store), 5)
    assert former.state(3) == "failed"
    assert not of_former.exists()


def test_what_another_database_with_our_own_number_has_left_is_not_ours(store: RunStore, make_database: Any) -> None:
    make_database().add_scheduler(3)
    strange = dead(store, own_name(3))
    database = make_database()
    database.add_scheduler(3)
    fail_jobs_of_dead_executors(backend_of(store), 3)
    assert strange.exists()
    assert database.state(3) == "running"


def test_what_nobody_has_claimed_for_a_day_is_removed(store: RunStore, make_database: Any) -> None:
    make_database()
    new, old = dead(store, f"3.{uuid.uuid4()}.1700000000000000"), f"3.{uuid.uuid4()}.1700000000000001"
    forgotten = dead(store, old, time.time() - 86400 - 60)
    fail_jobs_of_dead_executors(backend_of(store), 5)
    assert new.exists()
    assert not forgotten.exists()


@pytest.mark.parametrize(
    ("begun_ago_s", "heard_ago_s", "state"),
    [
        (7200, 3600, "failed"),
        (7200, 10, "running"),  # long after the executor was seen: another database's
        (10, 10, "running"),
    ],
)
def test_names_of_the_last_release_are_of_a_job_that_ended_with_them(
    begun_ago_s: float, heard_ago_s: float, state: str, store: RunStore, make_database: Any
) -> None:
    database, now = make_database(), datetime.now(tz=timezone.utc)
    database.add_scheduler(3, now - timedelta(seconds=begun_ago_s), now - timedelta(seconds=heard_ago_s))
    dead(store, f"3.{uuid.uuid4()}", time.time() - 3600)
    fail_jobs_of_dead_executors(backend_of(store), 5)
    assert database.state(3) == state


def test_the_last_release_reads_the_number_of_a_job_from_a_name(make_database: Any) -> None:
    make_database().add_scheduler(12)
    name = own_name(12)
    assert name.split(".")[0] == "12"
    assert JobName.parse(name) == JobName(12, name.split(".")[2])
    assert JobName.parse(f"12.{uuid.uuid4()}") == JobName(12, None)
    assert own_name(13).count(".") == 1  # it is in no database
    assert JobName.parse(own_name(None)) is None


def test_a_database_that_is_away_fails_nothing_and_removes_nothing(
    store: RunStore, make_database: Any, tmp_path: Path
) -> None:
    database = make_database()
    database.add_scheduler(3)
    path = dead(store, own_name(3))
    with database.engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE job"))
    with pytest.raises(sqlalchemy.exc.SQLAlchemyError):
        fail_jobs_of_dead_executors(backend_of(store), 5)
    assert path.exists()
    assert own_name(3).count(".") == 1


def test_a_scheduler_takes_over_no_callback_of_another_database(
    store: RunStore, make_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_instances, "given_up", list)
    make_database().add_scheduler(3)
    strange = own_name(3)
    database = make_database()
    for job_id in (3, 4):
        database.add_scheduler(job_id)
    runs = {}
    for owner in (strange, own_name(3), None):
        for kind in ("callback", "task"):
            record = kept(store, RunState.FAILED, who=identity(kind=kind))
            runs[owner, kind] = record.id
            if owner is not None:
                store.set_owner(record.id, owner)
    heir = AirExecutor(parallelism=4)
    followed: list[str] = []
    heir._work.backend = backend = backend_of(store)
    assert backend.open(own_name(4))
    monkeypatch.setattr(backend, "follow", lambda record: followed.append(record.id))
    heir._adoption.inherit()
    mine = {run_id for (owner, kind), run_id in runs.items() if kind == "callback" and owner != strange}
    assert set(followed) == set(heir._work.runs) == mine
    assert [store.read(runs[strange, kind]).reported_at for kind in ("callback", "task")] == [None, None]
