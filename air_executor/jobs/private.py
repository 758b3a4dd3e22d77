"""What must not lie in a state directory, which may be committed or copied: trust, and the values of private variables.

::

    <private folder>/
      trusted/<state directory>/<job id>:<job>           empty: submitted here, and may run whatever it says;
                                                         else digests of what was trusted
                                .folder                  which state directory it is, to find it if it is moved
      secrets/<state directory>/<job id>/job.json        values of variables of all tasks
                                         task.<id>.json  of one task

The private folder is ``$AIR_EXECUTOR_PRIVATE_DIR``, or ``$XDG_STATE_HOME/air-executor``, or
``~/.local/state/air-executor``; ``<state directory>`` is a digest of its real path. Folders are 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from air_executor.errors import JobError, StateDirError
from air_executor.jobs.fields import check_variables
from air_executor.jobs.model import Job, Task, is_name
from air_executor.machine.ownership import may_others_write, user_name
from air_executor.machine.safe_files import open_to_append, read_plain, replace_file

#: The variable that names the private folder.
VARIABLE = "AIR_EXECUTOR_PRIVATE_DIR"

#: Ids that can be file names. For others, their digest is the file name.
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")

#: Longer names of jobs are digests in file names.
_MAX_NAME = 100

#: The file that says which state directory a folder belongs to.
_FOLDER = ".folder"

#: Values are stored before their job is made. Values without a job are removed after this many seconds.
_BIRTH_S = 600.0


def private_folder() -> Path:
    """Return the private folder of this user.

    :raises StateDirError: its path is not absolute.
    """
    if named := os.environ.get(VARIABLE):
        folder = Path(os.path.expanduser(named))
    elif os.path.isabs(state_home := os.environ.get("XDG_STATE_HOME", "")):
        folder = Path(state_home) / "air-executor"
    else:
        folder = Path(os.path.expanduser("~")) / ".local" / "state" / "air-executor"
    if not folder.is_absolute():
        raise StateDirError(f"the private folder {folder} must be an absolute path: set {VARIABLE} to one of your own")
    return folder


class PrivateStore:
    """Trust and private variables of the jobs of one state directory."""

    def __init__(self, state_dir: str | Path) -> None:
        state_dir = os.path.realpath(state_dir)
        self.root = private_folder()
        if Path(os.path.realpath(self.root)).is_relative_to(state_dir):
            raise StateDirError(
                f"the private folder {self.root} is in the state directory {state_dir}, and what it holds would be "
                f"found there: set {VARIABLE} to another folder"
            )
        self._state_dir, self._is_known = state_dir, False
        name = hashlib.blake2b(os.fsencode(state_dir), digest_size=16).hexdigest()
        self._trusted, self._secrets = self.root / "trusted" / name, self.root / "secrets" / name

    # Trust

    def is_trusted(self, job: Job) -> bool:
        """Tell whether a job was submitted here, or was trusted later.

        Another job with its id is not: a repository may hold a copy of ``state.json``.

        :raises StateDirError: the private folder is not this user's alone.
        """
        self._follow_move()
        return self._trust_file(job) is not None

    def _trust_file(self, job: Job) -> Path | None:
        """Return the file that says that a job is trusted; ``None``: it is not."""
        for path in (self._trusted / _trust_name(job), self._trusted / _file_name(job.id)):  # former versions' is last
            try:
                status = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise self._unusable(error) from error
            self._check()
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                return path
        return None

    def vouched(self, job: Job) -> frozenset[str] | None:
        """Return the digests of what a trusted job may run, see :mod:`air_executor.jobs.trust`; ``None``: anything.

        :raises StateDirError: they can't be read.
        """
        try:
            path = self._trust_file(job) or self._trusted / _trust_name(job)
            lines = read_plain(path).decode(errors="replace").split()
        except OSError as error:
            raise self._unusable(error) from error
        return frozenset(lines) if lines else None

    def trust(self, job: Job) -> None:
        """Trust a job: it may run, whatever its files say.

        :raises StateDirError: that can't be stored.
        """
        self._make_ready()
        replace_file(self._trusted / _trust_name(job), b"", is_durable=True)

    def vouch(self, job: Job, digests: Iterable[str]) -> None:
        """Trust a job as far as these digests go, beside what it may run already.

        :raises StateDirError: that can't be stored.
        """
        known = self.vouched(job) if self.is_trusted(job) else frozenset()
        if known is None or not (new := set(digests) - known):
            return
        self._make_ready()
        path = self._trust_file(job) or self._trusted / _trust_name(job)
        lines = "".join(f"\n{each}" for each in sorted(new)).encode()
        if not known:
            replace_file(path, lines, is_durable=True)  # never empty, not even for a moment: that would be full trust
            return
        try:
            with open(open_to_append(path), "ab", buffering=0) as file:
                file.write(lines)
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unusable(error) from error

    def _make_ready(self) -> None:
        self._follow_move()
        self._make(self._trusted)
        if not os.path.lexists(self._trusted / _FOLDER):
            self._note_folder()

    def forget(self, job: Job) -> None:
        """Remove the trust and the private variables of a job."""
        with contextlib.suppress(OSError, StateDirError):
            if (path := self._trust_file(job)) is not None:
                path.unlink(missing_ok=True)
        folder = self._secrets / _file_name(job.id)
        with contextlib.suppress(OSError):
            if job.name in _owners(folder):
                shutil.rmtree(folder, ignore_errors=True)

    # Values of variables

    def keep(self, job: Job, values: Mapping[str, str], task_id: str | None = None) -> None:
        """Store values of private variables of a job, or of one of its tasks. Others that are stored stay.

        :raises StateDirError: they can't be written.
        """
        if not values:
            return
        self._follow_move()
        folder = self._secrets / _file_name(job.id)
        self._make(folder)
        path = folder / _scope(task_id)
        kept = {**self._read(path, job), **values}
        # Not orjson: the values of variables may hold any bytes.
        replace_file(path, json.dumps({"job": job.name, "env": kept}).encode(), is_durable=True)

    def has_others(self, job: Job, values: Mapping[str, str], task_id: str) -> bool:
        """Tell whether the stored values of a task differ from ``values``.

        :raises StateDirError: they can't be read.
        """
        self._follow_move()
        kept = self._read(self._secrets / _file_name(job.id) / _scope(task_id), job)
        return any(kept.get(name) != value for name, value in values.items())

    def environment(self, job: Job, task: Task) -> dict[str, str]:
        """Return the variables of a task and its job: from their documents, from here or from the environment.

        :raises JobError: a variable in ``env_from`` has no value.
        :raises StateDirError: the stored values can't be read.
        """
        of_job = self._named(job, job.env_from, None)
        given_to = task.id if task.index is None else task.queued_by  # those of a task for an item: its group's
        return {**job.env, **of_job, **task.env, **self._named(job, task.env_from, given_to)}

    def _named(self, job: Job, names: Iterable[str], task_id: str | None) -> dict[str, str]:
        if not names:
            return {}
        self._follow_move()
        values = {**os.environ, **self._read(self._secrets / _file_name(job.id) / _scope(task_id), job)}
        for name in names:
            if name not in values:
                raise JobError(
                    f"the variable {name} of 'env_from' is not set: neither was its value given with the job "
                    f"(--env-from {name}), nor does the environment of the manager have it"
                )
        return {name: values[name] for name in names}

    def sweep(self, jobs: Path) -> None:
        """Remove the values of jobs that are not in the folder ``jobs`` any more."""
        try:
            folders = list(self._secrets.iterdir())
        except OSError:
            return
        for folder in folders:
            with contextlib.suppress(OSError):
                is_old = time.time() - folder.lstat().st_mtime > _BIRTH_S
                if is_old and not any(os.path.lexists(jobs / name) for name in _owners(folder)):
                    shutil.rmtree(folder)

    def _read(self, path: Path, job: Job) -> dict[str, str]:
        try:
            document = json.loads(read_plain(path))
            return dict(document["env"]) if document["job"] == job.name else {}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise StateDirError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StateDirError(f"{path} can't be understood; give the values anew with --env-from") from error

    # The folders

    def _follow_move(self) -> None:
        """If this state directory was moved here, take over what was stored for it at its former place."""
        if self._is_known:
            return
        self._is_known = True
        if self._is_folder(self._trusted):
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            here = _identity(self._state_dir)
            for note in self._trusted.parent.glob(f"*/{_FOLDER}"):
                known = json.loads(read_plain(note))
                if known["is"] == here and not (os.path.lexists(known["at"]) and _identity(known["at"]) == here):
                    with contextlib.suppress(FileNotFoundError):
                        (self._secrets.parent / note.parent.name).rename(self._secrets)
                    note.parent.rename(self._trusted)
                    self._note_folder()
                    return

    def _note_folder(self) -> None:
        document = {"at": self._state_dir, "is": _identity(self._state_dir)}
        replace_file(self._trusted / _FOLDER, json.dumps(document).encode())

    def _make(self, folder: Path) -> None:
        """Make a folder and its parents, for this user alone."""
        missing = []
        while not self._is_folder(folder):
            missing.append(folder)
            folder = folder.parent
        try:
            for each in reversed(missing):
                each.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        self._check()

    def check(self) -> bool:
        """Check that the private folder is this user's alone, and tell whether it exists.

        :raises StateDirError: others may write to it, or own it.
        """
        if is_there := os.path.lexists(self.root):
            self._check()
        return is_there

    def _check(self) -> None:
        try:
            status = self.root.stat()
        except OSError as error:
            raise self._unusable(error) from error
        if status.st_uid != os.geteuid() or may_others_write(status):
            raise StateDirError(
                f"the private folder {self.root} must belong to {user_name(os.geteuid())} alone, and be writable by "
                f"nobody else: set {VARIABLE} to a folder of your own"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            self.root.chmod(0o700)

    def _is_folder(self, path: Path) -> bool:
        try:
            return path.is_dir()
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> StateDirError:
        return StateDirError(
            f"the private folder {self.root}, where it is noted which jobs are yours, can't be used: {error.strerror}. "
            f"Set {VARIABLE} to a folder of your own"
        )


def _identity(folder: str) -> list[int]:
    """Return what identifies a folder, even if it is moved."""
    status = os.stat(folder)
    return [status.st_dev, status.st_ino]


def _scope(task_id: str | None) -> str:
    return "job.json" if task_id is None else f"task.{task_id}.json"


def _owners(folder: Path) -> set[str]:
    """Return the names of the jobs whose values are in a folder. Files that can't be understood are nobody's.

    :raises OSError: one can't be read.
    """
    names = set()
    for path in folder.glob("*.json"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if is_name(name := json.loads(read_plain(path))["job"]):
                names.add(name)
    return names


def _trust_name(job: Job) -> str:
    name = job.name if len(job.name) <= _MAX_NAME else "=" + _digest(job.name)
    return f"{_file_name(job.id)}:{name}"  # no file name of an id has a colon, and no name begins with "="


def _file_name(job_id: str) -> str:
    if _PLAIN_ID.fullmatch(job_id):
        return job_id
    return "=" + _digest(job_id)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def without_values(document: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Move the names in ``private_env`` of a job or a task to ``env_from``; return the document and the values.

    :raises JobError: ``private_env`` is not an object of text to text.
    """
    document = dict(document)
    values = document.pop("private_env", None) or {}
    try:
        values = check_variables(values)
    except (ValueError, TypeError):  # whose message may hold a value
        raise JobError(f"{where}, field 'private_env': it must be an object of variables' names to text") from None
    if values:
        given = document.get("env_from") or []
        names = list(given) if isinstance(given, (list, tuple)) else [given]
        document["env_from"] = [*names, *(name for name in values if name not in names)]
    return document, dict(values)


def values_of(names: Iterable[str]) -> dict[str, str]:
    """Return the values of variables in this process's environment.

    :raises JobError: one is not set.
    """
    values = {}
    for name in names:
        if name not in os.environ:
            raise JobError(f"the variable {name} of --env-from is not set here")
        values[name] = os.environ[name]
    return values
