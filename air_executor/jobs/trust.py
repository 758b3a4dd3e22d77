"""What of a job is trusted: all that it will ever say, or what it said when its user looked at it.

A job that was submitted here is trusted whatever its files say later: its user and the manager change them. A job that
came with a repository is trusted as it was when somebody called ``air-executor trust``: what it would execute is noted
as digests, and anything else in its files, as after ``git pull``, is not run before it is trusted too. What its own
trusted tasks queue here is noted as well, and so is what this user queues or asks.

A digest is of what is executed, and of where and with which variables and limits. The order of tasks and their states
are not part of it, nor are results and items that are filled in: they are passed as data and never executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from air_executor import jsontext
from air_executor.errors import AirExecutorError, UntrustedJobError
from air_executor.jobs.files import JobFiles
from air_executor.jobs.inbox import Ask
from air_executor.jobs.model import HOOKS, Job, Task
from air_executor.jobs.private import PrivateStore

_OF_JOB = ("folder", "env", "env_from", "env_file")

_OF_TASK = ("command", "args", "function", "arguments", "shell", "cwd", "env", "env_from", "env_file", "limits")

#: This many changes are named in a message.
_NAMED = 3


def digests(job: Job, tasks: Iterable[Task]) -> dict[str, str]:
    """Return the digests of all that a job would execute, each with what it stands for, for people."""
    hooks = [hook for name in HOOKS if (hook := job.hook(name, where=f"job {job.name}")) is not None]
    return {_digest(job, _OF_JOB): "its folder or variables", **_of_tasks((*tasks, *hooks))}


def of_job(job: Job) -> dict[str, Any]:
    """Return what a job itself says of what is executed, and its hooks: what is not empty."""
    values = {name: getattr(job, name) for name in (*_OF_JOB, *HOOKS)}
    return {name: value for name, value in values.items() if value}


def of_task(task: Task) -> dict[str, Any]:
    """Return what a task would execute: what is not empty."""
    values = {name: getattr(task, name) for name in (*_OF_TASK, "foreach")}
    return {name: value for name, value in values.items() if value}


def _of_tasks(tasks: Iterable[Task]) -> dict[str, str]:
    found: dict[str, str] = {}
    for task in tasks:
        found[_digest(task, _OF_TASK)] = f"task {task.id}"
        if isinstance(task.foreach, list):
            found[_digest(task, ("foreach",))] = f"the items of task {task.id}"
    return found


def _digest(of: Any, names: Iterable[str]) -> str:
    values = {name: getattr(of, name) for name in names}
    return hashlib.blake2b(jsontext.dumps(values, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def changes(found: Mapping[str, str], vouched: frozenset[str]) -> str | None:
    """Return what of :func:`digests` is not trusted, for a message: a few of them; ``None``: all is."""
    every = list(dict.fromkeys(what for digest, what in found.items() if digest not in vouched))
    if not every:
        return None
    return ", ".join(every[:_NAMED]) + (f" and {len(every) - _NAMED} more" if len(every) > _NAMED else "")


def vouch(files: JobFiles, tasks: Iterable[Task]) -> None:
    """Note that tasks of a trusted job may run, as one of its own tasks, or this user, has queued them.

    :raises StateDirError: it can't be noted.
    """
    private = PrivateStore(files.path.parent.parent)
    if private.is_trusted(files.job) and private.vouched(files.job) is not None:
        private.vouch(files.job, _of_tasks(tasks))


def vouch_ask(files: JobFiles, ask: Ask) -> None:
    """Note that this user asks something of a job, if it is one that is trusted only as it was.

    :raises StateDirError: it can't be noted.
    """
    try:
        job, private = files.read_job(), PrivateStore(files.path.parent.parent)
        is_as_it_was = private.is_trusted(job) and private.vouched(job) is not None
    except AirExecutorError:
        return  # its manager says what is wrong; most jobs need no note
    if is_as_it_was:
        private.vouch(job, [_of_ask(ask)])


def check_ask(files: JobFiles, ask: Ask) -> None:
    """Check a request in the inbox: a repository may hold requests, too.

    :raises UntrustedJobError: nobody here has asked it.
    """
    private = PrivateStore(files.path.parent.parent)
    vouched = private.vouched(files.job) if private.is_trusted(files.job) else None
    if vouched is not None and _of_ask(ask) not in vouched:
        raise UntrustedJobError(f"its user did not ask to {ask.action}: {ask.path.name} came with the files of the job")


def _of_ask(ask: Ask) -> str:
    """Return the digest of a request. The name of its file is part of it, so that none is done twice."""
    data = jsontext.dumps([ask.path.name, ask.document], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(data, digest_size=16).hexdigest()
