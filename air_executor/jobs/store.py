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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from air_executor import system
from air_executor.errors import JobChangedError, JobError, StateDirError, UnknownJobError, UntrustedJobError
from air_executor.jobs.model import HOOKS, Job, JobState, Task, check_dependencies, check_name, new_tasks
from air_executor.jobs.private import PrivateStore
from air_executor.ownership import check_state_dir
from air_executor.processes import ProcessId
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.record import now
from air_executor.runs.store import replace_file
from air_executor.safe_files import read_plain

#: Values of variables: those of a job by ``None``, those of its tasks by their ids.
Values = Mapping["str | None", Mapping[str, str]]

_NONE: Values = MappingProxyType({})

#: At most this share of the time goes into writing the files of a job whole.
_SHARE = 0.05

_IGNORED = "lock\njournal.jsonl\ninbox/\nlogs/\n.*.tmp\n*.unreadable*\n"


def base_folder(state_dir: str | Path) -> Path:
    """Return the folder to which the working directories of jobs are relative: the one that holds the state directory.

    So a job may be committed to git, and be resumed where somebody else has checked it out.
    """
    return Path(state_dir).resolve().parent


def is_worked_on(folder: Path) -> bool:
    """Tell whether there is a manager for the job in a folder: of all jobs, or of this one alone."""
    return is_held(folder.parent / "manager.lock") or is_held(folder / "lock")


@dataclass(frozen=True)
class Ask:
    """What somebody asks of a job, as one file of its inbox."""

    path: Path
    action: str
    """``queue``, ``cancel``, ``retry`` or ``reset``."""
    tasks: list[Any]
    """The tasks to queue as plain data, or the ids of those to try again."""
    document: dict[str, Any] = field(default_factory=dict)
    """All that is asked."""


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
        replace_file(self.root / ".asked", b"")

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
            document = orjson.loads(read_plain(self.root / "manager.json"))
            return {"pid_started": None, **document, "pid": int(document["pid"])}
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None

    def names(self) -> list[str]:
        """Return the names of all jobs, in alphabetical order."""
        try:
            entries = sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []
        return [name for name in entries if (self.root / name / "state.json").is_file() and not name.startswith(".")]

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
        files = JobFiles(self.root / f".{job.name}.{uuid.uuid4()}")
        files.job = job
        files.add(tasks, f"job {job.name}")
        for hook in filter(None, (job.hook(name, where=f"job {job.name}") for name in HOOKS)):
            check_dependencies(files.tasks, [hook], f"job {job.name}")
        try:
            files.path.mkdir(mode=0o700)
            try:
                files.write()
                self._keep_private(job, values)
                if folder.exists():
                    raise JobError(f"there is a job {job.name} already; `air-executor reset {job.name}` begins it anew")
                files.path.rename(folder)
            except BaseException:
                shutil.rmtree(files.path, ignore_errors=True)
                self.private.forget(job.id)
                raise
        except OSError as error:
            raise StateDirError(f"job {job.name} cannot be written to {folder}: {error.strerror}") from error
        return self.open(job.name)

    def _keep_private(self, job: Job, values: Values) -> None:
        for task_id, given in values.items():
            self.private.keep(job, given, task_id)
        self.private.trust(job.id)

    def ask(self, name: str, action: str, tasks: Iterable[Any] = (), **more: Any) -> Path:
        """Put a request into a job's inbox.

        :param more: what else the action has to know.
        :raises JobError: there is no such job.
        :raises StateDirError: it can't be written.
        """
        folder = self.folder(name)
        if not (folder / "state.json").is_file():
            raise UnknownJobError(f"there is no job {name} below {self.root}")
        JobFiles(folder).check_folders()
        inbox = folder / "inbox"
        path = inbox / f"{time.time_ns():020}-{uuid.uuid4()}.json"
        try:
            inbox.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateDirError(f"cannot make {inbox}: {error.strerror}") from error
        replace_file(path, orjson.dumps({**more, "action": action, "tasks": list(tasks)}))
        self.tell_of(name)
        return path

    def tell_of(self, name: str) -> None:  # noqa: ARG002
        """Tell whoever watches the jobs that this one has changed: nobody watches each folder of those that ended."""
        replace_file(self.root / ".asked", b"")


@dataclass(frozen=True)
class _Found:
    """The files of a job as they were at one moment."""

    signature: tuple[Any, ...]
    state: bytes
    tasks: list[Any]
    base: str
    changes: list[Any]


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
        self.job = Job.from_dict(_parse(found.state, self.path / "state.json"), name=name, where=f"{name}/state.json")
        self.tasks, self.keys, self._texts = {}, {}, {}
        self.add([self._task(each) for each in found.tasks], f"{name}/tasks.json")
        self._base, self._seen = found.base, found.signature
        self._is_due = False
        for entry in found.changes:
            task = self._task(entry)
            self.tasks[task.id] = task
            if task.key is not None:
                self.keys[task.key] = task.id
            self._texts.pop(task.id, None)
            self._is_due = True

    def outline(self) -> tuple[set[str], dict[str, str]]:
        """Return the ids of all tasks, and those of tasks that have a key by their keys: much sooner than all of them.

        :raises JobError: the files are not there, or can't be understood.
        :raises StateDirError: they can't be read.
        """
        found = self._find()
        tasks = [each for each in (*found.tasks, *found.changes) if isinstance(each, dict)]
        keys = {each["key"]: each["id"] for each in tasks if each.get("key") is not None and "id" in each}
        return {each["id"] for each in tasks if "id" in each}, keys

    def _find(self) -> _Found:
        """Read the files as they were at one moment."""
        while True:
            signature = self.signature()
            state, tasks = self._read("state.json"), self._read("tasks.json")
            if state is None or tasks is None:
                raise JobError(f"{self.path / ('tasks.json' if state else 'state.json')} is missing")
            base = _digest(tasks)
            changes = list(self._journalled(base))
            if self.signature() == signature:
                break  # otherwise the journal may continue a tasks.json that was written meanwhile
        document = _parse(tasks, self.path / "tasks.json")
        if not isinstance(document, list):
            raise JobError(f"{self.path.name}/tasks.json must be a list of tasks")
        return _Found(signature, state, document, base, changes)

    def read_job(self) -> Job:
        """Return the job without its tasks, as ``state.json`` has it, which costs little.

        :raises JobError: it is not there, or can't be understood.
        :raises StateDirError: it can't be read.
        """
        path = self.path / "state.json"
        if (data := self._read("state.json")) is None:
            raise JobError(f"{path} is missing")
        return Job.from_dict(_parse(data, path), name=self.path.name, where=f"{self.path.name}/state.json")

    def is_ended(self) -> bool:
        """Tell whether the job has ended, as far as ``state.json`` says, which costs little.

        :raises JobError: it is not there, or can't be understood.
        """
        path = self.path / "state.json"
        if (data := self._read("state.json")) is None:
            raise JobError(f"{path} is missing")
        document = _parse(data, path)
        state = document.get("state") if isinstance(document, dict) else None
        return state in [each.value for each in JobState if each.is_end]

    def _task(self, document: Any) -> Task:
        return Task.from_dict(document, job_name=self.path.name, where=f"{self.path.name}/tasks.json")

    def _read(self, name: str) -> bytes | None:
        try:
            return read_plain(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StateDirError(f"cannot read {self.path / name}: {error.strerror}") from error

    def _journalled(self, base: str) -> Iterator[Any]:
        lines = (self._read("journal.jsonl") or b"").split(b"\n")
        # After the last newline there is nothing, or a line that was being written at somebody's death.
        for number, line in enumerate(lines[:-1]):
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                return
            if number == 0 and entry != {"continues": base}:
                return
            if number:
                yield entry

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

    def was_changed(self) -> bool:
        """Tell whether somebody else has changed the files, or removed them."""
        return self.signature() != self._seen

    def set_aside(self) -> Path:
        """Rename a ``tasks.json`` that can't be understood, for whoever made it, and return its new name."""
        aside = self.path / f"tasks.json.unreadable-{now().replace(':', '')}"
        self._seen = ()
        with contextlib.suppress(OSError):
            os.replace(self.path / "tasks.json", aside)
        return aside

    # Changing

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
        data = b"".join(orjson.dumps(task.to_dict()) + b"\n" for task in tasks)
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
                text = orjson.dumps(task.to_dict(), option=orjson.OPT_INDENT_2)
                self._texts[task.id] = text.replace(b"\n", b"\n  ")
        tasks = b",\n  ".join(self._texts[task_id] for task_id in self.tasks)
        data = b"[\n  " + tasks + b"\n]\n" if tasks else b"[]\n"
        self.job.updated_at = now()
        if not (self.path / ".gitignore").exists():
            replace_file(self.path / ".gitignore", _IGNORED.encode())
        replace_file(self.path / "tasks.json", data, is_durable=True)
        replace_file(self.path / "state.json", self.job.to_json(), is_durable=True)
        self._base, self._seen = _digest(data), self.signature()
        self._close_journal()
        self._is_due = False
        self._due_s = time.monotonic() + (time.monotonic() - began_s) / _SHARE

    def close(self) -> None:
        """Write what is behind, and let go of the files."""
        if self._is_due:
            self.write()
        self._close_journal()

    def _close_journal(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    # What others ask

    def asks(self) -> list[Ask]:
        """Return what is asked of the job, in the order in which it was. What can't be understood is set aside."""
        inbox = self.path / "inbox"
        try:
            names = sorted(name for name in os.listdir(inbox) if name.endswith(".json") and not name.startswith("."))
        except OSError:
            return []
        asks = []
        for name in names:
            try:
                document = orjson.loads(read_plain(inbox / name))
                asks.append(Ask(inbox / name, str(document["action"]), list(document["tasks"]), document))
            except (orjson.JSONDecodeError, KeyError, TypeError, OSError):
                with contextlib.suppress(OSError):
                    os.replace(inbox / name, inbox / f"{name}.unreadable")
        return asks


def _parse(data: bytes, path: Path) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise JobError(f"{path} is not JSON: {error}") from None


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
