"""A line in a task's own log, from outside the task: for what the task itself can no longer say."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from air_executor.runs.record import now

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def append_to_log(log_file: str | None, message: str, *, kind: str = "") -> None:
    """Append ``message`` as an error to a task's log, in the JSON lines that Airflow writes and shows.

    :param kind: of the run; the log of a ``job`` is for its owner alone, others have Airflow's mode.
    A log that can't be written is left: the message also stands in the run's record.
    """
    if log_file is None:
        return
    line = orjson.dumps({"timestamp": now(), "level": "error", "event": message, "logger": "air_executor"})
    path = Path(log_file)
    try:
        path.parent.mkdir(mode=0o700 if kind == "job" else 0o777, parents=True, exist_ok=True)
        fd = os.open(path, _FLAGS, 0o600 if kind == "job" else 0o664)
    except OSError:
        return
    try:
        os.write(fd, line + b"\n")
    except OSError:
        return
    finally:
        os.close(fd)
