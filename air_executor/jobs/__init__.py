"""The standalone engine: jobs whose tasks may queue more tasks while they run. It needs no Airflow, and no database."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from air_executor.jobs.api import Results, queue_tasks, results, submit, wait
    from air_executor.jobs.model import Job, JobState, Task, TaskStatus

__all__ = ["Job", "JobState", "Results", "Task", "TaskStatus", "queue_tasks", "results", "submit", "wait"]

_API = ("Results", "queue_tasks", "results", "submit", "wait")


def __getattr__(name: str) -> Any:
    # A launcher of jobs imports this package for its hooks. Each of its forks would pay for the rest.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'api' if name in _API else 'model'}"), name)
