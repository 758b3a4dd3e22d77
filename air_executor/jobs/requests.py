"""Asking something of a job, and waiting until it is done: by its manager, or here if there is none."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from air_executor.config import Config
from air_executor.errors import JobError, ManagedError, WrongStateError
from air_executor.jobs import inbox
from air_executor.jobs.manager import Manager
from air_executor.jobs.store import JobFiles, JobStore

#: How long a manager may take to heed a request, in seconds.
_HEED_S = 30.0

#: How often is looked whether it has, in seconds.
_LOOK_S = 0.2

#: What makes no sense once a job has ended.
_OF_LIVE_JOBS = frozenset({"cancel", "pause", "resume"})


def request(
    config: Config, name: str, action: str, tasks: Iterable[Any] = (), *, heeds_signals: bool = True
) -> JobFiles:
    """Ask something of a job; return its files when that is done, or when its manager has not done it for too long.

    :param action: ``cancel``, ``pause``, ``resume``, ``retry`` or ``reset``.
    :param tasks: ids of the tasks that it is about; none for all.
    :param heeds_signals: as of :class:`Manager`; only the main thread can.
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
        # The manager does it; that is, soon.
        until_s = time.monotonic() + _HEED_S
        while time.monotonic() < until_s and (path.exists() or (action == "cancel" and not files.is_ended())):
            time.sleep(_LOOK_S)
    if (reason := inbox.refusal(path)) is not None:
        raise JobError(f"job {name}: {reason}")
    return store.open(name)
