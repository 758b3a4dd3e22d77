"""Requests to a job: done by its manager, or by this process if it has none."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from air_executor.config import Config
from air_executor.errors import JobError, ManagedError, WrongStateError
from air_executor.jobs import inbox
from air_executor.jobs.manager import Manager
from air_executor.jobs.restart import why_not
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.runs.lock import is_held

#: How long to wait for a manager that lives to do a request, in seconds.
_MANAGER_S = 120.0

#: How often to look whether it is done, in seconds.
_LOOK_S = 0.2

_KEPT = "The request stays in the job's inbox, and is done when that is possible"

#: Requests that make no sense once a job has ended.
_OF_LIVE_JOBS = frozenset({"cancel", "pause", "resume"})


def request(
    config: Config, name: str, action: str, tasks: Iterable[Any] = (), *, heeds_signals: bool = True
) -> JobFiles:
    """Ask something of a job, and wait until it is done.

    :param action: ``cancel``, ``pause``, ``resume``, ``retry`` or ``reset``.
    :param tasks: ids of the tasks that the request is about; none for all.
    :param heeds_signals: as :class:`Manager` takes it.
    :return: the job as it is then.
    :raises JobError: there is no such job or task, or the request was refused; the message has the reason.
    :raises WrongStateError: the job has ended, or has nothing to retry.
    :raises ManagedError: it is not done yet, as the job's manager does not answer or the job's files can't be written.
    """
    store, tasks = JobStore(config.state_dir), list(tasks)
    files = store.open(name)
    if missing := [task_id for task_id in tasks if task_id not in files.tasks]:
        raise JobError(f"there is no task {', '.join(map(repr, missing))} in job {name}")
    if action in _OF_LIVE_JOBS and files.job.state.is_end:
        raise WrongStateError(f"job {name} has ended already: {files.job.state.value}")
    if action == "retry" and (why := why_not(files, tasks)) is not None:
        raise WrongStateError(f"job {name}: {why}")
    store.check_trust(files.job)
    path = store.ask(name, action, tasks)
    until_s = time.monotonic() + _MANAGER_S
    while True:
        # Each time: a manager that has the job may have looked into its inbox for the last time.
        if not is_held(files.lock().path):
            _do(config, name, path, heeds_signals=heeds_signals)
        if _is_done(files, path, action):
            return store.open(name)
        if time.monotonic() >= until_s:
            what = f"has not answered. {_KEPT}" if path.exists() else "still stops its tasks"
            raise ManagedError(f"after {_MANAGER_S:g} s the manager that works on job {name} {what}")
        time.sleep(_LOOK_S)


def _is_done(files: JobFiles, path: Path, action: str) -> bool:
    """Tell whether a request is done.

    :raises JobError: it was refused.
    """
    if path.exists():
        return False
    if (reason := inbox.refusal(path)) is not None:
        raise JobError(f"job {files.name}: {reason}")
    return action != "cancel" or files.is_ended()


def _do(config: Config, name: str, path: Path, *, heeds_signals: bool) -> None:
    """Do what is asked of a job, unless a manager has begun to work on it.

    :raises ManagedError: it is not possible now.
    """
    manager = Manager(config, only=frozenset({name}), heeds_signals=heeds_signals)
    manager.on_signal = _interrupt
    try:
        manager.apply()
    except ManagedError:
        return
    if path.exists() and (why := manager.obstacle(name)) is not None:
        raise ManagedError(f"job {name} has to wait: {why}. {_KEPT}")


def _interrupt() -> None:
    raise KeyboardInterrupt
