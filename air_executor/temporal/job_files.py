"""Tasks of the standalone engine on hosts: what they need there, and how what they leave comes back."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
from typing import Any

from air_executor.errors import ProtocolError
from air_executor.jobs.queue import QUEUED
from air_executor.machine.safe_files import open_to_append, read_plain, replace_file
from air_executor.runs.backend import RunRequest
from air_executor.runs.results import RETURNED, WRITTEN

#: In a run's folder on its host: what the task printed.
_LOG = "job.log"

#: So many bytes at the end of a log come back, and at most so many of everything: Temporal's limit is 2 MB.
_MAX_LOG, _MAX_BYTES = 256 << 10, 1 << 20


def at_home(request: RunRequest, state_dir: str, folder: str) -> RunRequest:
    """Return the request of a job's task with the paths of this host.

    :param state_dir: this host's.
    :param folder: of the run.
    """
    air = dict(request.air or {})
    environment = {**air.get("environment", {}), "AIR_EXECUTOR_STATE_DIR": state_dir}
    environment.pop("AIR_EXECUTOR_PRIVATE_DIR", None)
    return dataclasses.replace(request, air={**air, "environment": environment}, log_file=os.path.join(folder, _LOG))


def collect(folder: str) -> dict[str, str]:
    """Return what the run of a job's task has left in its folder: files by their names, in base64.

    :raises ProtocolError: it is too much for Temporal.
    """
    found = {}
    for name in (RETURNED, WRITTEN, QUEUED, _LOG):
        with contextlib.suppress(OSError):
            data = read_plain(os.path.join(folder, name))
            if name == _LOG and len(data) > _MAX_LOG:
                cut = len(data) - _MAX_LOG
                data = f"-- {cut} bytes before this are in {folder} on its host\n".encode() + data[cut:]
            found[name] = base64.b64encode(data).decode()
    size = sum(map(len, found.values()))
    if size > _MAX_BYTES:
        raise ProtocolError(f"its result and what it has queued take {size} bytes, more than Temporal takes at once")
    return found


def keep(files: dict[str, str], folder: str, log_file: str | None) -> None:
    """Put what :func:`collect` has returned into the run's folder here, and append its log to that of its task.

    :raises OSError: it can't be written.
    :raises StateDirError: it can't be written.
    """
    for name, text in files.items():
        data = base64.b64decode(text)
        if name in (RETURNED, WRITTEN, QUEUED):
            replace_file(os.path.join(folder, name), data)
        elif name == _LOG and log_file is not None:
            os.makedirs(os.path.dirname(log_file), mode=0o700, exist_ok=True)
            with open(open_to_append(log_file), "ab") as log:
                log.write(data)


def without_files(end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return an end without the files that came with it, and these."""
    return {name: value for name, value in end.items() if name != "files"}, end.get("files") or {}
