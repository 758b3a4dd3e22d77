"""Requests to a job: done by its manager, or by this process if it has none."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from air_executor.config import Config
from air_executor.errors import JobError, ManagedError, WrongStateError
from air_executor.jobs import inbox
from air_executor.jobs.manager import Manager
from air_executor.jobs.store import JobFiles, JobStore

#: How long to wait for a manager that lives to do a request, in seconds.
_MANAGER_S = 120.0

#: How often to look whether it is done, in seconds.
_LOOK_S = 0.2

#: Requests that make no sense once a job has ended.
_OF_LIVE_JOBS = frozenset({"cancel", "pause", "resume"})


def request(
    config: Config, name: str, action: str, tasks: Iterable[Any] = (), *, heeds_signals: bool = True
) -> JobFiles:
    """Ask something of a job, and wait until it is done, or the job's manager has not done it for too long.

    :param action: ``cancel``, ``pause``, ``resume``, ``retry`` or ``reset``.
    :param tasks: ids of the tasks that the request is about; none for all.
    :param heeds_signals: as :class:`Manager` takes it.
    :return: the job as it is then.
    :raises JobError: there is no such job or task, or the request was refused; the message has the reason.
    :raises WrongStateError: the job has ended.
    """
    store, tasks = JobStore(config.state_dir), list(tasks)
    files = store.open(name)
    if missing := [task_id for task_id in tasks if task_id not in files.tasks]:
        raise JobError(f"there is no task {', '.join(map(repr, missing))} in job {name}")
    if action in _OF_LIVE_JOBS and files.job.state.is_end:
        raise WrongStateError(f"job {name} has ended already: {files.job.state.value}")
    store.check_trust(files.job)
    path = store.ask(name, action, tasks)
    try:
        Manager(config, only=frozenset({name}), heeds_signals=heeds_signals).apply()
    except ManagedError:
        # The other manager does it.
        until_s = time.monotonic() + _MANAGER_S
        while time.monotonic() < until_s and (path.exists() or (action == "cancel" and not files.is_ended())):
            time.sleep(_LOOK_S)
    if (reason := inbox.refusal(path)) is not None:
        raise JobError(f"job {name}: {reason}")
    return store.open(name)
