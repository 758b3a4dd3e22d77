"""A database with task instances of Airflow, for what is tested on them alone."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy
from airflow.models.taskinstance import TaskInstance
from sqlalchemy.orm import Session, configure_mappers

from air_executor.airflow import task_instances

LONG_AGO = datetime.now(tz=timezone.utc) - timedelta(hours=1)


class Database:
    """A database with task instances: their table alone, without what it refers to."""

    def __init__(self, url: str, **options: Any) -> None:
        configure_mappers()  # here, where warnings about Airflow's own are no errors
        self.engine = sqlalchemy.create_engine(url, **options)
        columns = [sqlalchemy.Column(c.name, c.type, primary_key=c.primary_key) for c in TaskInstance.__table__.columns]
        sqlalchemy.Table(TaskInstance.__tablename__, sqlalchemy.MetaData(), *columns).create(self.engine)

    @contextmanager
    def session(self, **_: Any) -> Iterator[Session]:
        with Session(self.engine) as session:
            yield session
            session.commit()

    def add(self, state: str = "running", **changes: Any) -> str:
        """Add a task instance, and return its id."""
        ti_id = str(uuid.uuid4())
        values = {
            "id": task_instances.instance_id(ti_id),
            "task_id": f"t{ti_id}",
            "dag_id": "d",
            "run_id": "r",
            "map_index": -1,
            "try_number": 1,
            "max_tries": 0,
            "state": state,
            "pool": "default_pool",
            "pool_slots": 1,
            "last_heartbeat_at": LONG_AGO,
            "queued_by_job_id": 7,
            **changes,
        }
        table = TaskInstance.__table__
        with self.engine.begin() as connection:
            connection.execute(sqlalchemy.insert(table).values(**values))
        return ti_id

    def value(self, ti_id: str, column: str) -> Any:
        table = TaskInstance.__table__
        with self.engine.connect() as connection:
            query = sqlalchemy.select(table.c[column]).where(table.c.id == task_instances.instance_id(ti_id))
            return connection.execute(query).scalar_one()

    def change(self, ti_id: str, **changes: Any) -> None:
        table = TaskInstance.__table__
        with self.engine.begin() as connection:
            row = table.c.id == task_instances.instance_id(ti_id)
            connection.execute(sqlalchemy.update(table).where(row).values(**changes))

    def remove(self, ti_id: str) -> None:
        table = TaskInstance.__table__
        with self.engine.begin() as connection:
            connection.execute(sqlalchemy.delete(table).where(table.c.id == task_instances.instance_id(ti_id)))

    def has_beaten(self, ti_id: str) -> bool:
        """Tell whether a heartbeat was written since the instance was added, or :meth:`forget_beats` was called."""
        return bool(self.value(ti_id, "last_heartbeat_at") > LONG_AGO)

    def forget_beats(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(sqlalchemy.update(TaskInstance.__table__).values(last_heartbeat_at=LONG_AGO))

    @contextmanager
    def locked(self, *ti_ids: str) -> Iterator[Any]:
        """Within this, somebody else holds the rows of these instances."""
        table = TaskInstance.__table__
        ids = [task_instances.instance_id(ti_id) for ti_id in ti_ids]
        with self.engine.connect() as connection:
            connection.execute(sqlalchemy.select(table.c.id).where(table.c.id.in_(ids)).with_for_update())
            yield connection
            connection.rollback()
