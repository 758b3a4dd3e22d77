"""Tasks of the standalone engine on hosts: what they need there, and how what they leave comes back."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import logging
import os
from typing import Any

import orjson

from air_executor.errors import ProtocolError
from air_executor.jobs.queue import QUEUED
from air_executor.machine.safe_files import open_plain, open_to_append, replace_file
from air_executor.runs.backend import RunRequest
from air_executor.runs.results import RETURNED, WRITTEN
from air_executor.temporal.settings import Settings

log = logging.getLogger(__name__)

#: In a run's folder on its host: what the task printed.
_LOG = "job.log"

#: This many bytes at the end of a log come back, and at most this many of everything: Temporal's limit is 2 MB.
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
        with contextlib.suppress(OSError), open_plain(os.path.join(folder, name)) as file:
            size = os.fstat(file.fileno()).st_size
            if name == _LOG and size > _MAX_LOG:
                file.seek(size - _MAX_LOG)
                cut = f"-- {size - _MAX_LOG} bytes before this are in {folder} on its host\n".encode()
                found[name] = base64.b64encode(cut + file.read(_MAX_LOG)).decode()
            else:
                found[name] = base64.b64encode(file.read(_MAX_BYTES + 1)).decode()
    if (size := sum(map(len, found.values()))) > _MAX_BYTES:
        raise ProtocolError(f"what it has printed, returned and queued takes {size} bytes; {_MAX_BYTES} is the limit")
    return found


def keep(files: dict[str, str], folder: str, log_file: str | None) -> None:
    """Put what :func:`collect` has returned into the run's folder here, and append its log to that of its task, once.

    :raises StateDirError: it can't be written.
    """
    is_new = not os.path.exists(os.path.join(folder, _LOG))
    for name in (RETURNED, WRITTEN, QUEUED, _LOG):
        if name in files:
            replace_file(os.path.join(folder, name), base64.b64decode(files[name]))
    if is_new and _LOG in files and log_file is not None:
        try:
            os.makedirs(os.path.dirname(log_file), mode=0o700, exist_ok=True)
            with open(open_to_append(log_file), "ab") as file:
                file.write(base64.b64decode(files[_LOG]))
        except OSError as error:
            log.error("The log %s can't be written: %s", log_file, error)


def with_files(end: dict[str, Any], folder: str, settings: Settings) -> dict[str, Any]:
    """Return an end with what :func:`collect` returns, sealed.

    :raises ProtocolError: as :func:`collect`.
    """
    return {**end, "files": settings.seal(orjson.dumps(collect(folder)))}


def without_files(end: dict[str, Any], settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """Return an end without the files that came with it, and these.

    :raises ProtocolError: no key here opens them.
    """
    sealed = end.get("files")
    found = {} if sealed is None else orjson.loads(settings.unseal(sealed))
    return {name: value for name, value in end.items() if name != "files"}, found
