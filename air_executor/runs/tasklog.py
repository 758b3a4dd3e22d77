"""A task's own log, from outside the task: to append what the task can no longer say, and to find why it failed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import orjson

from air_executor.runs.record import now

#: The exception of a failed task is looked for in this many bytes at the end of its log.
_END_BYTES = 1 << 18

#: How Airflow's message about a failed task begins.
_FAILED = "Task failed"

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def append_to_log(log_file: str | None, message: str, *, kind: str = "") -> None:
    """Append ``message`` as an error to a task's log, in the JSON lines that Airflow writes and shows.

    A log that can't be written is left alone: the run's record has the message, too.

    :param kind: of the run; the log of a ``job`` is for its owner alone, others have Airflow's mode.
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
    """Return the exception with which a task failed, in a line, from the end of its log: ``ValueError: not so``.

    Only the log has it, with secrets masked already. ``None`` if it is not there.
    """
    found: dict[bool, str] = {}
    for line in _last_lines(log_file):
        if b"error_detail" not in line:
            continue
        with contextlib.suppress(orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            event: dict[str, Any] = orjson.loads(line)
            error = event["error_detail"][0]
            text = f"{error['exc_type']}: {error['exc_value']}" if error["exc_value"] else str(error["exc_type"])
            # A callback may fail after the task; that is not why the task failed.
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
