"""What a run leaves for its job: what its function returned, or its command wrote to ``$AIR_EXECUTOR_RESULT``."""

from __future__ import annotations

import contextlib
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
    with contextlib.suppress(ValueError):
        return jsontext.loads(data, is_kept=True)
    if is_json:
        return None  # it was torn by a power failure
    text = data.decode(errors="replace").rstrip("\n")
    if "\0" in text:
        raise JobError("its result holds a zero byte, and is neither JSON nor text")
    return text or None


def _opener(path: str, flags: int) -> int:
    """Open what a task has made, which may be anything."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
