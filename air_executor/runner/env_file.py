"""Variables from files of ``NAME=VALUE`` lines, as the ``env_file`` of jobs and tasks names them."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable

from air_executor.errors import AirExecutorError

#: A larger file, in bytes, is refused.
_MAX_BYTES = 1 << 20


def read(paths: Iterable[str]) -> dict[str, str]:
    """Return the variables of files; a later file overrides an earlier one.

    The files are read as python-dotenv reads them: comments, quotes, ``export``, and ``${NAME}`` of what came before.

    :raises AirExecutorError: one of them can't be read; the message names it, and no value.
    """
    from dotenv import dotenv_values

    variables: dict[str, str] = {}
    for path in paths:
        found = dotenv_values(stream=io.StringIO(_text(path)))
        for name, value in found.items():
            if not name or "=" in name or "\0" in name + (value or ""):
                raise AirExecutorError(f"the env_file {path} is not one of NAME=VALUE lines, as it holds a zero byte")
            if value is not None:
                variables[name] = value
    return variables


def _text(path: str) -> str:
    try:
        with open(path, "rb", opener=_opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise AirExecutorError(f"the env_file {path} is not a file")
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise AirExecutorError(f"the env_file {path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise AirExecutorError(f"the env_file {path} is larger than {_MAX_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise AirExecutorError(f"the env_file {path} is not UTF-8 text") from None


def _opener(path: str, flags: int) -> int:
    """Open without blocking: the path may be a FIFO, which must not keep the runner from its task."""
    return os.open(path, flags | os.O_NONBLOCK)
