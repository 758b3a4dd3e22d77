"""What a run leaves for its job: what its function returned, or its command wrote to ``$AIR_EXECUTOR_RESULT``."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from air_executor import jsontext
from air_executor.errors import JobError

#: A result that is longer than this many bytes does not go into ``tasks.json``.
MAX_RESULT_BYTES = 1 << 16

#: The file below a run's folder in which a function's result is, as JSON.
RETURNED = "result.json"

#: The file below a run's folder to which a command may write: JSON, or text.
WRITTEN = "result"


def read_result(folder: Path | str, *, is_json: bool) -> Any:
    """Return the result that a run has left in its folder; ``None`` when there is none.

    :param is_json: it is what a function returned; otherwise what a command wrote.
    :raises JobError: it can't be kept.
    """
    path = os.path.join(folder, RETURNED if is_json else WRITTEN)
    try:
        with open(path, "rb", opener=_opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise JobError(f"its result is no file: {path}")
            data = file.read(MAX_RESULT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JobError(f"its result cannot be read from {path}: {error.strerror}") from None
    if len(data) > MAX_RESULT_BYTES:
        raise JobError(f"its result has {status.st_size} bytes; write what is larger than 64 KiB to a file of its own")
    if is_json:
        return _returned(data)
    with contextlib.suppress(ValueError):
        return _written(data)
    text = data.decode(errors="surrogateescape").rstrip("\n")
    if "\0" in text:
        raise JobError("its result holds a zero byte, and is neither JSON nor text")
    return text or None


def _returned(data: bytes) -> Any:
    """Return what a function returned.

    :raises JobError: it is nested too deeply.
    """
    try:
        return jsontext.loads(data, is_kept=True)
    except json.JSONDecodeError:
        return None  # it was torn by a power failure
    except ValueError as error:
        raise JobError(f"its result cannot be kept: {error}") from None


def _written(data: bytes) -> Any:
    """Return what a command has written, if it is JSON that says the same when it is written again.

    A number that would not, such as 1.10 or 12e45, is text: it may be a version, or an id.

    :raises ValueError: it is not.
    :raises JobError: it is an object or a list with a number that JSON readers don't keep.
    """
    value = jsontext.loads(data, is_kept=True)
    if isinstance(value, (int, float)) and jsontext.dumps(value) != data.strip():
        raise ValueError("it would be another text")
    if isinstance(value, (dict, list)):
        json.loads(data, parse_int=_whole)
    return value


def _whole(text: str) -> int:
    if not jsontext.is_kept_whole(text):
        raise JobError(f"its result holds {text[:40]}, and whole numbers in JSON have up to 64 bits: write it as text")
    return int(text)


def _opener(path: str, flags: int) -> int:
    """Open what a task has made, which may be anything."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
