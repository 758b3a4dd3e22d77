"""Jobs as files, below the state directory, and the only code that writes them.

::

    <state_dir>/jobs/
      manager.lock              held by the manager of all jobs for its whole life
      manager.json              its process id
      <name>/state.json         the job
             tasks.json         its tasks, in the order in which they came
             journal.jsonl      what has changed since tasks.json was written
             lock               held by the manager that works on the job, while it does
             inbox/             what others ask of the manager: more tasks, an end, another try
             logs/<task>.log    what the tasks print
             .gitignore         names what has no place in a repository

``state.json`` and ``tasks.json`` are written whole, for people and for git. That costs as much as the job is long, so
they are not written with each change: a change is one line in the journal, and the files follow when they have earned
it (:data:`_SHARE`). The journal's first line names the ``tasks.json`` that it continues, by its content. When somebody
has put another one there, as ``git checkout`` does, that one counts and the journal does not.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from air_executor import jsontext
from air_executor.errors import (
    AirExecutorError,
    JobChangedError,
    JobError,
    JobExistsError,
    StateDirError,
    UnknownJobError,
    UntrustedJobError,
)
from air_executor.jobs import inbox
from air_executor.jobs.inbox import Ask
from air_executor.jobs.model import HOOKS, Job, JobState, Task, TaskStatus, check_dependencies, check_name, new_tasks
from air_executor.jobs.private import PrivateStore
from air_executor.jobs.reading import MAX_TASKS_BYTES, parse, read
from air_executor.machine import system
from air_executor.machine.ownership import check_state_dir
from air_executor.machine.processes import ProcessId
from air_executor.machine.safe_files import replace_file
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.record import now

#: Values of variables: those of a job by ``None``, those of its tasks by their ids.
Values = Mapping["str | None", Mapping[str, str]]

_NONE: Values = MappingProxyType({})

#: At most this share of the time goes into writing the files of a job whole.
_SHARE = 0.05

#: A file of this name in the folder of the jobs, with a job's name after it, appears and goes: the job has changed. Of
#: a former version it stays, without a job's name.
ASKED = ".asked"

_IGNORED = "lock\njournal.jsonl\ninbox/\nlogs/\n.*.tmp\n*.unreadable*\n"


def base_folder(state_dir: str | Path) -> Path:
    """Return the folder to which the working directories of jobs are relative: the one that holds the state directory.

    So a job may be committed to git, and be resumed where somebody else has checked it out.
    """
    return Path(state_dir).resolve().parent


def is_worked_on(folder: Path) -> bool:
    """Tell whether there is a manager for the job in a folder: of all jobs, or of this one alone."""
    return is_held(folder.parent / "manager.lock") or is_held(folder / "lock")


class JobStore:
    """The jobs below one state directory."""

    def __init__(self, state_dir: str | Path, *, is_looking: bool = False) -> None:
        """Refuse a state directory that is not this user's alone.

        :param is_looking: nothing is written; then root may look at the one of somebody else.
        :raises StateDirError: it is another's, or others may write to it.
        """
        check_state_dir(state_dir, is_looking=is_looking)
        self.root = Path(state_dir) / "jobs"

    @functools.cached_property
    def private(self) -> PrivateStore:
        """What is private of these jobs: which are trusted, and values of variables that no file here may hold."""
        return PrivateStore(self.root.parent)

    def check_trust(self, job: Job) -> None:
        """Make sure that a job was submitted here, or that somebody has said that it is trusted.

        :raises UntrustedJobError: neither.
        """
        if not self.private.is_trusted(job.id):
            raise UntrustedJobError(
                f"job {job.name} was not submitted here, so nothing of it is run. Look at it (`air-executor job "
                f"{job.name}`); if you trust it: `air-executor trust {job.name}`"
            )

    def trust(self, job: Job) -> None:
        """Let a job that was not submitted here be run.

        :raises StateDirError: that can't be noted.
        """
        self.private.trust(job.id)
        with contextlib.suppress(OSError):
            os.utime(self.folder(job.name) / "state.json")  # so that its manager looks at it again
        self.tell_of(job.name)

    def prepare(self) -> None:
        """Make the folder.

        :raises StateDirError: it can't be made.
        """
        try:
            self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateDirError(f"the folder of the jobs, {self.root}, cannot be made: {error}") from error

    def lock(self) -> KernelLock:
        """Return the lock that the one manager of all these jobs holds."""
        return KernelLock(self.root / "manager.lock")

    def note_manager(self) -> None:
        """Note that the calling process is the manager, for those who want to stop it. Its lock shows that it lives.

        :raises StateDirError: it can't be written.
        """
        me = ProcessId.own()
        document = {"pid": me.pid, "pid_started": system.start_time(me.pid), **me.to_document()}
        replace_file(self.root / "manager.json", orjson.dumps(document))

    def manager(self) -> int | None:
        """Return the manager's process id; ``None`` when there is no manager."""
        document = self._manager()
        return None if document is None else int(document["pid"])

    def signal_manager(self, signum: signal.Signals) -> int | None:
        """Send a signal to the manager; return its process id, ``None`` when there is no manager here."""
        document = self._manager()
        if document is None:
            return None
        if (known := ProcessId.from_document(document)) is not None:
            return known.pid if known.send(signum) else None
        # Of a former version.
        pid = int(document["pid"])
        return pid if system.signal_process(pid, document["pid_started"], signum) else None

    def _manager(self) -> dict[str, Any] | None:
        if not is_held(self.root / "manager.lock"):
            return None
        try:
            document = orjson.loads(read(self.root / "manager.json") or b"null")
            if int(document["pid"]) <= 0:
                return None
            return {"pid_started": None, **document, "pid": int(document["pid"])}
        except (AirExecutorError, KeyError, TypeError, ValueError, OverflowError):
            return None

    def names(self) -> list[str]:
        """Return the names of all jobs, in alphabetical order. What can't be looked into counts as one.

        :raises StateDirError: their folder can't be read.
        """
        return [name for name in sorted(self.folders()) if self.has(name)]

    def folders(self) -> list[str]:
        """Return the names of all folders that may be jobs, which costs little.

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

        :raises JobError: ``name`` is no name.
        """
        return self.root / check_name(name)

    def files(self, name: str) -> JobFiles:
        """Return the files of a job, none of them read yet.

        :raises JobError: there is no such job.
        """
        files = JobFiles(self.folder(name))
        if not files.path.is_dir():
            raise UnknownJobError(f"there is no job {name} below {self.root}")
        files.check_folders()
        return files

    def open(self, name: str) -> JobFiles:
        """Return the files of a job, as they are now.

        :raises JobError: there is no such job, or its files can't be understood.
        """
        files = self.files(name)
        files.load()
        return files

    def create(self, job: Job, tasks: Iterable[Task], values: Values = _NONE) -> JobFiles:
        """Write a new job, which is trusted from now on; it is there as a whole or not at all.

        :param values: of variables that no file here may hold: of the job by ``None``, of tasks by their ids.
        :raises JobError: there is a job of that name, or the tasks contradict each other.
        :raises StateDirError: it can't be written.
        """
        self.prepare()
        folder = self.folder(job.name)
        if folder.exists():
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
                if folder.exists():
                    raise self._taken(job.name)
                files.path.rename(folder)
            except BaseException:
                shutil.rmtree(files.path, ignore_errors=True)
                self.private.forget(job.id)
                raise
        except OSError as error:
            raise StateDirError(f"job {job.name} cannot be written to {folder}: {error.strerror}") from error
        return self.open(job.name)

    def keep_private(self, job: Job, values: Values) -> None:
        """Keep values of variables that no file here may hold, and note that the job may be run.

        :raises StateDirError: they can't be written.
        """
        for task_id, given in values.items():
            self.private.keep(job, given, task_id)
        self.private.trust(job.id)

    def _taken(self, name: str) -> JobExistsError:
        return JobExistsError(
            f"there is a job {name} already. `--replace` begins it anew with this definition, `--new-name` calls this "
            f"one {name}-2; `air-executor reset {name}` begins it anew as it was"
        )

    def ask(self, name: str, action: str, tasks: Iterable[Any] = (), **more: Any) -> Path:
        """Put a request into a job's inbox.

        :param more: what else the action has to know.
        :raises JobError: there is no such job.
        :raises StateDirError: it can't be written.
        """
        folder = self.folder(name)
        if not self.has(name):
            raise UnknownJobError(f"there is no job {name} below {self.root}")
        JobFiles(folder).check_folders()
        path = inbox.put(folder / "inbox", action, tasks, more)
        self.tell_of(name)
        return path

    def tell_of(self, name: str) -> None:
        """Tell whoever watches the jobs that this one has changed: nobody watches each folder of those that ended."""
        mark = self.root / f"{ASKED}-{name}"
        with contextlib.suppress(OSError):  # it is seen without, if later
            mark.touch(mode=0o600)
            mark.unlink(missing_ok=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return True


@dataclass(frozen=True)
class _Found:
    """The files of a job as they were at one moment."""

    signature: tuple[Any, ...]
    state: bytes
    tasks: list[Any]
    base: str
    changes: dict[int, dict[str, Any]]
    """By the numbers of their lines in the journal."""
    spoilt_lines: list[int]


class JobFiles:
    """One job: what its files say, and the changes to it. One process at a time may change it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job: Job
        self.tasks: dict[str, Task] = {}
        self.keys: dict[str, str] = {}
        """Ids of tasks, by their keys."""
        #: The text of each task as it stands in tasks.json.
        self._texts: dict[str, bytes] = {}
        self._journal: int | None = None
        #: Numbers of lines in the journal that can't be understood.
        self.spoilt_lines: list[int] = []
        self._base = ""
        #: What tells the files that were read or written last from others.
        self._seen: tuple[Any, ...] = ()
        self._is_due = False
        self._due_s = 0.0

    @property
    def logs(self) -> Path:
        """Where the tasks' output goes."""
        return self.path / "logs"

    def lock(self) -> KernelLock:
        """Return the lock that the manager holds that works on this job."""
        return KernelLock(self.path / "lock")

    def log_file(self, task_id: str) -> Path:
        """Return where the output of a task goes."""
        return self.logs / f"{check_name(task_id, 'a task')}.log"

    def check_folders(self) -> None:
        """Make sure that none of its folders is a link, which a repository may hold, to be led elsewhere by.

        :raises JobError: one is.
        """
        for folder in (self.path, self.logs, self.path / "inbox"):
            if folder.is_symlink():
                raise JobError(f"{folder} is a link, which is not followed: put a folder in its place")

    # Reading

    def load(self) -> None:
        """Read the files, and what the journal says has changed since.

        :raises JobError: they are not there, or can't be understood; then they stay as they are.
        :raises StateDirError: they can't be read.
        """
        found = self._find()
        name = self.path.name
        self.job = Job.from_dict(parse(found.state, self.path / "state.json"), name=name, where=f"{name}/state.json")
        self.tasks, self.keys, self._texts = {}, {}, {}
        self.add([self._task(each) for each in found.tasks], f"{name}/tasks.json")
        self._base, self._seen = found.base, found.signature
        self._is_due = bool(found.changes)
        self.spoilt_lines = found.spoilt_lines
        self._take_in(found.changes)

    def _take_in(self, changes: dict[int, dict[str, Any]]) -> None:
        """Apply what the lines of the journal say.

        :raises JobError: with it, dependencies are unknown or lead back.
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
            check_dependencies((), self.tasks.values(), f"{self.path.name}/journal.jsonl")

    def outline(self) -> tuple[set[str], dict[str, str]]:
        """Return the ids of all tasks, and those of tasks that have a key by their keys: much sooner than all of them.

        :raises JobError: the files are not there, or can't be understood.
        :raises StateDirError: they can't be read.
        """
        found = self._find()
        tasks = [each for each in (*found.tasks, *found.changes.values()) if isinstance(each, dict)]
        tasks = [each for each in tasks if isinstance(each.get("id"), str)]
        keys = {each["key"]: each["id"] for each in tasks if isinstance(each.get("key"), str)}
        return {each["id"] for each in tasks}, keys

    def _find(self) -> _Found:
        """Read the files as they were at one moment."""
        while True:
            signature = self.signature()
            state, tasks = self._read("state.json"), self._read("tasks.json")
            if state is None or tasks is None:
                raise JobError(f"{self.path / ('tasks.json' if state else 'state.json')} is missing")
            base = _digest(tasks)
            changes, spoilt = self._journalled(base)
            if self.signature() == signature:
                break  # otherwise the journal may continue a tasks.json that was written meanwhile
        document = parse(tasks, self.path / "tasks.json")
        if not isinstance(document, list):
            raise JobError(f"{self.path.name}/tasks.json must be a list of tasks")
        return _Found(signature, state, document, base, changes, spoilt)

    def read_job(self) -> Job:
        """Return the job without its tasks, as ``state.json`` has it, which costs little.

        :raises JobError: it is not there, or can't be understood.
        :raises StateDirError: it can't be read.
        """
        path = self.path / "state.json"
        if (data := self._read("state.json")) is None:
            raise JobError(f"{path} is missing")
        return Job.from_dict(parse(data, path), name=self.path.name, where=f"{self.path.name}/state.json")

    def is_ended(self) -> bool:
        """Tell whether the job has ended, as far as ``state.json`` says, which costs little.

        :raises JobError: it is not there, or can't be understood.
        """
        path = self.path / "state.json"
        if (data := self._read("state.json")) is None:
            raise JobError(f"{path} is missing")
        document = parse(data, path)
        state = document.get("state") if isinstance(document, dict) else None
        return state in [each.value for each in JobState if each.is_end]

    def counts(self) -> tuple[Job, Counter[str]]:
        """Return the job, and how many of its tasks have each status: much sooner than all of each task.

        :raises JobError: the files are not there, or can't be understood.
        :raises StateDirError: they can't be read.
        """
        found = self._find()
        name = self.path.name
        job = Job.from_dict(parse(found.state, self.path / "state.json"), name=name, where=f"{name}/state.json")
        tasks = [each for each in (*found.tasks, *found.changes.values()) if isinstance(each, dict)]
        statuses = {str(each.get("id")): str(each.get("status", TaskStatus.PENDING.value)) for each in tasks}
        return job, Counter(statuses.values())

    def _task(self, document: Any) -> Task:
        return Task.from_dict(document, job_name=self.path.name, where=f"{self.path.name}/tasks.json")

    def _read(self, name: str) -> bytes | None:
        return read(self.path / name, MAX_TASKS_BYTES)

    def _journalled(self, base: str) -> tuple[dict[int, dict[str, Any]], list[int]]:
        """Return what has changed since the ``tasks.json`` with digest ``base``, and the lines that say nothing.

        Each line says all of a task, so those that follow a spoilt one hold as they are. Without the first one nobody
        knows what they continue.
        """
        # After the last newline there is nothing, or a line that was being written at somebody's death.
        lines = (self._read("journal.jsonl") or b"").split(b"\n")[:-1]
        entries: dict[int, Any] = {}
        for number, line in enumerate(lines, 1):
            with contextlib.suppress(ValueError):
                entries[number] = jsontext.loads(line, is_kept=True)
            if number == 1 and entries.get(1) != {"continues": base}:
                head = entries.get(1)
                is_of_another = isinstance(head, dict) and head.keys() == {"continues"}
                return {}, [] if is_of_another else [1]
        changes = {number: each for number, each in entries.items() if number > 1 and isinstance(each, dict)}
        return changes, [number for number in range(2, len(lines) + 1) if number not in changes]

    def signature(self) -> tuple[Any, ...]:
        """Return what tells the files as they are now from others."""
        signature: list[Any] = []
        for name in ("state.json", "tasks.json"):
            try:
                status = (self.path / name).stat()
                signature.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:
                signature.append(None)
        return tuple(signature)

    def journal_size(self) -> int:
        """Return how long the journal is, which grows with each change; -1 if there is none."""
        try:
            return (self.path / "journal.jsonl").stat().st_size
        except OSError:
            return -1

    def was_changed(self) -> bool:
        """Tell whether somebody else has changed the files, or removed them."""
        return self.signature() != self._seen

    def set_aside(self) -> list[Path]:
        """Keep what somebody has put in the place of these files, for whoever made it; they may be written then.

        :return: where it is. The files stay meanwhile: without them there would be no job.
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
        """Write the files whole, if lines of the journal can't be understood, and return where the journal is then.

        :raises AirExecutorError: as :meth:`write`.
        """
        if not self.spoilt_lines:
            return None
        self.write()
        self.spoilt_lines = []
        aside = self.path / f"journal.jsonl.unreadable-{now().replace(':', '')}"
        try:
            os.replace(self.path / "journal.jsonl", aside)
        except OSError as error:
            raise StateDirError(f"cannot rename {self.path / 'journal.jsonl'}: {error.strerror}") from error
        return aside

    # Changing

    def note_failure(self, reason: str) -> None:
        """Note in ``state.json`` that nobody works on the job, and why; all else stays as it is.

        :raises AirExecutorError: it can't be read or written.
        """
        document = parse(self._read("state.json") or b"{}", self.path / "state.json")
        document = document if isinstance(document, dict) else {}
        document |= {"state": JobState.FAILED.value, "error": reason, "updated_at": now()}
        replace_file(self.path / "state.json", jsontext.dumps(document, option=orjson.OPT_INDENT_2))

    def add(self, tasks: Iterable[Task], where: str) -> list[Task]:
        """Add tasks, all or none; return those that are new: of a key that is there already, there is a task.

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
        """Make changes to tasks last. The files follow when it is worth their while: see :meth:`write_if_due`.

        :raises StateDirError: they can't be written; nothing of them is.
        """
        data = b"".join(jsontext.dumps(task.to_dict()) + b"\n" for task in tasks)
        for task in tasks:
            self.forget_text(task)
        try:
            if self._journal is None:
                if self._is_due:
                    self.write()  # what an earlier journal says, as a new one begins
                    return
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                self._journal = os.open(self.path / "journal.jsonl", flags, 0o600)
                os.write(self._journal, orjson.dumps({"continues": self._base}) + b"\n")
            end = os.fstat(self._journal).st_size
            written = os.write(self._journal, data)
            if written < len(data):
                os.ftruncate(self._journal, end)
                raise OSError(28, os.strerror(28))
        except OSError as error:
            raise StateDirError(f"cannot write {self.path / 'journal.jsonl'}: {error.strerror}") from error
        self._is_due = True

    def forget_text(self, task: Task) -> None:
        """Note that a task has changed."""
        self._texts.pop(task.id, None)

    def set_state(self, state: JobState, error: str | None = None) -> None:
        """Give the job another state, and write all of it."""
        self.job.state, self.job.error = state, error
        self.write()

    def due_in_s(self) -> float | None:
        """Return in how many seconds the files should be written; ``None``: they say what is."""
        return max(0.0, self._due_s - time.monotonic()) if self._is_due else None

    def write_if_due(self) -> None:
        """Write the files if they are behind, and have not been written too lately for their length."""
        if self.due_in_s() == 0.0:
            self.write()

    def write(self) -> None:
        """Write the files whole.

        :raises JobChangedError: somebody else has changed them since they were read or written here; they stay.
        :raises StateDirError: they can't be written.
        """
        began_s = time.monotonic()
        if self._seen and self.was_changed():
            raise JobChangedError(f"somebody has changed the files in {self.path}")
        for task in self.tasks.values():
            if task.id not in self._texts:
                text = jsontext.dumps(task.to_dict(), option=orjson.OPT_INDENT_2)
                self._texts[task.id] = text.replace(b"\n", b"\n  ")
        tasks = b",\n  ".join(self._texts[task_id] for task_id in self.tasks)
        data = b"[\n  " + tasks + b"\n]\n" if tasks else b"[]\n"
        self.job.updated_at = now()
        if not (self.path / ".gitignore").exists():
            replace_file(self.path / ".gitignore", _IGNORED.encode())
        replace_file(self.path / "tasks.json", data, is_durable=True)
        replace_file(self.path / "state.json", self.job.to_json(), is_durable=True)
        self._base, self._seen = _digest(data), self.signature()
        self.abandon()
        self._is_due = False
        self._due_s = time.monotonic() + (time.monotonic() - began_s) / _SHARE

    def close(self) -> None:
        """Write what is behind, and let go of the files."""
        try:
            if self._is_due:
                self.write()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the files as they are. What is not written whole is in the journal."""
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    # What others ask

    def asks(self) -> list[Ask]:
        """Return what is asked of the job, in the order in which it was.

        :raises StateDirError: it can't be read now.
        """
        return inbox.asks(self.path / "inbox")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
