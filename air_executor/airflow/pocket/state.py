"""What the database of a run says, and what is changed in it when the run goes on after an interruption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from air_executor import jsontext
from air_executor.airflow.compat import pocketing
from air_executor.runs.record import RunRecord

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: A larger result than this many bytes is not kept, nor more than this many of all results.
_MAX_RESULT_BYTES, _MAX_BYTES = 1 << 20, 64 << 20

#: States of a run that has ended, and of a task that Airflow takes for running.
ENDED = frozenset({"success", "failed"})
_UNFINISHED = ("running", "queued", "restarting")

#: What needs no further try, though it was stopped.
_DONE = frozenset({"success", "skipped", "deferred", "up_for_reschedule"})

#: Dag, run, task and map index, -1 if it is not mapped.
Key = tuple[str, str, str, int]


def dag_runs(session: Session) -> dict[tuple[str, str], str]:
    """Return the states of all runs, by dag and run id: those that the run has triggered, too."""
    from airflow.models import DagRun
    from sqlalchemy import select

    found = session.execute(select(DagRun.dag_id, DagRun.run_id, DagRun.state))
    return {(dag_id, run_id): str(state) for dag_id, run_id, state in found}


class Instances:
    """The task instances of a run, as far as people see them."""

    def __init__(self, dag_id: str, run_id: str) -> None:
        self._dag_id, self._run_id = dag_id, run_id
        self._seen: dict[tuple[str, int], tuple[str | None, int]] = {}

    def changes(self, session: Session) -> Iterator[dict[str, Any]]:
        """Yield a document for each that has another state or try than at the last call."""
        for row in self._rows(session):
            key, now = (row[0], row[1]), (row[2], row[3])
            if self._seen.get(key, (None, 0)) != now:
                yield _document(row)
            self._seen[key] = now

    def all(self, session: Session) -> list[dict[str, Any]]:
        """Return a document for each."""
        return [_document(row) for row in self._rows(session)]

    def _rows(self, session: Session) -> Iterable[Any]:
        from airflow.models import TaskInstance
        from sqlalchemy import select

        ti = TaskInstance
        columns = (ti.task_id, ti.map_index, ti.state, ti.try_number, ti.start_date, ti.end_date)
        return session.execute(select(*columns).where(ti.dag_id == self._dag_id, ti.run_id == self._run_id)).all()


def _document(row: Any) -> dict[str, Any]:
    task_id, map_index, state, try_number, start, end = row
    return {
        "task_id": task_id,
        "map_index": map_index,
        "state": None if state is None else str(state),
        "try_number": try_number,
        "start": start and start.isoformat(),
        "end": end and end.isoformat(),
    }


def key_of(record: RunRecord) -> Key:
    """Return which task instance a run is of."""
    who = record.identity
    return who.dag_id or "", who.dag_run_id or "", who.task_id or "", -1 if who.map_index is None else who.map_index


def unfinished(session: Session) -> list[Key]:
    """Return the task instances, of all runs, that Airflow takes for running."""
    from airflow.models import TaskInstance
    from sqlalchemy import select

    ti = TaskInstance
    wanted = select(ti.dag_id, ti.run_id, ti.task_id, ti.map_index).where(ti.state.in_(_UNFINISHED))
    return [(dag_id, run_id, task_id, index) for dag_id, run_id, task_id, index in session.execute(wanted)]


def clear(session: Session, keys: Iterable[Key]) -> None:
    """Have tasks run again, in a new try that costs none of their retries, unless they have come to an end."""
    from airflow.models import TaskInstance
    from sqlalchemy import select

    ti = TaskInstance
    for dag_id, run_id, task_id, map_index in keys:
        of_key = (ti.dag_id == dag_id, ti.run_id == run_id, ti.task_id == task_id, ti.map_index == map_index)
        found = session.scalar(select(TaskInstance).where(*of_key))
        if found is not None and found.state not in _DONE:
            pocketing.clear_interrupted(found, session)


def results(session: Session, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """Return what the tasks of a run have pushed, as Airflow keeps it."""
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    row, found, total = XComModel, [], 0
    wanted = select(row.task_id, row.map_index, row.key, row.value)
    for task_id, map_index, key, value in session.execute(wanted.where(row.dag_id == dag_id, row.run_id == run_id)):
        entry = {"task_id": task_id, "map_index": map_index, "key": key}
        try:
            size = len(jsontext.dumps(value))
        except TypeError:  # as an integer of more than 64 bits
            value = repr(value)
            size = len(value)
        if size > _MAX_RESULT_BYTES or total + size > _MAX_BYTES:
            found.append(entry | {"omitted_bytes": size})
        else:
            total += size
            found.append(entry | {"value": value})
    return found
