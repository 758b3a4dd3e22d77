"""The jobs below one state directory.

::

    <state_dir>/jobs/
      manager.lock              held by the manager of all jobs for its whole life
      manager.json              its process id
      <name>/state.json         the job
             tasks.json         its tasks, in the order in which they were added
             journal.jsonl      changes to tasks since tasks.json was written
             lock               held by the manager that works on the job, while it does
             inbox/             requests to the manager: more tasks, a cancellation, another try
             logs/<task>.log    the output of the tasks
             .gitignore         names what does not belong in a repository

Only this package writes them. :mod:`air_executor.jobs.files` says how a single job is written.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import stat
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from air_executor.errors import (
    AirExecutorError,
    JobExistsError,
    StateDirError,
    UnknownJobError,
    UntrustedJobError,
)
from air_executor.jobs import inbox, trust
from air_executor.jobs.files import JobFiles
from air_executor.jobs.model import HOOKS, Job, Task, check_dependencies, check_name
from air_executor.jobs.names import ABOUT, LOCK
from air_executor.jobs.private import PrivateStore
from air_executor.jobs.reading import read, status
from air_executor.machine import system
from air_executor.machine.ownership import check_state_dir
from air_executor.machine.processes import ProcessId
from air_executor.machine.safe_files import replace_file
from air_executor.runs.lock import KernelLock, is_held

__all__ = ["CHANGED", "JobFiles", "JobStore", "Values", "base_folder", "is_worked_on"]

#: Values of private variables: those of the job by ``None``, those of its tasks by their ids.
Values = Mapping["str | None", Mapping[str, str]]

_NONE: Values = MappingProxyType({})

#: A file ``.asked-NAME`` is made in the folder of the jobs, and removed at once, to tell its watchers that job NAME has
#: changed. Former versions make a file ``.asked`` for any job.
CHANGED = ".asked"


def base_folder(state_dir: str | Path) -> Path:
    """Return the folder that holds the state directory. Working directories of jobs are relative to it.

    So a job that was committed to git can go on in another clone.
    """
    return Path(state_dir).resolve().parent


def is_worked_on(folder: Path) -> bool:
    """Tell whether a manager works on the job in ``folder``: that of all jobs, or one of this job alone."""
    return is_held(folder.parent / LOCK) or is_held(folder / "lock")


class JobStore:
    """The jobs below one state directory."""

    def __init__(self, state_dir: str | Path, *, is_looking: bool = False) -> None:
        """Check that the state directory is this user's alone.

        :param is_looking: nothing will be written. Then root may use the directory of another user.
        :raises StateDirError: it belongs to another user, or others may write to it.
        """
        check_state_dir(state_dir, is_looking=is_looking)
        self.root = Path(state_dir) / "jobs"

    @functools.cached_property
    def private(self) -> PrivateStore:
        """Which of these jobs are trusted, and the values of their private variables."""
        return PrivateStore(self.root.parent)

    def distrust(self, job: Job, tasks: Iterable[Task] | None = None) -> str | None:
        """Return why a job must not run; ``None``: it was submitted here, or the user trusts it as it is.

        :param tasks: its tasks; read from its files if they are needed and not given.
        :raises JobError: they can't be understood.
        """
        if not self.private.is_trusted(job):
            return "was not submitted here"
        vouched = self.private.vouched(job)
        if vouched is None:
            return None
        if tasks is None:
            files = self.open(job.name)
            job, tasks = files.job, files.tasks.values()
        new = trust.changes(trust.digests(job, tasks), vouched)
        return None if new is None else f"has changed since it was trusted ({new})"

    def check_trust(self, job: Job, tasks: Iterable[Task] | None = None) -> None:
        """Check that a job may run, as :meth:`distrust` tells.

        :raises UntrustedJobError: it must not.
        """
        if (why := self.distrust(job, tasks)) is not None:
            raise UntrustedJobError(
                f"job {job.name} {why}, so nothing of it is run. Look at it (`air-executor job {job.name}`); if you "
                f"trust it: `air-executor trust {job.name}`"
            )

    def trust(self, job: Job) -> None:
        """Allow a job that was not submitted here to run, as it is now.

        :raises JobError: its files can't be understood.
        :raises StateDirError: it can't be noted.
        """
        files = self.open(job.name)
        self.private.vouch(files.job, trust.digests(files.job, files.tasks.values()))
        with contextlib.suppress(OSError):
            os.utime(self.folder(job.name) / "state.json")  # so that its manager looks at it again
        self.announce(job.name)

    def prepare(self) -> None:
        """Make the folder of the jobs.

        :raises StateDirError: it can't be made.
        """
        try:
            self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateDirError(f"the folder of the jobs, {self.root}, cannot be made: {error}") from error

    def lock(self) -> KernelLock:
        """Return the lock that is held by the manager of all these jobs."""
        return KernelLock(self.root / LOCK)

    def check_free(self, *names: str) -> None:
        """Check that no folder, as of a job in a repository, is in the place of files of the manager.

        :raises StateDirError: one is.
        """
        for path in (self.root / name for name in names):
            if (found := status(path)) is not None and stat.S_ISDIR(found.st_mode):
                raise StateDirError(f"{path} is a folder, and the manager needs a file there: rename or remove it")

    def note_manager(self) -> None:
        """Note that the calling process is the manager, for those who want to stop it. Its lock says whether it lives.

        :raises StateDirError: it can't be written.
        """
        me = ProcessId.own()
        document = {"pid": me.pid, "pid_started": system.start_time(me.pid), **me.to_document()}
        replace_file(self.root / ABOUT, orjson.dumps(document))

    def manager(self) -> int | None:
        """Return the manager's process id; ``None`` when there is no manager."""
        document = self._manager()
        return None if document is None else int(document["pid"])

    def signal_manager(self, signum: signal.Signals) -> int | None:
        """Send a signal to the manager. Return its process id; ``None`` when there is no manager."""
        document = self._manager()
        if document is None:
            return None
        if (known := ProcessId.from_document(document)) is not None:
            return known.pid if known.send(signum) else None
        # Written by a former version.
        pid = int(document["pid"])
        return pid if system.signal_process(pid, document["pid_started"], signum) else None

    def _manager(self) -> dict[str, Any] | None:
        if not is_held(self.root / LOCK):
            return None
        try:
            document = orjson.loads(read(self.root / ABOUT) or b"null")
            if int(document["pid"]) <= 0:
                return None
            return {"pid_started": None, **document, "pid": int(document["pid"])}
        except (AirExecutorError, KeyError, TypeError, ValueError, OverflowError):
            return None

    def names(self) -> list[str]:
        """Return the names of all jobs, in alphabetical order. A folder that can't be read counts as a job.

        :raises StateDirError: the folder of the jobs can't be read.
        """
        return [name for name in sorted(self.folders()) if self.has(name)]

    def folders(self) -> list[str]:
        """Return the names of all folders that may be jobs, without looking into them.

        :raises StateDirError: the folder of the jobs can't be read.
        """
        try:
            with os.scandir(self.root) as entries:
                return [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateDirError(f"the folder of the jobs, {self.root}, cannot be read: {error.strerror}") from error

    def has(self, name: str) -> bool:
        """Tell whether there is a job of that name, readable or not."""
        try:
            os.stat(os.path.join(self.root, name, "state.json"))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def folder(self, name: str) -> Path:
        """Return the folder of a job.

        :raises JobError: ``name`` can't be a name.
        """
        return self.root / check_name(name)

    def files(self, name: str) -> JobFiles:
        """Return the files of a job, not read yet.

        :raises UnknownJobError: there is no such job.
        :raises JobError: a folder of it is a link.
        :raises StateDirError: it can't be looked at.
        """
        files = JobFiles(self.folder(name))
        if (found := status(files.path)) is None or stat.S_ISREG(found.st_mode):
            raise UnknownJobError(f"there is no job {name} below {self.root}")
        files.check_folders()
        return files

    def open(self, name: str) -> JobFiles:
        """Return a job with its tasks as the files have them now.

        :raises JobError: there is no such job, or its files can't be understood.
        """
        files = self.files(name)
        files.load()
        return files

    def create(self, job: Job, tasks: Iterable[Task], values: Values = _NONE) -> JobFiles:
        """Write a new job, whole or not at all, and trust it.

        :param values: the values of private variables.
        :raises JobExistsError: there is a job of that name.
        :raises JobError: the tasks contradict each other.
        :raises StateDirError: it can't be written.
        """
        self.prepare()
        folder = self.folder(job.name)
        if status(folder) is not None:
            raise self._taken(job.name)
        files = JobFiles(self.root / f".{job.name}.{uuid.uuid4()}")
        files.job = job
        files.add(tasks, f"job {job.name}")
        for hook in filter(None, (job.hook(name, where=f"job {job.name}") for name in HOOKS)):
            check_dependencies(files.tasks, [hook], f"job {job.name}")
        try:
            files.path.mkdir(mode=0o700)
            try:
                files.write()
                self.keep_private(job, values)
                if status(folder) is not None:
                    raise self._taken(job.name)
                files.path.rename(folder)
            except BaseException:
                shutil.rmtree(files.path, ignore_errors=True)
                self.private.forget(job)
                raise
        except OSError as error:
            raise StateDirError(f"job {job.name} cannot be written to {folder}: {error.strerror}") from error
        return self.open(job.name)

    def keep_private(self, job: Job, values: Values) -> None:
        """Keep the values of a job's private variables outside of the state directory, and trust the job.

        :raises StateDirError: they can't be written.
        """
        for task_id, given in values.items():
            self.private.keep(job, given, task_id)
        self.private.trust(job)

    def _taken(self, name: str) -> JobExistsError:
        return JobExistsError(
            f"there is a job {name} already. `--replace` begins it anew with this definition, `--new-name` calls this "
            f"one {name}-2; `air-executor reset {name}` begins it anew as it was"
        )

    def ask(self, name: str, action: str, tasks: Iterable[Any] = (), **more: Any) -> Path:
        """Put a request into a job's inbox.

        :param tasks: documents of tasks to queue, or the ids of the tasks that the action is about.
        :param more: further fields of the request.
        :return: the request's file, which its manager removes.
        :raises JobError: there is no such job.
        :raises StateDirError: it can't be written.
        """
        folder = self.folder(name)
        if not self.has(name):
            raise UnknownJobError(f"there is no job {name} below {self.root}")
        files = JobFiles(folder)
        files.check_folders()
        ask = inbox.new(folder / "inbox", action, tasks, more)
        trust.vouch_ask(files, ask)
        inbox.put(ask)
        self.announce(name)
        return ask.path

    def announce(self, name: str) -> None:
        """Tell the manager that a job has changed: it does not watch the folders of jobs that have ended."""
        mark = self.root / f"{CHANGED}-{name}"
        with contextlib.suppress(OSError):  # the manager finds out without it, but later
            mark.touch(mode=0o600)
            mark.unlink(missing_ok=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return True
