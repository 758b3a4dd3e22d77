"""What a run tells: one JSON object per line on stdout."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import Any

from air_executor import jsontext
from air_executor.pocket.request import DagError, RunFailedError

_stdout = 1


def keep_stdout() -> None:
    """Keep stdout for what is told: what else prints there, as a DAG's file may, goes to stderr from now on."""
    global _stdout
    _stdout = os.dup(1)
    os.dup2(2, 1)


def close() -> None:
    """Tell nothing more from this process."""
    os.close(_stdout)


def tell_error(error: BaseException) -> int:
    """Tell of the error that ends the run's Airflow, and return the exit code: 1, unless the DAG can't be run so."""
    cause = error if isinstance(error, OSError) else error.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    if isinstance(error, OSError):
        what = f"{error.filename} can't be used" if error.filename else "the run's Airflow can't work"
        tell("error", error=f"{what}: {error.strerror or error}", errno=number)
    else:
        tell("error", error=str(error), errno=number)
    return error.exit_code if isinstance(error, DagError) else RunFailedError.exit_code


def tell(event: str, **what: Any) -> None:
    """Tell of an event.

    :param event: its name.
    """
    now = datetime.now(tz=timezone.utc).isoformat(timespec="milliseconds")
    data = memoryview(jsontext.dumps({"event": event, "at": now, **what}) + b"\n")
    while data:
        data = data[os.write(_stdout, data) :]
