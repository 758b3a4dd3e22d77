"""The Python interface: submitting jobs, queueing tasks, waiting for jobs, and their results."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from air_executor.errors import JobError
from air_executor.jobs import keys
from air_executor.jobs.again import REFUSE, definition, place
from air_executor.jobs.fields import check_names
from air_executor.jobs.model import Job, JobState, Task, TaskStatus, check_name
from air_executor.jobs.private import without_values
from air_executor.jobs.queue import check_size, queue_from_outside, queue_in_job
from air_executor.jobs.schema import GIVEN
from air_executor.jobs.store import JobStore, base_folder, is_worked_on
from air_executor.jobs.templates import result_of
from air_executor.runs.statedir import FOLDER as FOLDER
from air_executor.runs.statedir import absolute, locate, working_dir

log = logging.getLogger(__name__)

#: How long :func:`wait` waits for a manager before it warns that there is none, in seconds.
_NO_MANAGER_S = 2.0

#: How often :func:`wait` looks at the job, in seconds.
_LOOK_S = 0.2

#: How often :func:`wait` checks that the job can be understood, in seconds.
_CHECK_S = 2.0


def find_state_dir(start: str | Path | None = None) -> Path:
    """Return the state directory for a working directory: see :func:`air_executor.runs.statedir.locate`.

    :param start: the working directory; by default that of this process.
    :raises StateDirError: the one that was found is not this user's alone.
    """
    return locate(start).path


def submit(
    name: str,
    tasks: Iterable[Task | Mapping[str, Any]],
    *,
    max_runners: int = 1,
    folder: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    env_from: Iterable[str] = (),
    private_env: Mapping[str, str] | None = None,
    key: str | None = None,
    state_dir: str | Path | None = None,
    existing: str = REFUSE,
    **fields: Any,
) -> Job:
    """Write a new job, which its manager will start.

    :param tasks: each a :class:`Task` or plain data with its fields; without an id they get ``task-1``, ….
    :param max_runners: how many of its tasks may run at a time.
    :param folder: working directory of the tasks; by default that of this process.
    :param env: variables for all tasks. They are stored in the job's files in plain text: no secrets.
    :param env_from: names of variables for all tasks, which come from the manager's environment.
    :param private_env: variables for all tasks whose values are stored in this user's private folder, and not in the
        job's files, which have only their names. A task may have ``private_env``, too.
    :param key: makes the call idempotent: submitting again with the same key returns the job that was made first.
        Removing the job frees the key.
    :param existing: what to do if there is a job of that name. ``refuse``: raise an error. ``resume``: start an ended
        job again with these tasks, as its next generation; let one that has not ended go on, if its definition is the
        same. ``replace``: cancel it, and start it again. ``new_name``: name the new one ``NAME-2``, or the next number.
    :param fields: other fields of a job: ``env_file``, ``priority``, ``paused``, ``on_success``, ``on_failure``, and
        fields of your own, which begin with ``x-`` or ``_``.
    :return: the job, with the name and the id that it has.
    :raises JobExistsError: there is a job of that name, and it stays.
    :raises JobError: something in the tasks can't be used, or the key was used for another definition.
    :raises StateDirError: it can't be written.
    """
    state_dir = Path(state_dir or find_state_dir())
    options = {"env": env, "env_from": env_from, "private_env": private_env, **fields}
    job, made, values = describe(name, tasks, state_dir, max_runners=max_runners, folder=folder, **options)
    store = JobStore(state_dir)
    if key is None:
        return place(store, job, made, values, existing)
    defined = definition(job, made)
    with keys.hold(store, key) as held:
        known = held.find(defined)
        if known is not None:
            return known
        held.note(job, defined)
        placed = place(store, job, made, values, existing)
        if placed.name != name or placed is not job:
            held.note(placed, defined)
    return placed


def describe(
    name: str,
    tasks: Iterable[Task | Mapping[str, Any]],
    state_dir: str | Path,
    *,
    max_runners: int = 1,
    folder: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    env_from: Iterable[str] = (),
    private_env: Mapping[str, str] | None = None,
    **fields: Any,
) -> tuple[Job, list[Task], dict[str | None, dict[str, str]]]:
    """Return the job that :func:`submit` would write, its tasks, and the values of private variables. Write nothing.

    :raises JobError: something in it can't be used.
    """
    check_name(name)
    state_dir = Path(state_dir)
    where = absolute(folder or working_dir("give the job a folder")).resolve()
    if state_dir.name == FOLDER and where.is_relative_to(base := base_folder(state_dir)):
        where = where.relative_to(base)
    check_names(fields, GIVEN, f"job {name}")
    document = {**fields, "max_runners": max_runners, "folder": str(where), "env": dict(env or {})}
    document |= {"env_from": list(env_from), "private_env": private_env}
    document, values = without_values({"id": str(uuid.uuid4()), **document}, f"job {name}")
    job = Job.from_dict(document, name=name, where=f"job {name}", is_strict=True)
    made, values_of_tasks = _tasks(name, tasks)
    return job, made, {None: values, **values_of_tasks}


def _tasks(name: str, tasks: Iterable[Task | Mapping[str, Any]]) -> tuple[list[Task], dict[str | None, dict[str, str]]]:
    """Return tasks, and the values of their private variables by their ids."""
    made: list[Task] = []
    values: dict[str | None, dict[str, str]] = {}
    for number, each in enumerate(tasks, 1):
        document = each.to_dict() if isinstance(each, Task) else each
        given: dict[str, str] = {}
        if isinstance(document, Mapping):
            if document.get("id") is None:
                document = {**document, "id": f"task-{number}"}
            document, given = without_values(document, f"job {name}, task {document['id']!r}")
        task = Task.from_dict(document, job_name=name, where=f"job {name}", is_strict=True)
        check_size(task, f"job {name}")
        made.append(task)
        values[task.id] = given
    return made, values


def queue_tasks(
    tasks: Iterable[Task | Mapping[str, Any]], *, job: str | None = None, state_dir: str | Path | None = None
) -> list[str]:
    """Queue tasks in the job whose task calls this, or from anywhere in ``job``.

    Inside a task they become part of the job when the task completes. A task that fails has queued nothing.

    In a task of an Airflow dag they are the keyword arguments of the task that
    :func:`air_executor.follow_up.follow_up` maps over them.

    :return: their ids; for a key that the job has already, the id of the task with that key.
    :raises JobError: an id is taken, a dependency is unknown or leads back, or there is no such job.
    """
    documents = [each.to_dict() if isinstance(each, Task) else each for each in tasks]
    if job is None:
        if "AIR_EXECUTOR_JOB" not in os.environ and "airflow.sdk" in sys.modules:
            follow_up = importlib.import_module("air_executor.follow_up")  # by name: this package knows no Airflow
            if follow_up.is_in_task():
                ids: list[str] = follow_up.queue_in_dag(documents)
                return ids
        return queue_in_job(documents)
    return queue_from_outside(state_dir or find_state_dir(), job, documents)


@dataclass(frozen=True)
class Results:
    """A job and its tasks, as they are at one moment."""

    job: Job
    tasks: list[Task]

    @property
    def failed(self) -> list[Task]:
        """The tasks that failed."""
        return [task for task in self.tasks if task.status is TaskStatus.FAILED]

    @property
    def values(self) -> dict[str, Any]:
        """The results of the tasks, by their ids. That of a task with ``foreach`` is the list of its items' results."""
        tasks = {task.id: task for task in self.tasks}
        found = {task.id: result_of(task, tasks) for task in self.tasks}
        return {name: result for name, result in found.items() if result is not None}


def results(name: str, *, state_dir: str | Path | None = None) -> Results:
    """Return a job and its tasks as they are now.

    :raises JobError: there is no such job.
    """
    files = JobStore(state_dir or find_state_dir()).open(name)
    return Results(files.job, list(files.tasks.values()))


def wait(name: str, *, timeout_s: float | None = None, state_dir: str | Path | None = None) -> Results:
    """Wait until a job has ended. If no manager works on it, a warning is logged once.

    :raises JobError: there is no such job, or it has not ended within ``timeout_s`` seconds.
    """
    store = JobStore(state_dir or find_state_dir())
    end_s = None if timeout_s is None else time.monotonic() + timeout_s
    fault: JobError | None = None
    check_s = time.monotonic() + _CHECK_S
    warn_s = time.monotonic() + _NO_MANAGER_S
    while not _is_over(store, name):
        if time.monotonic() >= check_s:
            # A job that can't be understood never ends. Check twice, as its manager may repair it.
            began_s, former, fault = time.monotonic(), fault, _fault(store, name)
            if fault is not None and former is not None:
                raise fault
            check_s = time.monotonic() + max(_CHECK_S, 20 * (time.monotonic() - began_s))
        if time.monotonic() >= warn_s and not is_worked_on(store.folder(name)):
            log.warning("Nobody works on job %s; begin with `air-executor start` or `air-executor run %s`", name, name)
            warn_s = float("inf")
        if end_s is not None and time.monotonic() >= end_s:
            raise JobError(f"job {name} is {store.open(name).job.state.value} after {timeout_s:g} s")
        time.sleep(_LOOK_S)
    return results(name, state_dir=store.root.parent)


def _is_over(store: JobStore, name: str) -> bool:
    files = store.files(name)
    try:
        job = files.read_job()
        is_over = job.state.is_end and files.is_over()
    except JobError:
        return False
    if job.state is JobState.WAITING:
        store.check_trust(job)  # it would never start
    return is_over


def _fault(store: JobStore, name: str) -> JobError | None:
    """Return why a job can't be understood."""
    try:
        store.open(name)
    except JobError as error:
        return error
    return None
