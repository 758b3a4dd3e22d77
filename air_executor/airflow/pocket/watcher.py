"""The part that reads the DAG, begins its run, and tells what becomes of it, until it has ended."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from air_executor import jsontext
from air_executor.airflow.compat import AIRFLOW_VERSION, pocketing
from air_executor.airflow.pocket import database, source
from air_executor.airflow.pocket.telling import tell
from air_executor.errors import AirExecutorError
from air_executor.pocket.folder import RunFolder
from air_executor.pocket.leftover import live_runs, stop_runs
from air_executor.pocket.request import DagError, Request
from air_executor.pocket.settings import BUNDLE
from air_executor.runs.record import RunRecord

if TYPE_CHECKING:
    from airflow.sdk import DAG
    from sqlalchemy.orm import Session

#: How often to look at the database, in seconds.
_LOOK_S = 0.2

#: How long callbacks may take when all else has ended, in seconds.
_CALLBACKS_S = 120.0

#: A larger result than so many bytes is not told.
_MAX_RESULT_BYTES = 1 << 20

_ENDED = frozenset({"success", "failed"})
_INTERRUPTED = 130
_UNFINISHED = frozenset({"running", "queued", "restarting"})

#: A task, and its map index, -1 if it is not mapped.
Key = tuple[str, int]


def watch(folder: RunFolder, request: Request, main: socket.socket) -> None:
    """Be the watcher. Leaves with the exit code of the command.

    :param main: takes names of parts that are wanted, and gives the word that the run is interrupted.
    """
    try:
        code = _Watcher(folder, request, main).work()
    except AirExecutorError as error:
        tell("error", error=str(error))
        code = error.exit_code
    raise SystemExit(code)


class _Watcher:
    """Watches one run."""

    def __init__(self, folder: RunFolder, request: Request, main: socket.socket) -> None:
        self._folder, self._request, self._main = folder, request, main
        self._dag_id = self._run_id = ""
        self._told: dict[Key, dict[str, Any]] = {}
        #: Whether the dag processor, which ends by itself, executes callbacks.
        self._is_calling_back = False
        #: When the run was seen to have ended, on the monotonic clock.
        self._ended_s: float | None = None

    def work(self) -> int:
        """Work until the run has ended, and return the exit code."""
        dag = self._begin()
        from airflow.utils.session import create_session

        while True:
            with create_session() as session:
                self._tell_changes(session)
                state, ended = self._state(session)
                if pocketing.needs_triggerer(session):
                    self._want("triggerer")
                # It saves the DAG anew; one of which only a part runs would get the rest of its tasks by that.
                has_callbacks = pocketing.has_callbacks(session)
                if has_callbacks and not self._is_calling_back and (not self._request.tasks or ended):
                    self._is_calling_back = True
                    self._want("dag-processor")
            if ended and self._is_over():
                return self._finish(dag, state)
            if self._is_interrupted():
                return self._stop()

    def _begin(self) -> DAG:
        """Read the DAG, and begin its run, or go on with it."""
        bag, dag = source.read(self._request)
        database.fill(self._request)
        source.check(dag, database.pools())
        note = self._folder.path / "run.json"
        goes_on = note.exists()
        if goes_on:
            begun = jsontext.loads(note.read_bytes())
            if begun["airflow"] != list(AIRFLOW_VERSION):
                version = ".".join(map(str, begun["airflow"]))
                raise DagError(f"the run was begun with Airflow {version}; --restart begins it anew with this one")
        pocketing.save_dags(bag, BUNDLE)
        if goes_on:
            self._dag_id, self._run_id = begun["dag_id"], begun["run_id"]
            self._clear(self._unfinished(live=False))
        else:
            self._dag_id, self._run_id = dag.dag_id, self._trigger(dag)
            begun = {"dag_id": self._dag_id, "run_id": self._run_id, "file": dag.fileloc}
            self._folder.write("run.json", {**begun, "airflow": list(AIRFLOW_VERSION)})
        self._want("scheduler")
        tell("dag", dag_id=self._dag_id, run_id=self._run_id, tasks=source.order(dag), goes_on=goes_on)
        return dag

    def _trigger(self, dag: DAG) -> str:
        from airflow.sdk.exceptions import AirflowException

        text = self._request.logical_date
        try:
            date = datetime.fromisoformat(text) if text else datetime.now(tz=timezone.utc)
        except ValueError as error:
            raise DagError(f"--logical-date {text!r} is no date in ISO 8601: {error}") from None
        date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        try:
            return pocketing.trigger(dag.dag_id, self._request.run_id, self._request.conf, date)
        except (AirflowException, ValueError) as error:
            raise DagError(f"DAG {dag.dag_id} can't be run so: {error}") from None

    def _want(self, part: str) -> None:
        self._main.send(part.encode())

    def _state(self, session: Session) -> tuple[str, bool]:
        from airflow.models import DagRun
        from sqlalchemy import select

        wanted = select(DagRun.state).where(DagRun.dag_id == self._dag_id, DagRun.run_id == self._run_id)
        state = str(session.scalar(wanted))
        return state, state in _ENDED

    def _rows(self, session: Session) -> Iterable[tuple[Key, dict[str, Any]]]:
        from airflow.models import TaskInstance
        from sqlalchemy import select

        ti = TaskInstance
        columns = (ti.task_id, ti.map_index, ti.state, ti.try_number, ti.start_date, ti.end_date)
        wanted = select(*columns).where(ti.dag_id == self._dag_id, ti.run_id == self._run_id)
        for task_id, map_index, state, try_number, start, end in session.execute(wanted):
            yield (
                (task_id, map_index),
                {
                    "task_id": task_id,
                    "map_index": map_index,
                    "state": None if state is None else str(state),
                    "try_number": try_number,
                    "start": start and start.isoformat(),
                    "end": end and end.isoformat(),
                },
            )

    def _tell_changes(self, session: Session) -> None:
        for key, row in self._rows(session):
            before = self._told.get(key, {"state": None, "try_number": 0})
            if (row["state"], row["try_number"]) != (before["state"], before["try_number"]):
                tell("task", **row)
            self._told[key] = row

    def _is_interrupted(self) -> bool:
        """Wait a moment, and tell whether the run is to stop."""
        readable, _, _ = select.select([self._main], [], [], _LOOK_S)
        word = self._main.recv(256) if readable else b""
        if word == b"dag-processor":
            self._is_calling_back = False
        return word == b"interrupted"

    def _is_over(self) -> bool:
        """Tell whether nothing more comes of a run that has ended: its callbacks have been executed, too."""
        if self._ended_s is None:
            self._ended_s = time.monotonic()
        if not self._is_calling_back:
            return True
        if time.monotonic() < self._ended_s + _CALLBACKS_S:
            return False
        tell("warning", warning=f"callbacks were not executed within {_CALLBACKS_S:.0f} s")
        return True

    def _stop(self) -> int:
        """Stop what runs, so that the same command goes on with it."""
        unfinished = self._unfinished()
        stop_runs(self._folder.state_dir, "the command was interrupted")
        self._clear(unfinished)
        return _INTERRUPTED

    def _unfinished(self, *, live: bool = True) -> list[Key]:
        """Return the tasks that Airflow takes for running.

        :param live: also those that do run.
        """
        from airflow.utils.session import create_session

        running = set() if live else {_key(record) for record in live_runs(self._folder.state_dir)}
        with create_session() as session:
            found = [key for key, row in self._rows(session) if row["state"] in _UNFINISHED]
        return [key for key in found if key not in running]

    def _clear(self, keys: list[Key]) -> None:
        """Have tasks run again, in a new try that costs none of their retries, unless they have come to an end."""
        from airflow.models import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import select

        done = ("success", "skipped", "deferred", "up_for_reschedule")
        with create_session() as session:
            of_run = TaskInstance.dag_id == self._dag_id, TaskInstance.run_id == self._run_id
            wanted = select(TaskInstance).where(*of_run)
            found = {(ti.task_id, ti.map_index): ti for ti in session.scalars(wanted)}
            again = [found[key] for key in keys if key in found and found[key].state not in done]
            pocketing.clear_unfinished(again, session)

    def _finish(self, dag: DAG, state: str) -> int:
        """Write down what became of the run, and return the exit code."""
        from airflow.utils.session import create_session

        with create_session() as session:
            self._tell_changes(session)
            tasks = [row for _, row in self._rows(session)]
            results = self._results(session)
        result = {
            "dag_id": self._dag_id,
            "run_id": self._run_id,
            "state": state,
            "tasks": sorted(tasks, key=_place(source.order(dag))),
            "leaves": [task.task_id for task in dag.leaves],
            "xcoms": results,
        }
        self._folder.write("result.json", result)
        tell("ended", state=state)
        return 0 if state == "success" else 1

    def _results(self, session: Session) -> list[dict[str, Any]]:
        """Return what the tasks have pushed, as Airflow keeps it."""
        from airflow.models.xcom import XComModel
        from sqlalchemy import select

        wanted = select(XComModel).where(XComModel.dag_id == self._dag_id, XComModel.run_id == self._run_id)
        found = []
        for row in session.scalars(wanted):
            value = XComModel.deserialize_value(row)
            try:
                size = len(jsontext.dumps(value))
            except TypeError:
                value, size = repr(value), 0
            entry = {"task_id": row.task_id, "map_index": row.map_index, "key": row.key}
            found.append(entry | ({"value": value} if size <= _MAX_RESULT_BYTES else {"omitted_bytes": size}))
        return found


def _key(record: RunRecord) -> Key:
    return record.identity.task_id or "", -1 if record.identity.map_index is None else record.identity.map_index


def _place(order: tuple[str, ...]) -> Any:
    places = {task_id: number for number, task_id in enumerate(order)}
    return lambda row: (places.get(row["task_id"], len(places)), row["map_index"])
