"""Jobs of deferred tasks: cancelled when the task has ended or is gone, even if no trigger notices.

A trigger cancels its job when its task instance is marked, cleared or deleted. It can't do so before the triggerer has
taken it, or while no triggerer runs. So a task that defers leaves a note, and the executor regularly looks up the
states of the task instances with a note.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import State
from sqlalchemy import select

from air_executor.errors import JobError
from air_executor.guard import Guard
from air_executor.jobs.claim import ask_to_cancel
from air_executor.jobs.notes import Note, folder_of, read_note
from air_executor.jobs.store import JobStore

log = logging.getLogger(__name__)

#: How often to look up task instances that are known to the database, in seconds.
_LOOK_S = 20.0

#: Ids per statement. SQLite before 3.32 takes at most 999.
_CHUNK = 900


class Deferrals:
    """Cancels jobs whose deferred tasks are gone."""

    def __init__(self, state_dir: Path) -> None:
        """Prepare, without looking at anything.

        :param state_dir: the executor's.
        """
        self._folder = folder_of(state_dir)
        self._next_s = 0.0
        self._notes: dict[str, Note] = {}
        #: Task instances that this database has or had. Other databases may share the state directory.
        self._known: set[str] = set()
        self._guard = Guard(log)

    def look(self) -> None:
        """Cancel the jobs for which no task waits any more. New notes are checked at once, others every 20 s.

        :raises SQLAlchemyError: the database can't be reached.
        """
        self._take_in()
        is_time = time.monotonic() >= self._next_s
        instances = [instance for instance in self._notes if is_time or instance not in self._known]
        if not instances:
            return
        if is_time:
            self._next_s = time.monotonic() + _LOOK_S
        states = states_of(instances)
        for instance in instances:
            if instance in states:
                self._known.add(instance)
            with self._guard(f"Looking after the job of task instance {instance}"):
                if states.get(instance) in State.finished:
                    self._cancel(self._notes[instance], f"is {states[instance]}")
                elif instance in self._known and instance not in states:
                    self._cancel(self._notes[instance], "was cleared or deleted")

    def _take_in(self) -> None:
        """Read new notes, and forget removed ones."""
        try:
            names = {name for name in os.listdir(self._folder) if name.endswith(".json") and not name.startswith(".")}
        except FileNotFoundError:
            names = set()
        instances = {name.removesuffix(".json") for name in names}
        for gone in self._notes.keys() - instances:
            del self._notes[gone]
        self._known &= instances
        for instance in instances - self._notes.keys():
            with self._guard(f"Reading the note of task instance {instance}"), contextlib.suppress(FileNotFoundError):
                if (note := read_note(self._folder / f"{instance}.json")) is not None:
                    self._notes[instance] = note

    def _cancel(self, note: Note, why: str) -> None:
        log.info("Job %s is cancelled if it still works: %s, which waited for it, %s", note.job, note.owner, why)
        with contextlib.suppress(JobError):  # there is no such job any more
            ask_to_cancel(JobStore(note.state_dir), note.job, note.owner)
        note.path.unlink(missing_ok=True)


def states_of(instances: list[str]) -> dict[str, str | None]:
    """Return the states of those task instances that the database has, by their ids.

    :raises SQLAlchemyError: the database can't be reached.
    """
    as_id = TaskInstance.id.type.python_type  # a UUID from Airflow 3.3 on, text before
    states: dict[str, str | None] = {}
    with create_session(scoped=False) as session:
        for start in range(0, len(instances), _CHUNK):
            ids = [as_id(each) for each in instances[start : start + _CHUNK]]
            found = session.execute(select(TaskInstance.id, TaskInstance.state).where(TaskInstance.id.in_(ids)))
            states.update({str(ti_id): None if state is None else str(state) for ti_id, state in found})
    return states
