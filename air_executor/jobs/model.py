"""What a job and its tasks are, how their files are read and written, and what may not be in them."""

from __future__ import annotations

import enum
import math
import re
import uuid
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

import orjson

from air_executor.errors import JobError, LimitsError
from air_executor.runner import limits
from air_executor.runs.record import now

#: Names of jobs become folders, ids of tasks become files. Ids of Airflow's dag runs pass, as
#: ``manual__2025-10-02T07:30:00+00:00``.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+@=-]{0,199}")


class _Stage(str, enum.Enum):
    @property
    def is_end(self) -> bool:
        """Whether nothing happens any more unless somebody asks for it."""
        return self.value in ("completed", "failed", "skipped", "cancelled")


class JobState(_Stage):
    """Where a job is in its life."""

    WAITING = "waiting"
    WORKING = "working"
    COMPLETED = "completed"
    FAILED = "failed"
    """At least one of its tasks failed."""
    CANCELLED = "cancelled"


class TaskStatus(_Stage):
    """Where a task is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not run, as what it depends on did not end as its ``when`` asks."""
    CANCELLED = "cancelled"
    """Its job was cancelled before it had ended."""


class When(str, enum.Enum):
    """How what a task depends on must have ended for the task to run."""

    SUCCESS = "success"
    """All have completed."""
    FAILED = "failed"
    """All have ended, and one has failed or was not run as another had failed."""
    ALWAYS = "always"
    """All have ended."""


def check_name(name: Any, what: str = "a job's name") -> str:
    """Return ``name`` if it can be a file's name.

    :raises JobError: it can't.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise JobError(
            f"{name!r} cannot be {what}: up to 200 letters, digits and any of _ . : + @ = -, the first a letter, "
            "digit or _"
        )
    return name


@dataclass(kw_only=True)
class Task:
    """One command, or one call of a Python function. Moments are ISO 8601 in UTC, durations are seconds."""

    id: str
    job_name: str = ""
    command: str | None = None
    """The program, found as a shell finds it; with ``shell``, the shell's whole command line."""
    args: list[str] = field(default_factory=list)
    dependencies: list[str] = field(default_factory=list)
    """Ids of tasks of the same job that must have ended before."""
    status: TaskStatus = TaskStatus.PENDING
    created_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    error: str | None = None
    function: str | None = None
    """``package.module:function``, in place of a command."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""
    shell: bool = False
    cwd: str | None = None
    """Working directory, if not the job's; relative to that."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables beside the job's, as they stand here. Put no secret there: see ``env_from``."""
    env_from: list[str] = field(default_factory=list)
    """Names of variables beside the job's, whose values are kept apart, or are in the manager's environment."""
    limits: dict[str, Any] = field(default_factory=dict)
    """As ``executor_config["air"]`` in Airflow, without ``environment`` and ``timeout``, which are fields here."""
    timeout: float | None = None
    retries: int = 0
    """How often the task is tried again after it has failed."""
    retry_delay: float = 1.0
    """Wait before the first further try; doubled before each one that follows, up to an hour."""
    retry_on: list[int] = field(default_factory=list)
    """Exit codes after which it is tried again; of a task that was killed, as in a shell, 128 and the signal's number.
    Unless given, it is tried again after any failure."""
    when: When = When.SUCCESS
    """How what it depends on must have ended for it to run; otherwise it is skipped."""
    priority: int = 0
    """Among tasks of its job whose turn it is, those with a higher number are first."""
    key: str | None = None
    """Of tasks that are queued with the same key, the job has one."""
    queued_by: str | None = None
    """Id of the task that queued this one."""
    cause: str | None = None
    """Id of the failed task for which this one was not run."""
    tries: int = 0
    """How often it has been begun."""
    interruptions: int = 0
    """How often its runner died under it; it was begun again each time, which is no try of its own."""
    retry_at: str | None = None
    run_id: str | None = None
    """Id of the run that executes it, or did last."""
    exit_code: int | None = None
    result: Any = None
    """What the function returned."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields that are not AirExecutor's; they stay."""

    def to_dict(self) -> dict[str, Any]:
        """Return the task as it stands in ``tasks.json``: the first fields always, others when they say anything."""
        document: dict[str, Any] = {}
        for item in _TASK_FIELDS:
            value = getattr(self, item)
            if item in _ALWAYS or value != _DEFAULTS[item]:
                document[item] = value.value if isinstance(value, enum.Enum) else value
        return {**document, **self.extra}

    @classmethod
    def from_dict(cls, document: Any, *, job_name: str, where: str) -> Task:
        """Read a task.

        :param where: names the file, for messages.
        :raises JobError: it is none; the message names the task and the field.
        """
        if not isinstance(document, dict):
            raise JobError(f"{where}: a task must be an object, not {_kind(document)}")
        who = f"{where}, task {document.get('id')!r}"
        values: dict[str, Any] = {}
        for name, value in document.items():
            if name not in _CHECKS:
                continue
            try:
                values[name] = _CHECKS[name](value) if value is not None or name in _REQUIRED else _DEFAULTS[name]
            except (ValueError, TypeError, LimitsError) as error:
                raise JobError(f"{who}, field {name!r}: {error}, not {_shown(value)}") from None
        if "id" not in values:
            raise JobError(f"{where}: a task has no id: {_shown(document)}")
        check_name(values["id"], f"a task's id ({where})")
        task = cls(**{**values, "job_name": job_name, "extra": _unknown(document, _CHECKS)})
        task.check(who)
        return task

    def check(self, who: str) -> None:
        """Check what fields must be to each other.

        :raises JobError: they contradict one another.
        """
        if (self.command is None) == (self.function is None):
            raise JobError(f"{who}: it needs a command or a function, and not both")
        if self.function is not None and not re.fullmatch(r"[\w.]+:[\w.]+", self.function):
            raise JobError(f"{who}, field 'function': it must be module:function, not {self.function!r}")
        if self.function is not None and (self.args or self.shell):
            raise JobError(f"{who}: args and shell are a command's; a function takes 'arguments'")
        if self.shell and self.args:
            raise JobError(f"{who}: with shell, the whole command line is the command; there are no args")
        if self.id in self.dependencies:
            raise JobError(f"{who}: it depends on itself")
        if self.when is When.FAILED and not self.dependencies:
            raise JobError(
                f"{who}, field 'when': it runs after a failure of what it depends on, and depends on nothing; for a "
                "failure of the job there is the job's on_failure"
            )
        if self.retry_on and not self.retries:
            raise JobError(f"{who}, field 'retry_on': it says after what to try again; 'retries' must say how often")

    @property
    def has_failed(self) -> bool:
        """Whether it failed, or was not run as another task had failed."""
        return self.status is TaskStatus.FAILED or (self.status is TaskStatus.SKIPPED and self.cause is not None)

    def wait_s(self) -> float:
        """Return how long to wait before the next try, in seconds."""
        return float(min(self.retry_delay * 2 ** max(0, self.tries - 1), 3600.0))


@dataclass(kw_only=True)
class Job:
    """A job as it stands in ``state.json``."""

    id: str
    name: str
    state: JobState = JobState.WAITING
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)
    max_runners: int = 1
    """How many of its tasks may run at a time."""
    folder: str | None = None
    """Working directory of its tasks: by default where the job was submitted from. Relative to the folder that holds
    the state directory."""
    env: dict[str, str] = field(default_factory=dict)
    env_from: list[str] = field(default_factory=list)
    """As a task's."""
    error: str | None = None
    cancelled: bool = False
    """Somebody has asked for its end."""
    paused: bool = False
    """What runs, runs on; nothing new is started."""
    priority: int = 0
    """Tasks of jobs with a higher number are started first."""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the document: readable, always in the same order."""
        document: dict[str, Any] = {}
        for item in _JOB_FIELDS:
            value = getattr(self, item)
            if item in _JOB_ALWAYS or value:
                document[item] = value.value if isinstance(value, enum.Enum) else value
        return orjson.dumps({**document, **self.extra}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_dict(cls, document: Any, *, name: str, where: str) -> Job:
        """Read a job.

        :raises JobError: it is none; the message names the field.
        """
        if not isinstance(document, dict):
            raise JobError(f"{where}: a job must be an object, not {_kind(document)}")
        values: dict[str, Any] = {}
        for field_name, value in document.items():
            if field_name in _JOB_CHECKS and value is not None:
                try:
                    values[field_name] = _JOB_CHECKS[field_name](value)
                except (ValueError, TypeError) as error:
                    raise JobError(f"{where}, field {field_name!r}: {error}, not {_shown(value)}") from None
        return cls(**{"id": _id_of(name), **values, "name": check_name(name), "extra": _unknown(document, _JOB_CHECKS)})


def _id_of(name: str) -> str:
    """Return the id of a job that somebody has written by hand, without one: always the same, until it has its own."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"air-executor:{name}"))


def new_tasks(
    tasks: Iterable[Task], ids: Container[str], keys: Mapping[str, str], where: str
) -> tuple[dict[str, Task], dict[str, str]]:
    """Return what is new among tasks that are to be added, by ids, and the ids of those that have a key, by keys.

    Of a key that is there already there is a task; whoever depends on its double depends on it.

    :param ids: of the tasks that the job has already.
    :param keys: of the tasks that the job has already, with their ids.
    :raises JobError: an id is taken, or a dependency is unknown or leads back.
    """
    new: dict[str, Task] = {}
    new_keys: dict[str, str] = {}
    doubles: dict[str, str] = {}
    for task in tasks:
        known = None if task.key is None else keys.get(task.key) or new_keys.get(task.key)
        if known is not None:
            if task.id not in ids:
                doubles[task.id] = known
            continue
        if task.id in ids or task.id in new:
            raise JobError(f"{where}: there are two tasks {task.id!r}")
        new[task.id] = task
        if task.key is not None:
            new_keys[task.key] = task.id
    for task in new.values() if doubles else ():
        task.dependencies = [each if each in new else doubles.get(each, each) for each in task.dependencies]
    check_dependencies(ids, new.values(), where)
    return new, new_keys


def check_dependencies(ids: Container[str], new: Iterable[Task], where: str) -> None:
    """Check that what ``new`` tasks depend on is there, and that they do not wait for each other in a circle.

    :param ids: of the tasks that the job has already.
    :raises JobError: the message shows the path.
    """
    coming = {task.id: task for task in new}
    for task in coming.values():
        for other in task.dependencies:
            if other not in coming and other not in ids:
                raise JobError(f"{where}: task {task.id!r} depends on {other!r}, which is not a task of the job")
    done: set[str] = set()
    for start in coming:
        # The path from ``start`` down, each with those of its dependencies that were not followed yet.
        path = {start: iter(coming[start].dependencies)} if start not in done else {}
        while path:
            current = next(reversed(path))
            other = next(path[current], "")
            if not other:
                del path[current]
                done.add(current)
            elif other in path:
                names = list(path)
                circle = " → ".join([*names[names.index(other) :], other])
                raise JobError(f"{where}: tasks wait for each other in a circle: {circle}")
            elif other in coming and other not in done:
                path[other] = iter(coming[other].dependencies)


# What a field may be


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(type(value), repr(value)[:80])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


def _unknown(document: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in known}


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("it must be text")
    return value


def _some_text(value: Any) -> str:
    if not _text(value):
        raise ValueError("it must be text, and not empty")
    return str(value)


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError("it must be a list of text")
    return [_text(each) for each in value]


def check_variables(value: Any) -> dict[str, str]:
    """Return ``value`` if it can be variables of a process.

    :raises ValueError: it can't.
    """
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("it must be an object of text to text")
    for name in value:
        if not name or "=" in name or "\0" in name + value[name]:
            raise ValueError(f"{name!r} is not the name of an environment variable, or its value holds a zero byte")
    return value


def _names(value: Any) -> list[str]:
    for name in _texts(value):
        if not name or "=" in name:
            raise ValueError(f"{name!r} is not the name of an environment variable")
    return list(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it must be an object")
    return value


def _limits(value: Any) -> dict[str, Any]:
    limits.parse(_object(value))
    if {"environment", "timeout"} & value.keys():
        raise ValueError("environment and timeout are fields of the task itself")
    return dict(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError("it must be a number of seconds, 0 or more")
    return value


def _whole(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"it must be a whole number, at least {least}")
        return value

    return check


def _exit_codes(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(code) is int and 1 <= code <= 255 for code in value):
        raise ValueError("it must be a list of exit codes, each a whole number from 1 to 255")
    return value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("it must be a whole number")
    return value


def _moment(value: Any) -> str:
    try:
        datetime.fromisoformat(_text(value).replace("Z", "+00:00"))
    except ValueError:
        raise ValueError("it must be a moment, as 2026-01-31T12:00:00+00:00") from None
    return str(value)


def _one_of(states: type[enum.Enum]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        try:
            return states(value)
        except ValueError:
            raise ValueError(f"it must be one of {', '.join(each.value for each in states)}") from None

    return check


def _anything(value: Any) -> Any:
    return value


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "id": _text,
    "job_name": _text,
    "command": _some_text,
    "args": _texts,
    "dependencies": _texts,
    "status": _one_of(TaskStatus),
    "created_at": _moment,
    "started_at": _moment,
    "completed_at": _moment,
    "error": _text,
    "function": _some_text,
    "arguments": _object,
    "shell": _boolean,
    "cwd": _some_text,
    "env": check_variables,
    "env_from": _names,
    "limits": _limits,
    "timeout": _seconds,
    "retries": _whole(0),
    "retry_delay": _seconds,
    "retry_on": _exit_codes,
    "when": _one_of(When),
    "priority": _number,
    "key": _some_text,
    "queued_by": _text,
    "cause": _text,
    "tries": _whole(0),
    "interruptions": _whole(0),
    "retry_at": _moment,
    "run_id": _text,
    "exit_code": _number,
    "result": _anything,
}
_TASK_FIELDS = tuple(_CHECKS)
_REQUIRED = frozenset({"id"})
#: The fields of the first Air-Executor are always there.
_ALWAYS = frozenset(_TASK_FIELDS[: _TASK_FIELDS.index("error") + 1])
_DEFAULTS: dict[str, Any] = {
    item.name: item.default_factory() if callable(item.default_factory) else item.default  # type: ignore[misc]
    for item in fields(Task)
}

_JOB_CHECKS: dict[str, Callable[[Any], Any]] = {
    "id": _some_text,
    "name": _text,
    "state": _one_of(JobState),
    "created_at": _moment,
    "updated_at": _moment,
    "max_runners": _whole(1),
    "folder": _some_text,
    "env": check_variables,
    "env_from": _names,
    "error": _text,
    "cancelled": _boolean,
    "paused": _boolean,
    "priority": _number,
}
_JOB_FIELDS = tuple(_JOB_CHECKS)
_JOB_ALWAYS = frozenset({"id", "name", "state", "created_at", "updated_at", "max_runners"})
