"""A task's own log, from outside the task: to write to it, and to find in it why the task failed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO, Any

import orjson

from air_executor.runs.record import now

#: The exception of a failed task is looked for in this many bytes at the end of its log.
_END_BYTES = 1 << 18

#: How Airflow's message about a failed task begins.
_FAILED = "Task failed"

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class LossyLog:
    """A task's log, open for appending. A line that its disk can't take is lost, and no error.

    The next line that can be written is preceded by one that says how many are missing.
    """

    def __init__(self, file: IO[Any]) -> None:
        """Write to ``file`` from now on."""
        self._file = file
        self._lost = 0
        self._why = ""
        self._is_cut = False
        """The last line is not whole."""

    @property
    def name(self) -> str:
        """The path of the file."""
        return str(self._file.name)

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._file.fileno()

    def write(self, line: bytes) -> int:
        """Append a line, which ends with a newline."""
        note = b""
        if self._lost:
            note = _event(f"{self._lost} lines are missing here: {self._why}") + b"\n"
        data, written = (b"\n" if self._is_cut else b"") + note + line, 0
        try:
            while written < len(data):
                written += os.write(self._file.fileno(), data[written:])
        except OSError as error:
            self._lost += 1
            self._why = error.strerror or str(error)
            if written:
                self._is_cut = data[written - 1 : written] != b"\n"
        else:
            self._lost, self._is_cut = 0, False
        return len(line)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()


def _event(message: str) -> bytes:
    return orjson.dumps({"timestamp": now(), "level": "error", "event": message, "logger": "air_executor"})


def append_to_log(log_file: str | None, message: str, *, kind: str = "") -> None:
    """Append ``message`` as an error to a task's log, in the JSON lines that Airflow writes and shows.

    A log that can't be written is left alone: the run's record has the message, too.

    :param kind: of the run; the log of a ``job`` is for its owner alone, others have Airflow's mode.
    """
    if log_file is None:
        return
    path = Path(log_file)
    try:
        path.parent.mkdir(mode=0o700 if kind == "job" else 0o777, parents=True, exist_ok=True)
        fd = os.open(path, _FLAGS, 0o600 if kind == "job" else 0o664)
    except OSError:
        return
    try:
        os.write(fd, _event(message) + b"\n")
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
