"""One job with all its tasks, read from its files, and the changes that are written to them.

``state.json`` and ``tasks.json`` are written whole, for people and for git. That costs time in proportion to the length
of the job, so it is not done for each change: a change is a line in the journal, and the two files follow when that
takes at most a small share of the time (:data:`_SHARE`). A journal belongs to the one ``tasks.json`` that its first
line names. If somebody puts another ``tasks.json`` there, as ``git checkout`` does, the journal does not count.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from air_executor import jsontext
from air_executor.errors import JobChangedError, JobError, StateDirError
from air_executor.jobs import ended, snapshot
from air_executor.jobs.folder import JobFolder
from air_executor.jobs.journal import Journal
from air_executor.jobs.model import Job, JobState, Task, check_dependencies, new_tasks
from air_executor.jobs.reading import MAX_TASKS_BYTES, parse, read
from air_executor.machine.safe_files import replace_file
from air_executor.runs.record import now

#: At most this share of the time goes into writing the files of a job whole.
_SHARE = 0.05

_IGNORED = "lock\njournal.jsonl\ninbox/\nlogs/\n.*.tmp\n*.unreadable*\n"


class JobFiles(JobFolder):
    """One job: its tasks as the files have them, and the changes to them. One process at a time may change a job."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.job: Job
        self.tasks: dict[str, Task] = {}
        self.keys: dict[str, str] = {}
        """Ids of the tasks that have a key, by their keys."""
        self.spoilt_lines: list[int] = []
        """Numbers of the lines in the journal that can't be understood."""
        #: The text of each unchanged task in tasks.json.
        self._texts: dict[str, bytes] = {}
        self._journal = Journal(path / "journal.jsonl")
        #: The digest of tasks.json.
        self._base = ""
        #: The signature of the files as they were last read or written here.
        self._seen: snapshot.Signature = ()
        #: Whether the journal holds changes that tasks.json does not have yet.
        self._is_due = False
        self._due_s = 0.0

    # Reading

    def load(self) -> None:
        """Read the files, with the changes in the journal.

        :raises JobError: they are missing, or can't be understood; then they stay as they are.
        :raises StateDirError: they can't be read.
        """
        found = snapshot.take(self.path)
        self.job = self._job(found.state)
        self.tasks, self.keys, self._texts = {}, {}, {}
        self.add([self._task(each) for each in found.tasks], f"{self.name}/tasks.json")
        self._base, self._seen = found.base, found.signature
        self._is_due = bool(found.changes)
        self.spoilt_lines = found.spoilt_lines
        self._apply(found.changes)

    def _apply(self, changes: dict[int, dict[str, Any]]) -> None:
        """Apply the changes in the journal.

        :raises JobError: with them, dependencies are unknown or lead back.
        """
        is_checked = True
        for number, entry in changes.items():
            try:
                task = self._task(entry)
            except JobError:
                self.spoilt_lines.append(number)
                continue
            former = self.tasks.get(task.id)
            is_checked &= former is not None and former.dependencies == task.dependencies
            self.tasks[task.id] = task
            if task.key is not None:
                self.keys[task.key] = task.id
            self._texts.pop(task.id, None)
        if not is_checked:
            check_dependencies((), self.tasks.values(), f"{self.name}/journal.jsonl")

    def _task(self, document: Any) -> Task:
        return Task.from_dict(document, job_name=self.name, where=f"{self.name}/tasks.json")

    def was_changed(self) -> bool:
        """Tell whether somebody else has changed the files, or removed them."""
        return self.signature() != self._seen

    # Files that can't be understood

    def set_aside(self) -> list[Path]:
        """Keep copies of files that somebody else has put here, so that these may be written again.

        :return: the copies. The files themselves stay meanwhile: without them there would be no job.
        """
        kept = []
        former = self._seen or (None, None)
        for name, before, found in zip(("state.json", "tasks.json"), former, self.signature(), strict=True):
            aside = self.path / f"{name}.unreadable-{now().replace(':', '')}"
            if found in (before, None):
                continue
            with contextlib.suppress(OSError):
                if (self.path / name).is_dir():
                    os.replace(self.path / name, aside)
                else:
                    os.link(self.path / name, aside, follow_symlinks=False)
                kept.append(aside)
        self._seen = ()
        return kept

    def mend_journal(self) -> Path | None:
        """If lines of the journal can't be understood, write the files whole, and set the journal aside.

        :return: where the journal is then; ``None``: it was all right.
        :raises AirExecutorError: as :meth:`write`.
        """
        if not self.spoilt_lines:
            return None
        self.write()
        self.spoilt_lines = []
        path = self.path / "journal.jsonl"
        aside = self.path / f"journal.jsonl.unreadable-{now().replace(':', '')}"
        try:
            os.replace(path, aside)
        except OSError as error:
            raise StateDirError(f"cannot rename {path}: {error.strerror}") from error
        return aside

    def note_failure(self, reason: str) -> None:
        """Mark the job as failed in ``state.json``, whatever else is in it. Everything else stays as it is.

        :raises AirExecutorError: it can't be read or written.
        """
        path = self.path / "state.json"
        document = parse(read(path, MAX_TASKS_BYTES) or b"{}", path)
        document = document if isinstance(document, dict) else {}
        document |= {"state": JobState.FAILED.value, "error": reason, "updated_at": now()}
        replace_file(path, jsontext.dumps(document, option=orjson.OPT_INDENT_2))

    # Changing

    def add(self, tasks: Iterable[Task], where: str) -> list[Task]:
        """Add tasks, all or none. A task whose key the job has already is left out.

        :param where: names the source of the tasks, for messages.
        :return: the tasks that were added.
        :raises JobError: an id is taken, or a dependency is unknown or leads back.
        """
        new, keys = new_tasks(tasks, self.tasks, self.keys, where)
        for task in new.values():
            task.job_name = self.job.name
            task.created_at = task.created_at or now()
        self.tasks.update(new)
        self.keys.update(keys)
        return list(new.values())

    def commit(self, *tasks: Task) -> None:
        """Write changed tasks to the journal, all or none. :meth:`write_if_due` brings them into ``tasks.json``.

        :raises StateDirError: they can't be written.
        """
        lines = b"".join(jsontext.dumps(task.to_dict()) + b"\n" for task in tasks)
        for task in tasks:
            self.forget_text(task)
        if self._is_due and not self._journal.is_open:
            self.write()  # a new journal would replace one whose changes are not in tasks.json yet
            return
        self._journal.append(lines, self._base)
        self._is_due = True

    def forget_text(self, task: Task) -> None:
        """Note that a task has changed, so that its text in ``tasks.json`` is made anew."""
        self._texts.pop(task.id, None)

    def set_state(self, state: JobState, error: str | None = None) -> None:
        """Set the state of the job, and write the files whole.

        :raises AirExecutorError: as :meth:`write`.
        """
        self.job.state, self.job.error = state, error
        self.write()

    def due_s(self) -> float | None:
        """Return when the files should be written whole, on the monotonic clock; ``None``: they have all changes."""
        return self._due_s if self._is_due else None

    def write_if_due(self) -> None:
        """Write the files whole if they lack changes and enough time has passed since the last write.

        :raises AirExecutorError: as :meth:`write`.
        """
        if self._is_due and time.monotonic() >= self._due_s:
            self.write()

    def _check_unchanged(self) -> None:
        if self._seen and self.was_changed():
            raise JobChangedError(f"somebody has changed the files in {self.path}")

    def write(self) -> None:
        """Write the files whole. ``state.json`` is the last one.

        :raises JobChangedError: somebody else has changed them since they were read or written here; they stay.
        :raises StateDirError: they can't be written.
        """
        began_s = time.monotonic()
        self._check_unchanged()
        data = self._tasks_document()
        self.job.updated_at = now()
        if not (self.path / ".gitignore").exists():
            replace_file(self.path / ".gitignore", _IGNORED.encode())
        tasks = replace_file(self.path / "tasks.json", data, is_durable=True, check=self._check_unchanged)
        tasks_now = snapshot.identity(tasks)
        if self._seen:
            self._seen = (self._seen[0], tasks_now)
        state = replace_file(self.path / "state.json", self.job.to_json(), is_durable=True, check=self._check_unchanged)
        if self.job.state.is_end and not self.path.name.startswith("."):  # which is being made
            ended.note(self.path)
        self._base, self._seen = snapshot.digest(data), (snapshot.identity(state), tasks_now)
        self.abandon()
        self._is_due = False
        self._due_s = time.monotonic() + (time.monotonic() - began_s) / _SHARE

    def _tasks_document(self) -> bytes:
        """Return ``tasks.json``. Only tasks that have changed are encoded again."""
        for task_id, task in self.tasks.items():
            if task_id not in self._texts:
                text = jsontext.dumps(task.to_dict(), option=orjson.OPT_INDENT_2)
                self._texts[task_id] = text.replace(b"\n", b"\n  ")
        tasks = b",\n  ".join(self._texts[task_id] for task_id in self.tasks)
        return b"[\n  " + tasks + b"\n]\n" if tasks else b"[]\n"

    def close(self) -> None:
        """Write the files whole if they lack changes, and let go of them.

        :raises AirExecutorError: as :meth:`write`.
        """
        try:
            if self._is_due:
                self.write()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the files as they are. Changes that are not in ``tasks.json`` stay in the journal."""
        self._journal.close()
