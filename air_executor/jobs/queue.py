"""Queueing tasks, from inside a task or from outside of the job.

What a task queues becomes part of its job when the task completes, with the same write. A task that fails has queued
nothing: when it is tried again, it queues again. So no task is queued twice, and none is lost when a runner, the
manager or the machine dies in between.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from air_executor import jsontext
from air_executor.errors import JobError, StateDirError
from air_executor.jobs import inbox
from air_executor.jobs.model import Task, check_name, new_tasks
from air_executor.jobs.names import is_name
from air_executor.jobs.private import without_values
from air_executor.jobs.reading import entries, read
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.jobs.trust import vouch
from air_executor.launcher.protocol import MAX_MESSAGE_BYTES
from air_executor.runs.record import now
from air_executor.runs.store import RunStore

#: The file below a run's folder with what its task has queued.
QUEUED = "queued.jsonl"

#: The greatest length of a task's command, arguments and variables in bytes. The rest of the message needs room, too.
MAX_TASK_BYTES = MAX_MESSAGE_BYTES // 2


def queue_in_job(tasks: Iterable[Mapping[str, Any]], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Queue tasks in the job of which this process executes a task.

    :param tasks: each as in ``tasks.json``; without an ``id`` it gets one.
    :return: their ids; for a key that the job has already, the id of the task with that key.
    :raises JobError: this process belongs to no task, an id is taken, or a dependency is unknown or leads back.
    """
    try:
        state_dir, name = environ["AIR_EXECUTOR_STATE_DIR"], environ["AIR_EXECUTOR_JOB"]
        task_id, run_id = environ["AIR_EXECUTOR_TASK"], environ["AIR_EXECUTOR_RUN"]
    except KeyError:
        raise JobError(
            "this process is not a task of a job: AIR_EXECUTOR_JOB is not set. From outside, name the job: "
            "`air-executor queue --job NAME`"
        ) from None
    store = JobStore(state_dir)
    path = RunStore(state_dir).folder(run_id) / QUEUED
    tasks = list(tasks)
    new, values = _apart([named(task, prefix=task_id) for task in tasks], f"tasks queued by {task_id}")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateDirError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(fd, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        # Every task of a long job may queue one more. Only ids, keys and dependencies are compared with all others.
        is_compared = any(
            any(task.get(field) for field in ("id", "key", "dependencies")) or "${tasks." in str(task) for task in tasks
        )
        files = store.files(name) if is_compared and store.has(name) else None  # on another host it is not here
        ids = _ids(new, files, entries(whole, path), name, f"tasks queued by {task_id}")
        _keep(store, name, values)
        os.ftruncate(fd, len(whole))
        lines = b"".join(jsontext.dumps(each) + b"\n" for each in new)
        if os.write(fd, lines) < len(lines):
            os.ftruncate(fd, len(whole))
            raise StateDirError(f"cannot write {path}: the disk is full")
    return ids


def queue_from_outside(state_dir: str | Path, name: str, tasks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Queue tasks in a job from outside: its manager adds them.

    :return: their ids.
    :raises JobError: as :func:`queue_in_job`.
    """
    store = JobStore(state_dir)
    files = store.files(name)
    files.job = files.read_job()
    store.check_trust(files.job)
    new, values = _apart([named(task, prefix="task") for task in tasks], "tasks to queue")
    with inbox.alone(files.path / "inbox"):
        # What others have queued, and the manager has not seen yet: looked at first, as it may be in the job soon.
        waiting = [
            task for ask in files.asks() if ask.action == "queue" for task in ask.tasks if is_name(task.get("id"))
        ]
        ids = _ids(new, files, waiting, name, "tasks to queue")
        known = {task["id"] for task in waiting}
        new = [task for task, task_id in zip(new, ids, strict=True) if task["id"] == task_id or task_id not in known]
        _keep(store, name, {task["id"]: values[task["id"]] for task in new if task["id"] in values})
        vouch(files, [Task.from_dict(each, job_name=name, where="tasks to queue") for each in new])
        if new:
            store.ask(name, "queue", new)
    return ids


def _apart(tasks: list[dict[str, Any]], where: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """Return tasks without the values of their private variables, and these values by the tasks' ids."""
    found = [without_values(task, f"{where}, task {task['id']!r}") for task in tasks]
    return [task for task, _ in found], {task["id"]: values for task, values in found if values}


def _keep(store: JobStore, name: str, values: Mapping[str, Mapping[str, str]]) -> None:
    if values:
        if not store.has(name):
            raise JobError(f"private variables can be queued only where job {name} is, not on another host")
        job = store.files(name).read_job()
        for task_id, given in values.items():
            store.private.keep(job, given, check_name(task_id, "a task's id"))


def _ids(
    new: list[dict[str, Any]], files: JobFiles | None, before: list[dict[str, Any]], name: str, where: str
) -> list[str]:
    """Return the ids of new tasks; for a key that the job has already, the id of the task with that key.

    :param files: the job to compare them with, if they must be.
    :param before: what the same task has queued before.
    :raises JobError: a task can't be used, or contradicts the job.
    """
    tasks = [Task.from_dict(each, job_name=name, where=where, is_strict=True) for each in new]
    for task in tasks:
        check_size(task, where)
    ids, keys = files.outline() if files else (set(), {})
    for each in before:
        ids.add(each["id"])
        if isinstance(each.get("key"), str):
            keys.setdefault(each["key"], each["id"])
    keys = {**new_tasks(tasks, ids, keys, where)[1], **keys}
    return [task.id if task.key is None else keys[task.key] for task in tasks]


def check_size(task: Task, where: str) -> None:
    """Check that a task is not too large for a message to the launcher.

    :raises JobError: it is.
    """
    size = len(jsontext.dumps([task.command, task.args, task.arguments, task.env]))
    if size > MAX_TASK_BYTES:
        raise JobError(
            f"{where}, task {task.id!r}: its command, arguments and variables take {size / 1e6:.1f} MB, and "
            f"{MAX_TASK_BYTES / 1e6:g} MB is the limit; put them into a file"
        )


def named(task: Mapping[str, Any], *, prefix: str) -> dict[str, Any]:
    """Return a task as plain data, with an id and its time of creation.

    :raises JobError: it is not an object.
    """
    if not isinstance(task, Mapping):
        raise JobError(f"a task must be an object, not {task!r}")
    document = dict(task)
    if document.get("id") is None:
        document["id"] = f"{prefix[:150]}.{uuid.uuid4().hex[:8]}"
    return {**document, "created_at": now()}


def read_queued(folder: str) -> list[dict[str, Any]]:
    """Return what the task whose run has this folder has queued.

    :raises JobError: it can't be understood.
    """
    return entries(read(os.path.join(folder, QUEUED)) or b"", QUEUED)
