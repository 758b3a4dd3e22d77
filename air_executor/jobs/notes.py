"""Notes in the executor's state directory: a deferred task has one as long as it waits for its job.

:mod:`air_executor.airflow.deferrals` reads them.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from air_executor.errors import StateDirError
from air_executor.jobs.owner import Owner
from air_executor.machine.safe_files import read_plain, replace_file


@dataclass(frozen=True)
class Note:
    """A deferred task instance, and the job that it waits for."""

    path: Path
    state_dir: str
    job: str
    owner: Owner
    """The owner of the job."""

    @property
    def instance(self) -> str:
        """Airflow's id of the task instance."""
        return self.path.stem


def write_note(state_dir: str | Path, instance: str, jobs_dir: str, job: str, owner: Owner) -> None:
    """Note that a task instance waits for a job.

    :param state_dir: the executor's.
    :param jobs_dir: the state directory of the job.
    :raises StateDirError: it can't be written.
    """
    path = _path(state_dir, instance)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateDirError(f"cannot make {path.parent}: {error.strerror}") from error
    replace_file(path, orjson.dumps({"state_dir": jobs_dir, "job": job, "owner": owner.to_document()}))


def remove_note(state_dir: str | Path, instance: str) -> None:
    """Remove the note of a task instance that does not wait any more."""
    with contextlib.suppress(OSError):
        _path(state_dir, instance).unlink(missing_ok=True)


def folder_of(state_dir: str | Path) -> Path:
    """Return the folder of the notes."""
    return Path(state_dir) / "deferred"


def _path(state_dir: str | Path, instance: str) -> Path:
    return folder_of(state_dir) / f"{uuid.UUID(instance)}.json"


def read_note(path: Path) -> Note | None:
    """Read a note. One that can't be understood is removed.

    :raises OSError: it can't be read.
    """
    try:
        document: Any = orjson.loads(read_plain(path))
        uuid.UUID(path.stem)
        state_dir, job, owner = document["state_dir"], document["job"], Owner.from_document(document["owner"])
    except (ValueError, KeyError, TypeError):
        owner = None
    if owner is None:
        path.unlink(missing_ok=True)
        return None
    return Note(path, str(state_dir), str(job), owner)
