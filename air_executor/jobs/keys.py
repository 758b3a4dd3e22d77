"""Idempotent submission: submitting again with the same key returns the job that was made first.

Each key has a file ``<state_dir>/jobs/.keys/<digest of the key>.json``, which names the job. The file is locked while
the job is made, and written before. So of several processes that submit at once, one makes the job. If it dies in
between, the file names a job that does not exist, and the next process makes it. Removing the job frees its key.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from air_executor import jsontext
from air_executor.errors import JobError, StateDirError, UnknownJobError
from air_executor.jobs.model import Job, check_name
from air_executor.jobs.store import JobStore

_FOLDER = ".keys"
_FILE = re.compile(r"[0-9a-f]{40}\.json")

#: No more than this is read of a key's file.
_MAX_BYTES = 1 << 16


class KeyUsedError(JobError):
    """Another job was submitted with the same key."""

    hint = "for another job take another key; to have this one run again, `air-executor retry` or `reset`"


class Key:
    """A key whose file is locked: no other process submits with it meanwhile."""

    def __init__(self, store: JobStore, key: str, fd: int, path: Path) -> None:
        self._store, self._key, self._fd, self._path = store, key, fd, path

    def find(self, definition: str) -> Job | None:
        """Return the job that was submitted with this key, if there is one.

        :raises KeyUsedError: it was submitted with another definition.
        :raises JobError: the job can't be understood. It may have run, so no second one is made.
        :raises StateDirError: something can't be read.
        """
        known = _read(self._fd, self._path)
        job = None if known is None else _job_of(self._store, known)
        if known is None or job is None:
            return None
        if known["definition"] != definition:
            raise KeyUsedError(
                f"the key {self._key!r} is that of job {job.name}, which was submitted with another definition"
            )
        return job

    def note(self, job: Job, definition: str) -> None:
        """Record which job is about to be made, and wait for the disk.

        :raises StateDirError: it can't be written.
        """
        data = jsontext.dumps({"key": self._key, "job": job.name, "id": job.id, "definition": definition})
        try:
            os.ftruncate(self._fd, 0)
            if os.pwrite(self._fd, data, 0) < len(data):
                raise OSError(28, os.strerror(28))
            os.fsync(self._fd)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StateDirError(f"cannot write {self._path}: {error.strerror}") from error


@contextlib.contextmanager
def hold(store: JobStore, key: str) -> Iterator[Key]:
    """Be the only process that submits with a key.

    :raises JobError: ``key`` can't be one.
    :raises StateDirError: its file can't be opened.
    """
    if not isinstance(key, str) or not 0 < len(key) <= 1000:
        raise JobError(f"{key!r} cannot be a key: it must be text of 1 to 1000 characters")
    store.prepare()
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
    path = store.root / _FOLDER / f"{digest}.json"
    fd = _locked(path)
    try:
        yield Key(store, key, fd, path)
    finally:
        os.close(fd)


def sweep(store: JobStore) -> None:
    """Remove the files of keys whose jobs were removed.

    :raises StateDirError: one can't be read or removed; all others were.
    """
    folder = store.root / _FOLDER
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateDirError(f"cannot read {folder}: {error.strerror}") from error
    trouble: StateDirError | None = None
    for name in filter(_FILE.fullmatch, names):
        try:
            _sweep(store, folder / name)
        except StateDirError as error:
            trouble = error
    if trouble is not None:
        raise trouble


def _sweep(store: JobStore, path: Path) -> None:
    fd = _locked(path)
    try:
        known = _read(fd, path)
        if known is None or _job_of(store, known) is None:
            path.unlink(missing_ok=True)
    except JobError:
        pass  # there is a job, which can't be understood
    except OSError as error:
        raise StateDirError(f"cannot remove {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def _locked(path: Path) -> int:
    """Open a file, which is made if need be, lock it, and return its descriptor."""
    while True:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise StateDirError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass  # it was removed while this waited for the lock
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _read(fd: int, path: Path) -> dict[str, Any] | None:
    """Return the document in a key's file; ``None`` if it is new or can't be understood."""
    try:
        known = jsontext.loads(os.pread(fd, _MAX_BYTES, 0))
        check_name(known["job"])
        return {"id": known["id"], "definition": known["definition"], **known}
    except (ValueError, JobError, KeyError, TypeError):
        return None
    except OSError as error:
        raise StateDirError(f"cannot read {path}: {error.strerror}") from error


def _job_of(store: JobStore, known: dict[str, Any]) -> Job | None:
    """Return the job that a key's file names, if it exists."""
    name, number = known["job"], 1
    while True:
        try:
            job = store.files(name).read_job()
        except UnknownJobError:
            return None  # it was never made, or was removed
        if job.id == known["id"]:
            return job
        # Its name was taken, and its maker died before it could record the name that the job got instead.
        number += 1
        name = f"{known['job']}-{number}"
