"""Names of jobs and ids of tasks. They become the names of folders and files, so not every text can be one."""

from __future__ import annotations

import re
from typing import Any

from air_executor.errors import JobError

#: A regular expression for names and ids. Ids of Airflow's dag runs match, such as
#: ``manual__2025-10-02T07:30:00+00:00``.
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.:+@=-]{0,199}"

_NAME = re.compile(NAME)
_JOB = "a job's name"

#: The manager's own files in the folder of the jobs.
LOCK, ABOUT, LOG = OF_MANAGER = ("manager.lock", "manager.json", "manager.log")


def is_name(name: Any) -> bool:
    """Tell whether ``name`` can be the name of a job or the id of a task."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_name(name: Any, what: str | None = None) -> str:
    """Return ``name`` if it can be the name of a job or the id of a task.

    :param what: what it is to be, for the message; a job's name, unless given.
    :raises JobError: it can't.
    """
    if not is_name(name):
        raise JobError(
            f"{name!r} cannot be {what or _JOB}: up to 200 letters, digits and any of _ . : + @ = -, the first a "
            "letter, digit or _"
        )
    if what is None and name in OF_MANAGER:
        raise JobError(f"{name!r} cannot be {_JOB}: the manager has a file of that name there")
    return str(name)
