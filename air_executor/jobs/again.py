"""Submitting a job under a name that is taken: the same definition again, or another one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable

import orjson

from air_executor import config, jsontext
from air_executor.errors import JobError, JobExistsError, ManagedError
from air_executor.jobs import orphans
from air_executor.jobs.logs import names_in, separate_logs
from air_executor.jobs.model import Job, JobState, Task
from air_executor.jobs.store import JobFiles, JobStore, Values

#: What to do if there is a job of that name. Refuse: raise an error. Resume: start an ended job again, and let one that
#: works go on if its definition is the same. Replace: cancel it, and start it again. New name: name the new one NAME-2.
REFUSE, RESUME, REPLACE, NEW_NAME = EXISTING = ("refuse", "resume", "replace", "new_name")

#: How long to wait for the lock of a job that has ended, in seconds.
_LOCK_S = 60.0

#: Fields of a job that do not belong to its definition.
_NOT_DEFINED = {
    "id",
    "name",
    "state",
    "created_at",
    "updated_at",
    "error",
    "cancelled",
    "paused",
    "generation",
    "definition",
}


def place(store: JobStore, job: Job, tasks: Iterable[Task], values: Values, existing: str) -> Job:
    """Write a new job, or the next generation of an existing one.

    :param values: the values of private variables, as :meth:`JobStore.create` takes them.
    :param existing: one of :data:`EXISTING`.
    :return: the job that is there now: ``job``, or the existing one if that goes on.
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
    """Return a digest of what was submitted: the job and its tasks without what is noted about them later."""
    head = {name: value for name, value in jsontext.loads(job.to_json()).items() if name not in _NOT_DEFINED}
    bodies = [{**task.to_dict(), "job_name": "", "created_at": None} for task in tasks]
    document = jsontext.dumps([head, bodies], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(document, digest_size=16).hexdigest()


def _next_generation(store: JobStore, job: Job, tasks: list[Task], values: Values, existing: str) -> Job:
    name = job.name
    files = store.files(name)
    is_given_up = False
    if not _has_ended(files, existing):
        former = store.open(name).job if existing == RESUME else None
        if former is not None and former.definition == job.definition:
            store.check_trust(former)  # a repository may claim any definition
            for task_id, given in values.items():
                store.private.keep(former, given, task_id)
            return former
        if former is not None:
            raise JobExistsError(
                f"job {name} is {former.state.value}, and was submitted with another definition. `--replace` cancels "
                f"it and begins anew with this one, `--new-name` leaves it and calls this one {name}-2; "
                f"`air-executor run {name}` goes on with it as it is"
            )
        # Here, as a task that only queues others need not import the manager.
        from air_executor.jobs.requests import request

        try:
            request(config.load_plain(str(store.root.parent)), name, "cancel")
        except ManagedError:
            raise
        except JobError:  # it can't be understood, or is not trusted: nothing more of it is run here
            orphans.check_none(store, name)
            is_given_up = True
    lock = files.lock()
    if not lock.acquire(timeout_s=_LOCK_S):
        raise JobExistsError(f"a manager works on job {name}; try again when it has ended")
    try:
        if not is_given_up and not _has_ended(files, existing):
            raise JobExistsError(f"job {name} was begun again meanwhile; try again when it has ended")
        former = _former(files)
        store.keep_private(job, values)
        _write(files, job, tasks)
        if former is not None:
            store.private.forget(former)
    finally:
        lock.release(keep_file=True)
    store.announce(name)
    return job


def _former(files: JobFiles) -> Job | None:
    try:
        return files.read_job()
    except JobError:
        return None


def _has_ended(files: JobFiles, existing: str) -> bool:
    """Tell whether a job has ended and has no requests. A job that can't be understood may be replaced."""
    try:
        return files.is_over()
    except JobError:
        if existing == REPLACE:
            return True
        raise


def _write(files: JobFiles, job: Job, tasks: list[Task]) -> None:
    try:
        job.generation = files.counts()[0].generation + 1
    except JobError:  # its generation is unknown
        job.generation = 2
    new = JobFiles(files.path)
    new.job, job.state = job, JobState.WAITING
    new.add(tasks, f"job {job.name}")
    # Requests to the former generation do not concern the new one.
    for name in names_in(files.path / "inbox"):
        with contextlib.suppress(OSError):
            os.unlink(files.path / "inbox" / name)
    separate_logs(new)
    new.write()  # state.json last: until then the former generation counts, which has ended
