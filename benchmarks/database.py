"""Airflow's metadata database, asked directly: neither watching nor measuring may cost the API server anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2

from tests.support.api import DagRun
from tests.support.postgres import Postgres


@dataclass(frozen=True)
class Instance:
    """What became of a task instance; times in seconds since the epoch."""

    queued_s: float
    started_s: float
    ended_s: float

    @property
    def latency_ms(self) -> float:
        """From the scheduler's handing it over until it runs."""
        return (self.started_s - self.queued_s) * 1000


class Database:
    """One database of a PostgreSQL."""

    def __init__(self, postgres: Postgres, name: str) -> None:
        folder, _, port = postgres.socket.rpartition("/.s.PGSQL.")
        self.url = f"postgresql+psycopg2://postgres@/{name}?host={folder}&port={port}"
        self._connection = psycopg2.connect(host=folder, port=port, user="postgres", dbname=name)
        self._connection.autocommit = True

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return the answer to a query."""
        with self._connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    @property
    def version(self) -> str:
        """The PostgreSQL's version."""
        return str(self.rows("SHOW server_version")[0][0])

    def state(self, run: DagRun) -> str:
        """Return the state of a DAG run."""
        return str(
            self.rows("SELECT state FROM dag_run WHERE dag_id = %s AND run_id = %s", run.dag_id, run.run_id)[0][0]
        )

    def duration_s(self, run: DagRun) -> float:
        """Return how long a DAG run took, from its first to its last moment."""
        query = "SELECT extract(epoch FROM end_date - start_date) FROM dag_run WHERE dag_id = %s AND run_id = %s"
        return float(self.rows(query, run.dag_id, run.run_id)[0][0])

    def states(self, run: DagRun) -> dict[str, int]:
        """Return how many task instances of a DAG run are in which state."""
        query = (
            "SELECT coalesce(state, 'none'), count(*) FROM task_instance WHERE dag_id = %s AND run_id = %s GROUP BY 1"
        )
        return dict(self.rows(query, run.dag_id, run.run_id))

    def instances(self, run: DagRun) -> Sequence[Instance]:
        """Return the task instances of a DAG run that has ended."""
        times = ", ".join(f"extract(epoch FROM {column})" for column in ("queued_dttm", "start_date", "end_date"))
        query = f"SELECT {times} FROM task_instance WHERE dag_id = %s AND run_id = %s"
        return [Instance(*map(float, row)) for row in self.rows(query, run.dag_id, run.run_id)]


def most_at_once(instances: Sequence[Instance]) -> int:
    """Return how many task instances ran at the same time, at most."""
    steps = sorted([(i.started_s, 1) for i in instances] + [(i.ended_s, -1) for i in instances])
    running = most = 0
    for _, step in steps:
        running += step
        most = max(most, running)
    return most
