"""Submitting once: whoever submits with a key, again and again, gets the one job that was made first.

Each key has a file ``<state_dir>/jobs/.keys/<digest of the key>.json``, which names the job. It is written before the
job is, and its lock is held meanwhile. So of many who submit at once one makes the job; and if that one dies in
between, the file names a job that is not there, and the next one makes it. Once the job is removed its key is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from air_executor.errors import AirExecutorError, JobError, StateDirError
from air_executor.jobs.model import Job, Task
from air_executor.jobs.store import JobStore

#: A file of a key is shorter than this.
_MAX_BYTES = 1 << 16


#: What a job's definition does not say, or is not to say.
_NOT_DEFINED = frozenset({"name", "job_name", "created_at", "updated_at", "env"})


class KeyUsedError(JobError):
    """There is another job of the same key."""

    hint = "for another job take another key; to have this one run again, `air-executor retry` or `reset`"


class Key:
    """A key, whose file is locked: nobody else submits with it."""

    def __init__(self, store: JobStore, key: str, fd: int, path: Path) -> None:
        self._store, self._key, self._fd, self._path = store, key, fd, path

    def find(self, definition: str) -> Job | None:
        """Return the job that was submitted with this key, if there is one.

        :raises KeyUsedError: it was submitted with another definition.
        """
        try:
            known = orjson.loads(os.pread(self._fd, _MAX_BYTES, 0))
            job = self._store.open(known["job"]).job
            is_it = job.id == known["id"]
            is_same = known["definition"] == definition
        except (AirExecutorError, orjson.JSONDecodeError, KeyError, TypeError):
            return None  # it was never made, or is removed
        if not is_it:
            return None
        if not is_same:
            raise KeyUsedError(
                f"the key {self._key!r} is that of job {job.name}, which was submitted as something else"
            )
        return job

    def note(self, job: Job, definition: str) -> None:
        """Write down, for good, which job is about to be made.

        :raises StateDirError: it can't be written.
        """
        data = orjson.dumps({"key": self._key, "job": job.name, "id": job.id, "definition": definition})
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
    """Be the only one that submits with a key.

    :raises JobError: it is no key.
    :raises StateDirError: its file can't be opened.
    """
    if not isinstance(key, str) or not 0 < len(key) <= 1000:
        raise JobError(f"{key!r} cannot be a key: it must be text of 1 to 1000 characters")
    store.prepare()
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
    path = store.root / ".keys" / f"{digest}.json"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateDirError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield Key(store, key, fd, path)
    finally:
        os.close(fd)


def definition_of(job: Job, tasks: Iterable[Task]) -> str:
    """Return what tells a job from one that is defined otherwise. No value of an environment goes into it."""
    document: dict[str, Any] = orjson.loads(job.to_json())
    parts = [document, *(task.to_dict() for task in tasks)]
    plain = [{name: value for name, value in part.items() if name not in _NOT_DEFINED} for part in parts]
    names = [sorted(part.get("env") or ()) for part in parts]
    del plain[0]["id"]
    data = orjson.dumps([plain, names], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(data, digest_size=16).hexdigest()
