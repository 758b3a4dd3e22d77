"""Requests to the manager of a job: one file each, in the job's inbox. The manager removes them when they are done."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from air_executor import jsontext
from air_executor.errors import AirExecutorError, JobError, StateDirError
from air_executor.jobs.reading import parse, read
from air_executor.machine.safe_files import replace_file
from air_executor.runs.record import now

#: How many refusals are kept in an inbox, and how many requests that could not be understood.
_KEPT = 100


@dataclass(frozen=True)
class Ask:
    """A request."""

    path: Path
    action: str
    """``queue``, ``cancel``, ``pause``, ``resume``, ``retry`` or ``reset``."""
    tasks: list[Any]
    """The documents of the tasks to queue, or the ids of those to try again."""
    fault: str | None = None
    """Why it can't be understood."""
    document: dict[str, Any] = field(default_factory=dict)
    """The whole request."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that compares a request with those in an inbox, and puts it there.

    :raises StateDirError: the inbox can't be made or opened.
    """
    _make(folder)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StateDirError(f"cannot open {folder}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateDirError(f"cannot make {folder}: {error.strerror}") from error


def new(folder: Path, action: str, tasks: Iterable[Any], more: Mapping[str, Any]) -> Ask:
    """Return a request that is not in its inbox yet.

    :param more: further fields of the request.
    """
    path = folder / f"{time.time_ns():020}-{uuid.uuid4()}.json"
    given = list(tasks)
    return Ask(path, action, given, document={**more, "action": action, "tasks": given})


def put(ask: Ask) -> None:
    """Put a request into its inbox. The manager removes its file when it is done or refused.

    :raises StateDirError: it can't be written.
    """
    _make(ask.path.parent)
    replace_file(ask.path, jsontext.dumps(ask.document))


def asks(folder: Path) -> list[Ask]:
    """Return the requests in an inbox, oldest first.

    :raises StateDirError: they can't be read now.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StateDirError(f"cannot read {folder}: {error.strerror}") from error
    return [ask for name in names if (ask := _read(folder / name)) is not None]


def _read(path: Path) -> Ask | None:
    """Read a request. If it can't be understood, its ``fault`` says why. ``None``: it is gone."""
    who = f"the request {path.name}"
    try:
        if (data := read(path)) is None:
            return None
        document = parse(data, who)
    except JobError as error:
        return Ask(path, "", [], str(error))
    if not isinstance(document, dict) or not isinstance(document.get("action"), str):
        return Ask(path, "", [], f"{who} must be an object with an action")
    action, tasks = document["action"], document.get("tasks", [])
    kind, what = (dict, "tasks") if action == "queue" else (str, "ids")
    if not isinstance(tasks, list) or not all(isinstance(each, kind) for each in tasks):
        return Ask(path, action, [], f"{who}: tasks must be a list of {what}, not {str(tasks)[:200]}")
    return Ask(path, action, tasks, document=document)


def refuse(ask: Ask, reason: str) -> None:
    """Remove a request, and leave the reason for whoever asked. One that can't be understood is renamed.

    :raises StateDirError: it can't be written.
    """
    replace_file(_refusal_of(ask.path), jsontext.dumps({"action": ask.action, "reason": reason, "at": now()}))
    try:
        if ask.fault is None:
            ask.path.unlink(missing_ok=True)
        else:
            os.replace(ask.path, f"{ask.path}.unreadable")
        names = sorted(os.listdir(ask.path.parent))
    except OSError as error:
        raise StateDirError(f"cannot take {ask.path} out of the inbox: {error.strerror}") from error
    for suffix in (".refused", ".unreadable"):
        for name in [each for each in names if each.endswith(suffix)][:-_KEPT]:
            with contextlib.suppress(OSError):  # it may be a folder
                os.unlink(ask.path.parent / name)


def refusal(path: Path) -> str | None:
    """Return why the request at ``path`` was refused, and remove the reason; ``None``: it was not refused."""
    try:
        document = parse(read(_refusal_of(path)) or b"null", path)
    except AirExecutorError:
        return None
    if not isinstance(document, dict):
        return None
    _refusal_of(path).unlink(missing_ok=True)
    return str(document.get("reason"))


def _refusal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.refused")
