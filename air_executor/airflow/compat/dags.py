"""What the tasks of a DAG need."""

from __future__ import annotations

import importlib

from air_executor.airflow.compat import places


def skip(reason: str) -> Exception:
    """Return the exception with which a task says that it is to be skipped."""
    error: Exception = importlib.import_module(places.TASK_EXCEPTIONS).AirflowSkipException(reason)
    return error
