"""Submitting a job of a name that is taken: running the same file again, or a corrected one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import orjson

from air_executor import config, jsontext
from air_executor.errors import JobError, JobExistsError, StateDirError
from air_executor.jobs.model import Job, JobState, Task
from air_executor.jobs.store import JobFiles, JobStore, Values
from air_executor.runs.record import now

#: What may be done when there is a job of that name: nothing; begin one that has ended anew, and let one that has not
#: go on, if its definition is the same; cancel it and begin it anew; call the new one otherwise.
REFUSE, RESUME, REPLACE, NEW_NAME = EXISTING = ("refuse", "resume", "replace", "new_name")

#: So long nobody else may work on a job that has ended, in seconds.
_LOCK_S = 10.0

#: What of a job is no part of its definition.
_LIFE = {"id", "name", "state", "created_at", "updated_at", "error", "cancelled", "paused", "generation", "definition"}


def place(store: JobStore, job: Job, tasks: Iterable[Task], values: Values, existing: str) -> Job:
    """Write a new job, or the next generation of one that is there.

    :param values: of variables that no file of the job may hold, as :meth:`JobStore.create` takes them.
    :param existing: one of :data:`EXISTING`.
    :return: the job as it is there; it may be another than ``job`` if it goes on.
    :raises JobExistsError: there is a job of that name, and it stays.
    :raises JobError: something in the tasks can't be used.
    :raises StateDirError: it can't be written.
    """
    if existing not in EXISTING:
        raise JobError(f"existing must be one of {', '.join(EXISTING)}, not {existing!r}")
    tasks = list(tasks)
    job.definition = definition(job, tasks)
    base = job.name
    for number in itertools.count(2):
        try:
            return store.create(job, tasks, values).job
        except JobExistsError:
            if existing == REFUSE:
                raise
            if existing != NEW_NAME:
                break
            job.name = f"{base}-{number}"
    return _next_generation(store, job, tasks, values, existing)


def definition(job: Job, tasks: Iterable[Task]) -> str:
    """Return what tells the definition of a job, as it was submitted, from others."""
    head = {name: value for name, value in orjson.loads(job.to_json()).items() if name not in _LIFE}
    bodies = [{**task.to_dict(), "job_name": "", "created_at": None} for task in tasks]
    document = jsontext.dumps([head, bodies], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(document, digest_size=16).hexdigest()


def _next_generation(store: JobStore, job: Job, tasks: list[Task], values: Values, existing: str) -> Job:
    name = job.name
    files = store.files(name)
    if not _has_ended(files, existing):
        former = store.open(name).job if existing == RESUME else None
        if former is not None and former.definition == job.definition:
            store.check_trust(former)  # what it says of its definition may be a lie
            for task_id, given in values.items():
                store.private.keep(former, given, task_id)
            return former
        if former is not None:
            raise JobExistsError(
                f"job {name} is {former.state.value}, and was submitted with another definition. `--replace` cancels "
                f"it and begins anew with this one, `--new-name` leaves it and calls this one {name}-2; "
                f"`air-executor run {name}` goes on with it as it is"
            )
        from air_executor.jobs.requests import request  # not for who only submits

        request(config.load_plain(str(store.root.parent)), name, "cancel")
    lock = files.lock()
    if not lock.acquire(timeout_s=_LOCK_S):
        raise JobExistsError(f"a manager works on job {name}; try again when it has ended")
    try:
        if not _has_ended(files, existing):
            raise JobExistsError(f"job {name} was begun again meanwhile; try again when it has ended")
        former_id = _former_id(files)
        store.keep_private(job, values)
        _write(files, job, tasks)
        if former_id is not None:
            store.private.forget(former_id)
    finally:
        lock.release(keep_file=True)
    store.tell_of(name)
    return job


def _former_id(files: JobFiles) -> str | None:
    try:
        return files.read_job().id
    except JobError:
        return None


def _has_ended(files: JobFiles, existing: str) -> bool:
    """Tell whether nobody works on a job, and nothing is asked of it. What can't be understood may be replaced."""
    try:
        return files.is_ended() and not files.asks()
    except JobError:
        if existing == REPLACE:
            return True
        raise


def _write(files: JobFiles, job: Job, tasks: list[Task]) -> None:
    try:
        job.generation = files.counts()[0].generation + 1
    except JobError:  # of what can't be understood nobody knows how often it was begun
        job.generation = 2
    new = JobFiles(files.path)
    new.job, job.state = job, JobState.WAITING
    new.add(tasks, f"job {job.name}")
    # What was asked of the former generation is none of the new one's business.
    for name in _names(files.path / "inbox"):
        with contextlib.suppress(OSError):
            os.unlink(files.path / "inbox" / name)
    separate_logs(new)
    new.write()  # state.json last: until then the former one has ended


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StateDirError(f"cannot read {folder}: {error.strerror}") from error


def separate_logs(files: JobFiles) -> None:
    """Begin the next generation's part of each log with a line of its own. What cannot be written stays as it is."""
    line = f"-- generation {files.job.generation}, begun {now()}\n".encode()
    for name in _names(files.logs):
        path = files.logs / name
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
