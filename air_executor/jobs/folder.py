"""The folder of one job, for those who only look: what its files say now, without reading each task."""

from __future__ import annotations

import stat
from collections import Counter
from pathlib import Path
from typing import Any

from air_executor.errors import JobError
from air_executor.jobs import inbox, snapshot
from air_executor.jobs.inbox import Ask
from air_executor.jobs.model import Job, JobState, TaskStatus, check_name
from air_executor.jobs.reading import MAX_TASKS_BYTES, parse, read, status
from air_executor.jobs.snapshot import Signature
from air_executor.runs.lock import KernelLock

_ENDS = frozenset(each.value for each in JobState if each.is_end)


class JobFolder:
    """The folder of one job. Everything here reads the files anew, and changes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        """The job's name."""
        self.logs = path / "logs"
        """The folder of the tasks' output."""

    def lock(self) -> KernelLock:
        """Return the lock that is held by the manager that works on this job."""
        return KernelLock(self.path / "lock")

    def log_file(self, task_id: str) -> Path:
        """Return the file of a task's output.

        :raises JobError: ``task_id`` can't be an id.
        """
        return self.logs / f"{check_name(task_id, 'a task')}.log"

    def check_folders(self) -> None:
        """Check that no folder of the job is a link. A repository may hold links that lead elsewhere.

        :raises JobError: one is.
        :raises StateDirError: one can't be looked at.
        """
        for folder in (self.path, self.logs, self.path / "inbox"):
            if (found := status(folder)) is not None and stat.S_ISLNK(found.st_mode):
                raise JobError(f"{folder} is a link, which is not followed: put a folder in its place")

    def asks(self) -> list[Ask]:
        """Return the requests in the job's inbox, oldest first.

        :raises StateDirError: they can't be read now.
        """
        return inbox.asks(self.path / "inbox")

    def read_job(self) -> Job:
        """Return the job without its tasks, from ``state.json`` alone.

        :raises JobError: the file is missing, or can't be understood.
        :raises StateDirError: it can't be read.
        """
        return self._job(self._state())

    def is_ended(self) -> bool:
        """Tell whether the job has ended, from ``state.json`` alone.

        :raises JobError: the file is missing, or can't be understood.
        """
        document = parse(self._state(), self.path / "state.json")
        state = document.get("state") if isinstance(document, dict) else None
        return isinstance(state, str) and state in _ENDS

    def is_over(self) -> bool:
        """Tell whether the job has ended, and nothing is asked of it.

        :raises JobError: its state is missing, or can't be understood.
        :raises StateDirError: it can't be looked at now.
        """
        # In this order: a manager removes a request when the job's state says what has become of it.
        return not self.asks() and self.is_ended()

    def counts(self) -> tuple[Job, Counter[str]]:
        """Return the job, and how many of its tasks have each status. The tasks themselves are not checked.

        :raises JobError: the files are missing, or can't be understood.
        :raises StateDirError: they can't be read.
        """
        found = snapshot.take(self.path)
        default = TaskStatus.PENDING.value
        statuses = {str(each.get("id")): str(each.get("status", default)) for each in found.entries()}
        return self._job(found.state), Counter(statuses.values())

    def outline(self) -> tuple[set[str], dict[str, str]]:
        """Return the ids of all tasks, and the ids of those that have a key by their keys. The rest is not checked.

        :raises JobError: the files are missing, or can't be understood.
        :raises StateDirError: they can't be read.
        """
        tasks = [each for each in snapshot.take(self.path).entries() if isinstance(each.get("id"), str)]
        keys = {each["key"]: each["id"] for each in tasks if isinstance(each.get("key"), str)}
        return {each["id"] for each in tasks}, keys

    def signature(self) -> Signature:
        """Return what tells ``state.json`` and ``tasks.json`` as they are now from what they were or will be."""
        return snapshot.signature(self.path)

    def journal_size(self) -> int:
        """Return the length of the journal in bytes, which grows with each change; -1 if there is none."""
        try:
            return (self.path / "journal.jsonl").stat().st_size
        except OSError:
            return -1

    def _state(self) -> bytes:
        path = self.path / "state.json"
        if (data := read(path, MAX_TASKS_BYTES)) is None:
            raise JobError(f"{path} is missing")
        return data

    def _job(self, state: bytes) -> Job:
        document: Any = parse(state, self.path / "state.json")
        return Job.from_dict(document, name=self.name, where=f"{self.name}/state.json")
