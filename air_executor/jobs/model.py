"""What a job and its tasks are, and how their files are read and written."""

from __future__ import annotations

import enum
import re
import uuid
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import orjson

from air_executor import jsontext
from air_executor.errors import JobError
from air_executor.jobs import fields as kinds
from air_executor.jobs.fields import Kind, NotPlainError, about, kind_name
from air_executor.jobs.templates import references
from air_executor.runs.record import now


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


def is_name(name: Any) -> bool:
    """Tell whether ``name`` can be a file's name."""
    return isinstance(name, str) and re.fullmatch(kinds.NAME, name) is not None


def check_name(name: Any, what: str = "a job's name") -> str:
    """Return ``name`` if it can be a file's name.

    :raises JobError: it can't.
    """
    if not is_name(name):
        raise JobError(
            f"{name!r} cannot be {what}: up to 200 letters, digits and any of _ . : + @ = -, the first a letter, "
            "digit or _"
        )
    return str(name)


@dataclass(kw_only=True)
class Task:
    """One command, or one call of a Python function. Moments are ISO 8601 in UTC, durations are seconds."""

    id: str = field(metadata=about(kinds.ID, "Name of the task in its job."))
    job_name: str = field(default="", metadata=about(kinds.TEXT, "The job's name.", is_own=True))
    command: str | None = field(
        default=None,
        metadata=about(
            kinds.SOME_TEXT, "The program, found as a shell finds it; with `shell`, the shell's whole command line."
        ),
    )
    args: list[str] = field(default_factory=list, metadata=about(kinds.TEXTS, "Arguments of the program."))
    dependencies: list[str] = field(
        default_factory=list,
        metadata=about(
            kinds.TEXTS,
            "Ids of tasks of the same job that must have ended before; those whose result is used are added.",
        ),
    )
    status: TaskStatus = field(
        default=TaskStatus.PENDING,
        metadata=about(kinds.one_of(TaskStatus), "Where the task is in its life.", is_own=True),
    )
    created_at: str | None = field(
        default=None, metadata=about(kinds.MOMENT, "When it became part of the job.", is_own=True)
    )
    started_at: str | None = field(default=None, metadata=about(kinds.MOMENT, "When it began last.", is_own=True))
    completed_at: str | None = field(default=None, metadata=about(kinds.MOMENT, "When it ended.", is_own=True))
    error: str | None = field(
        default=None, metadata=about(kinds.TEXT, "Why it failed, or was not run, for a person.", is_own=True)
    )
    function: str | None = field(
        default=None,
        metadata=about(kinds.SOME_TEXT, "A Python function, as package.module:name, in place of a command."),
    )
    arguments: dict[str, Any] = field(
        default_factory=dict, metadata=about(kinds.OBJECT, "Keyword arguments of the function.")
    )
    shell: bool = field(default=False, metadata=about(kinds.BOOLEAN, "The command is a command line for /bin/sh."))
    cwd: str | None = field(
        default=None, metadata=about(kinds.SOME_TEXT, "Working directory, if not the job's folder; relative to that.")
    )
    env: dict[str, str] = field(
        default_factory=dict,
        metadata=about(
            kinds.VARIABLES, "Environment variables beside the job's. They stand in tasks.json as they are: no secrets."
        ),
    )
    env_from: list[str] = field(
        default_factory=list,
        metadata=about(
            kinds.NAMES,
            "Names of variables beside the job's, whose values are kept apart, or are in the manager's environment.",
        ),
    )
    env_file: str | None = field(
        default=None,
        metadata=about(
            kinds.SOME_TEXT,
            "A file of NAME=VALUE lines, read as the task begins; relative to the job's folder. `env` goes before it.",
        ),
    )
    limits: dict[str, Any] = field(
        default_factory=dict, metadata=about(kinds.LIMITS, "What it may use: memory, cpu_time, cpus, nice, gpus.")
    )
    timeout: float | None = field(
        default=None, metadata=about(kinds.SECONDS, "Seconds that a try may take; 0 is no limit.")
    )
    retries: int = field(
        default=0, metadata=about(kinds.at_least(0), "How often it is tried again after it has failed.")
    )
    retry_delay: float = field(
        default=1.0,
        metadata=about(
            kinds.SECONDS, "Seconds before the first further try; doubled before each one that follows, up to an hour."
        ),
    )
    retry_on: list[int] = field(
        default_factory=list,
        metadata=about(
            kinds.EXIT_CODES,
            """Exit codes after which it is tried again; of a task that was killed, as in a shell, 128 and the signal's
            number. Unless given, it is tried again after any failure.""",
        ),
    )
    when: When = field(
        default=When.SUCCESS,
        metadata=about(
            kinds.one_of(When),
            """Runs when all dependencies have completed (success); when all have ended and one has failed, or was
            skipped as another had (failed); or when all have ended (always). Otherwise it is skipped.""",
        ),
    )
    foreach: list[Any] | str | None = field(
        default=None,
        metadata=about(
            kinds.ITEMS,
            """Runs once for each item of this list, or of a task's result that is one (${tasks.ID.result}), each as
            a task ID.0, ID.1, …, with the item in place of ${item}. Ends when they all have.""",
        ),
    )
    priority: int = field(
        default=0,
        metadata=about(kinds.NUMBER, "Among tasks of its job whose turn it is, those with a higher number are first."),
    )
    key: str | None = field(
        default=None, metadata=about(kinds.SOME_TEXT, "Of tasks that are queued with the same key, the job has one.")
    )
    queued_by: str | None = field(
        default=None,
        metadata=about(kinds.TEXT, "Id of the task that queued this one, or whose item it is for.", is_own=True),
    )
    index: int | None = field(
        default=None,
        metadata=about(kinds.at_least(0), "Of a task for an item: the item's place in the list.", is_own=True),
    )
    item: Any = field(default=None, metadata=about(kinds.ANYTHING, "The item it is for.", is_own=True))
    hook: str | None = field(
        default=None, metadata=about(kinds.TEXT, "The hook of the job that this task is.", is_own=True)
    )
    cause: str | None = field(
        default=None, metadata=about(kinds.TEXT, "Id of the failed task for which this one was not run.", is_own=True)
    )
    tries: int = field(default=0, metadata=about(kinds.at_least(0), "How often it has been begun.", is_own=True))
    interruptions: int = field(
        default=0,
        metadata=about(
            kinds.at_least(0),
            "How often its runner died under it; it was begun again each time, which is no try of its own.",
            is_own=True,
        ),
    )
    retry_at: str | None = field(default=None, metadata=about(kinds.MOMENT, "When it is tried again.", is_own=True))
    run_id: str | None = field(
        default=None, metadata=about(kinds.TEXT, "Id of the run that executes it, or did last.", is_own=True)
    )
    exit_code: int | None = field(default=None, metadata=about(kinds.NUMBER, "Of its last try.", is_own=True))
    result: Any = field(
        default=None,
        metadata=about(
            kinds.ANYTHING, "What the function returned, or the command wrote to $AIR_EXECUTOR_RESULT.", is_own=True
        ),
    )
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields that are not AirExecutor's; they stay."""

    def to_dict(self) -> dict[str, Any]:
        """Return the task as it stands in ``tasks.json``: the first fields always, others when they say anything."""
        values = vars(self)
        document = {name: values[name] for name in _ALWAYS}
        document["status"] = self.status.value
        for name, default in _OTHERS:
            value = values[name]
            if value is not default and value != default:
                document[name] = value
        if self.when is not When.SUCCESS:
            document["when"] = self.when.value
        return {**document, **self.extra}

    @classmethod
    def from_dict(cls, document: Any, *, job_name: str, where: str, is_strict: bool = False) -> Task:
        """Read a task.

        :param where: names the file, for messages.
        :param is_strict: fields that are not known are refused, unless they begin with ``x-`` or ``_``.
        :raises JobError: it is none; the message names the task and the field.
        """
        if not isinstance(document, dict):
            raise JobError(f"{where}: a task must be an object, not {kind_name(document)}")
        who = f"{where}, task {document.get('id')!r}"
        if is_strict:
            kinds.check_names(document, _TASK_KINDS, who)
        values, extra = _read(document, _TASK_KINDS, who)
        if "id" not in values:
            raise JobError(f"{where}: a task has no id: {_shown(document)}")
        check_name(values["id"], f"a task's id ({where})")
        task = cls(**{**values, "job_name": job_name, "extra": extra})
        if missing := [each for each in references(task) if each not in task.dependencies]:
            task.dependencies = [*task.dependencies, *missing]
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
        if self.foreach is not None and len(self.id) > _MAX_GROUP_ID:
            raise JobError(f"{who}: with foreach, an id may have {_MAX_GROUP_ID} letters, as a number follows it")
        if self.retry_on and not self.retries:
            raise JobError(f"{who}, field 'retry_on': it says after what to try again; 'retries' must say how often")

    @property
    def has_failed(self) -> bool:
        """Whether it failed, or was not run as another task had failed."""
        return self.status is TaskStatus.FAILED or (self.status is TaskStatus.SKIPPED and self.cause is not None)

    @property
    def is_for_items(self) -> bool:
        """Whether it runs as a task for each item, and not itself."""
        return self.foreach is not None

    def wait_s(self) -> float:
        """Return how long to wait before the next try, in seconds."""
        doublings = min(max(0, self.tries - 1), 64)  # of a count that somebody has written there, too
        return float(min(self.retry_delay * 2**doublings, 3600.0))


@dataclass(kw_only=True)
class Job:
    """A job as it stands in ``state.json``."""

    id: str = field(metadata=about(kinds.SOME_TEXT, "A UUID.", is_own=True))
    name: str = field(metadata=about(kinds.ID, "Name of the job; unless given, the file's."))
    state: JobState = field(
        default=JobState.WAITING, metadata=about(kinds.one_of(JobState), "Where it is in its life.", is_own=True)
    )
    created_at: str = field(default_factory=now, metadata=about(kinds.MOMENT, "When it was submitted.", is_own=True))
    updated_at: str = field(
        default_factory=now, metadata=about(kinds.MOMENT, "When its files were written last.", is_own=True)
    )
    max_runners: int = field(default=1, metadata=about(kinds.at_least(1), "How many of its tasks may run at a time."))
    folder: str | None = field(
        default=None,
        metadata=about(
            kinds.SOME_TEXT,
            """Working directory of its tasks: by default where the job was submitted from. Relative to the folder that
            holds the state directory.""",
        ),
    )
    env: dict[str, str] = field(
        default_factory=dict,
        metadata=about(
            kinds.VARIABLES, "Environment variables for its tasks. They stand in state.json as they are: no secrets."
        ),
    )
    env_from: list[str] = field(
        default_factory=list,
        metadata=about(kinds.NAMES, "Names of variables for all tasks, as a task's."),
    )
    env_file: str | None = field(
        default=None,
        metadata=about(
            kinds.SOME_TEXT, "A file of NAME=VALUE lines for all tasks, read as each begins; relative to the folder."
        ),
    )
    on_success: str | dict[str, Any] | None = field(
        default=None, metadata=about(kinds.HOOK, "A command line or task that runs when the job has completed.")
    )
    on_failure: str | dict[str, Any] | None = field(
        default=None, metadata=about(kinds.HOOK, "A command line or task that runs when the job has failed.")
    )
    error: str | None = field(default=None, metadata=about(kinds.TEXT, "Why it has not completed.", is_own=True))
    cancelled: bool = field(
        default=False, metadata=about(kinds.BOOLEAN, "Somebody has asked for its end.", is_own=True)
    )
    paused: bool = field(default=False, metadata=about(kinds.BOOLEAN, "What runs, runs on; nothing new is started."))
    priority: int = field(
        default=0, metadata=about(kinds.NUMBER, "Tasks of jobs with a higher number are started first.")
    )
    made_by: dict[str, Any] = field(
        default_factory=dict,
        metadata=about(kinds.OBJECT, "The task instance of Airflow that has made it, or begun it anew.", is_own=True),
    )
    generation: int = field(
        default=1,
        metadata=about(
            kinds.at_least(1),
            "How often it was begun anew, by `reset` or with another definition, and once more.",
            is_own=True,
        ),
    )
    definition: str | None = field(
        default=None,
        metadata=about(kinds.TEXT, "What tells the definition that it was submitted with from others.", is_own=True),
    )
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the document: readable, always in the same order."""
        document: dict[str, Any] = {}
        for item in _JOB_KINDS:
            value = getattr(self, item)
            if item in _JOB_ALWAYS or (value and value != _JOB_DEFAULTS.get(item)):
                document[item] = value.value if isinstance(value, enum.Enum) else value
        return jsontext.dumps({**document, **self.extra}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_dict(cls, document: Any, *, name: str, where: str, is_strict: bool = False) -> Job:
        """Read a job.

        :param is_strict: fields of its hooks that are not known are refused.
        :raises JobError: it is none; the message names the field.
        """
        if not isinstance(document, dict):
            raise JobError(f"{where}: a job must be an object, not {kind_name(document)}")
        values, extra = _read(document, _JOB_KINDS, where)
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
            raise JobError(f"{where}, field {name!r}: it runs alone when the job has ended, without {refused[0]!r}")
        task = Task.from_dict(
            {**document, "id": name}, job_name=self.name, where=f"{where}, field {name!r}", is_strict=is_strict
        )
        task.hook, task.when = name, When.ALWAYS
        return task


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


def _read(document: Mapping[str, Any], known: Mapping[str, Kind], who: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of known fields, checked, and all others as they are. What is ``null`` is not given."""
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in document.items():
        kind = known.get(name)
        try:
            if kind is None:
                extra[name] = kinds.check_plain(value)
            elif value is not None or name == "id":
                values[name] = kind.check(value)
        except (ValueError, TypeError) as error:
            is_told = isinstance(error, NotPlainError) or (kind is not None and kind.is_secret)
            shown = "" if is_told else f", not {_shown(value)}"
            raise JobError(f"{who}, field {name!r}: {error}{shown}") from None
    return values, extra


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:200] + "…"


def _defaults(model: Any) -> dict[str, Any]:
    return {
        item.name: item.default_factory() if callable(item.default_factory) else item.default for item in fields(model)
    }


#: In ``queued_by`` of tasks that no task has queued: no task has this id.
OUTSIDE = "(outside)"

#: What a job may have run when it has ended.
HOOKS = ("on_success", "on_failure")
#: What such a task has not: it runs alone, when all others have ended.
NOT_OF_HOOKS = ("dependencies", "when", "foreach", "key")

#: An id with a number behind it is still an id.
_MAX_GROUP_ID = 190

_TASK_KINDS = kinds.kinds(Task)
_TASK_FIELDS = tuple(_TASK_KINDS)
#: The fields of the first Air-Executor are always there; the others, with their defaults, when they say anything.
_ALWAYS = _TASK_FIELDS[: _TASK_FIELDS.index("error") + 1]
_OTHERS = tuple((name, default) for name, default in _defaults(Task).items() if name in _TASK_FIELDS[len(_ALWAYS) :])
_JOB_KINDS = kinds.kinds(Job)
_JOB_DEFAULTS = {"generation": 1}
_JOB_ALWAYS = frozenset({"id", "name", "state", "created_at", "updated_at", "max_runners"})
