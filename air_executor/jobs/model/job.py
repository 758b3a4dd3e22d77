"""A job: its fields, and how it stands in ``state.json``."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson

from air_executor import jsontext
from air_executor.errors import JobError
from air_executor.jobs import fields as kinds
from air_executor.jobs.fields import about, kind_name
from air_executor.jobs.model.documents import read_fields
from air_executor.jobs.model.states import JobState, When
from air_executor.jobs.model.task import Task
from air_executor.jobs.names import check_name
from air_executor.runs.record import now

#: The fields of a job's hooks: tasks that may run when the job has ended.
HOOKS = ("on_success", "on_failure")

#: Fields that a hook can't have, as it runs alone when all other tasks have ended.
NOT_OF_HOOKS = ("dependencies", "when", "foreach", "key")


@dataclass(kw_only=True)
class Job:
    """A job as it stands in ``state.json``."""

    id: str = field(metadata=about(kinds.SOME_TEXT, "A UUID.", is_own=True))
    name: str = field(metadata=about(kinds.ID, "Name of the job. Default: that of the file."))
    state: JobState = field(
        default=JobState.WAITING, metadata=about(kinds.one_of(JobState), "State of the job.", is_own=True)
    )
    created_at: str = field(default_factory=now, metadata=about(kinds.MOMENT, "When it was submitted.", is_own=True))
    updated_at: str = field(
        default_factory=now, metadata=about(kinds.MOMENT, "When its files were last written.", is_own=True)
    )
    max_runners: int = field(default=1, metadata=about(kinds.at_least(1), "How many of its tasks may run at a time."))
    folder: str | None = field(
        default=None,
        metadata=about(
            kinds.SOME_TEXT,
            """Working directory of its tasks, relative to the folder that holds the state directory. Default: where
            the job was submitted.""",
        ),
    )
    env: dict[str, str] = field(
        default_factory=dict,
        metadata=about(
            kinds.VARIABLES,
            "Environment variables for its tasks. They are stored in state.json in plain text: no secrets.",
        ),
    )
    env_from: list[str] = field(
        default_factory=list,
        metadata=about(kinds.NAMES, "Names of further variables for all tasks, as `env_from` of a task."),
    )
    env_file: str | None = field(
        default=None,
        metadata=about(
            kinds.SOME_TEXT, "A file of NAME=VALUE lines for all tasks, relative to the folder, read when each starts."
        ),
    )
    on_success: str | dict[str, Any] | None = field(
        default=None, metadata=about(kinds.HOOK, "A command line or task that runs when the job has completed.")
    )
    on_failure: str | dict[str, Any] | None = field(
        default=None, metadata=about(kinds.HOOK, "A command line or task that runs when the job has failed.")
    )
    error: str | None = field(default=None, metadata=about(kinds.TEXT, "Why it has not completed.", is_own=True))
    cancelled: bool = field(default=False, metadata=about(kinds.BOOLEAN, "Somebody has cancelled it.", is_own=True))
    paused: bool = field(
        default=False, metadata=about(kinds.BOOLEAN, "No further task is started; running ones go on.")
    )
    priority: int = field(default=0, metadata=about(kinds.NUMBER, "Tasks of jobs with a higher number start first."))
    made_by: dict[str, Any] = field(
        default_factory=dict,
        metadata=about(
            kinds.OBJECT, "The task instance of Airflow that made it, or last started it again.", is_own=True
        ),
    )
    generation: int = field(
        default=1,
        metadata=about(
            kinds.at_least(1),
            "1, and 1 more for each `reset` and each new definition.",
            is_own=True,
        ),
    )
    definition: str | None = field(
        default=None,
        metadata=about(kinds.TEXT, "Digest of the definition that it was submitted with.", is_own=True),
    )
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the document: indented, its fields always in the same order."""
        document: dict[str, Any] = {}
        for item in _KINDS:
            value = getattr(self, item)
            if item in _ALWAYS or (value and value != _DEFAULTS.get(item)):
                document[item] = value.value if isinstance(value, enum.Enum) else value
        return jsontext.dumps({**document, **self.extra}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_dict(cls, document: Any, *, name: str, where: str, is_strict: bool = False) -> Job:
        """Read a job.

        :param is_strict: refuse unknown fields of its hooks.
        :raises JobError: the document is not a job; the message names the field.
        """
        if not isinstance(document, dict):
            raise JobError(f"{where}: a job must be an object, not {kind_name(document)}")
        values, extra = read_fields(document, _KINDS, where)
        job = cls(**{"id": _id_of(name), **values, "name": check_name(name), "extra": extra})
        for name_of_hook in HOOKS:
            job.hook(name_of_hook, where=where, is_strict=is_strict)
        return job

    def hook(self, name: str, *, where: str, is_strict: bool = False) -> Task | None:
        """Return the task that is to run when the job has ended, if there is one.

        :param name: ``on_success`` or ``on_failure``.
        :raises JobError: it can't be used; the message names it and its field.
        """
        given = getattr(self, name)
        if given is None:
            return None
        document = {"command": given, "shell": True} if isinstance(given, str) else given
        if refused := [each for each in NOT_OF_HOOKS if document.get(each)]:
            raise JobError(
                f"{where}, field {name!r}: it runs alone when the job has ended, so it can't have {refused[0]!r}"
            )
        task = Task.from_dict(
            {**document, "id": name}, job_name=self.name, where=f"{where}, field {name!r}", is_strict=is_strict
        )
        task.hook, task.when = name, When.ALWAYS
        return task


def _id_of(name: str) -> str:
    """Return the id of a job that was written by hand without one. It depends on the name only."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"air-executor:{name}"))


_KINDS = kinds.kinds(Job)
#: Fields that are always written, and the values at which others are not.
_ALWAYS = frozenset({"id", "name", "state", "created_at", "updated_at", "max_runners"})
_DEFAULTS = {"generation": 1}
