"""A task's own log, from outside the task: a line for what it can no longer say, and what it has failed with."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import orjson

from air_executor.runs.record import now

#: What a task failed with is looked for in so many bytes at the end of its log.
_END_BYTES = 1 << 18

#: How Airflow begins what it says of a task that failed.
_FAILED = "Task failed"

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


def last_exception(log_file: str | None) -> str | None:
    """Return the exception with which a task failed, in a line, as its log ends: ``ValueError: not so``.

    The log is the place that has it, and in it secrets are masked already. ``None`` if it does not tell.
    """
    found: dict[bool, str] = {}
    for line in _last_lines(log_file):
        if b"error_detail" not in line:
            continue
        with contextlib.suppress(orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            event: dict[str, Any] = orjson.loads(line)
            error = event["error_detail"][0]
            text = f"{error['exc_type']}: {error['exc_value']}" if error["exc_value"] else str(error["exc_type"])
            # A callback that fails after it is not what the task failed with.
            found[str(event.get("event")).startswith(_FAILED)] = " ".join(text.split())
    return found.get(True) or found.get(False)


def _last_lines(log_file: str | None) -> list[bytes]:
    try:
        fd = os.open(log_file or "", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        begin = max(0, os.fstat(fd).st_size - _END_BYTES)
        return os.pread(fd, _END_BYTES, begin).split(b"\n")
    except OSError:
        return []
    finally:
        os.close(fd)
