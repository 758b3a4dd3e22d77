"""A task: its fields, and how it stands in ``tasks.json``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from air_executor.errors import JobError
from air_executor.jobs import fields as kinds
from air_executor.jobs.fields import about, kind_name
from air_executor.jobs.model.documents import defaults, read_fields, shown
from air_executor.jobs.model.states import TaskStatus, When
from air_executor.jobs.names import check_name
from air_executor.jobs.placeholders import references

#: In ``queued_by``: the task was queued from outside of the job. No task has this id.
OUTSIDE = "(outside)"

#: The longest id of a task with ``foreach``: with the number of an item behind it, it is still an id.
_MAX_GROUP_ID = 190

#: The longest wait before another try, in seconds.
_MAX_RETRY_WAIT_S = 3600.0


@dataclass(kw_only=True)
class Task:
    """One command, or one call of a Python function. Moments are ISO 8601 in UTC, durations are seconds."""

    id: str = field(metadata=about(kinds.ID, "Name of the task within its job."))
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
            "Ids of tasks of the same job that must end first. A task whose result is used is added by itself.",
        ),
    )
    status: TaskStatus = field(
        default=TaskStatus.PENDING,
        metadata=about(kinds.one_of(TaskStatus), "State of the task.", is_own=True),
    )
    created_at: str | None = field(
        default=None, metadata=about(kinds.MOMENT, "When it became part of the job.", is_own=True)
    )
    started_at: str | None = field(
        default=None, metadata=about(kinds.MOMENT, "When its last try started.", is_own=True)
    )
    completed_at: str | None = field(default=None, metadata=about(kinds.MOMENT, "When it ended.", is_own=True))
    error: str | None = field(
        default=None, metadata=about(kinds.TEXT, "Why it failed or did not run, for people.", is_own=True)
    )
    function: str | None = field(
        default=None,
        metadata=about(kinds.SOME_TEXT, "A Python function instead of a command, as package.module:name."),
    )
    arguments: dict[str, Any] = field(
        default_factory=dict, metadata=about(kinds.OBJECT, "Keyword arguments of the function.")
    )
    shell: bool = field(default=False, metadata=about(kinds.BOOLEAN, "The command is a command line for /bin/sh."))
    cwd: str | None = field(
        default=None,
        metadata=about(kinds.SOME_TEXT, "Working directory, relative to the job's folder. Default: that folder."),
    )
    env: dict[str, str] = field(
        default_factory=dict,
        metadata=about(
            kinds.VARIABLES,
            "Environment variables in addition to the job's. They are stored in tasks.json in plain text: no secrets.",
        ),
    )
    env_from: list[str] = field(
        default_factory=list,
        metadata=about(
            kinds.NAMES,
            "Names of further variables, whose values are kept outside of the job or are in the manager's environment.",
        ),
    )
    env_file: str | None = field(
        default=None,
        metadata=about(
            kinds.SOME_TEXT,
            "A file of NAME=VALUE lines, relative to the job's folder, read when the task starts. `env` overrides it.",
        ),
    )
    limits: dict[str, Any] = field(
        default_factory=dict, metadata=about(kinds.LIMITS, "What it may use: memory, cpu_time, cpus, nice, gpus.")
    )
    timeout: float | None = field(
        default=None, metadata=about(kinds.SECONDS, "Seconds that a try may take; 0: no limit.")
    )
    retries: int = field(default=0, metadata=about(kinds.at_least(0), "How often it is tried again after a failure."))
    retry_delay: float = field(
        default=1.0,
        metadata=about(kinds.SECONDS, "Seconds before the second try. Doubled before each further one, up to an hour."),
    )
    retry_on: list[int] = field(
        default_factory=list,
        metadata=about(
            kinds.EXIT_CODES,
            """Exit codes after which it is tried again. A signal counts as 128 plus its number, as in a shell.
            Default: it is tried again after any failure.""",
        ),
    )
    when: When = field(
        default=When.SUCCESS,
        metadata=about(
            kinds.one_of(When),
            """Runs when all dependencies have completed (success), when all have ended and one has failed or was
            skipped because of a failure (failed), or when all have ended (always). Otherwise it is skipped.""",
        ),
    )
    foreach: list[Any] | str | None = field(
        default=None,
        metadata=about(
            kinds.ITEMS,
            """Runs once for each item of this list, or of a list that is a task's result (${tasks.ID.result}): as
            tasks ID.0, ID.1, …, with the item in place of ${item}. It ends when all of them have.""",
        ),
    )
    priority: int = field(
        default=0,
        metadata=about(kinds.NUMBER, "Of the tasks of its job that are ready, those with a higher number start first."),
    )
    key: str | None = field(
        default=None,
        metadata=about(
            kinds.SOME_TEXT, "A job has one task per key: queueing another one with the same key adds nothing."
        ),
    )
    queued_by: str | None = field(
        default=None,
        metadata=about(
            kinds.TEXT,
            "Id of the task that queued this one, or of the task with `foreach` whose item it has.",
            is_own=True,
        ),
    )
    index: int | None = field(
        default=None,
        metadata=about(
            kinds.at_least(0), "The place of its item in the list, if it is a task for an item.", is_own=True
        ),
    )
    item: Any = field(default=None, metadata=about(kinds.ANYTHING, "Its item, if it is a task for one.", is_own=True))
    hook: str | None = field(
        default=None, metadata=about(kinds.TEXT, "Which hook of the job it is, if it is one.", is_own=True)
    )
    cause: str | None = field(
        default=None, metadata=about(kinds.TEXT, "Id of the failed task because of which it was skipped.", is_own=True)
    )
    tries: int = field(default=0, metadata=about(kinds.at_least(0), "How many tries have started.", is_own=True))
    interruptions: int = field(
        default=0,
        metadata=about(
            kinds.at_least(0),
            "How often its runner died. It was started again each time, which does not count as a try.",
            is_own=True,
        ),
    )
    retry_at: str | None = field(default=None, metadata=about(kinds.MOMENT, "When its next try is due.", is_own=True))
    run_id: str | None = field(
        default=None, metadata=about(kinds.TEXT, "Id of its run, or of its last one.", is_own=True)
    )
    exit_code: int | None = field(default=None, metadata=about(kinds.NUMBER, "Exit code of its last try.", is_own=True))
    result: Any = field(
        default=None,
        metadata=about(
            kinds.ANYTHING, "What its function returned, or its command wrote to $AIR_EXECUTOR_RESULT.", is_own=True
        ),
    )
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields that AirExecutor does not know. They are kept."""

    def to_dict(self) -> dict[str, Any]:
        """Return the task as it stands in ``tasks.json``."""
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
        :param is_strict: refuse unknown fields, unless they begin with ``x-`` or ``_``.
        :raises JobError: the document is not a task; the message names the task and the field.
        """
        if not isinstance(document, dict):
            raise JobError(f"{where}: a task must be an object, not {kind_name(document)}")
        who = f"{where}, task {document.get('id')!r}"
        if is_strict:
            kinds.check_names(document, _KINDS, who)
        values, extra = read_fields(document, _KINDS, who)
        if "id" not in values:
            raise JobError(f"{where}: a task has no id: {shown(document)}")
        check_name(values["id"], f"a task's id ({where})")
        task = cls(**{**values, "job_name": job_name, "extra": extra})
        named = references(task.command, task.args, task.env, task.arguments, task.foreach)
        if missing := [each for each in named if each not in task.dependencies]:
            task.dependencies = [*task.dependencies, *missing]
        task.check(who)
        return task

    def check(self, who: str) -> None:
        """Check that the fields go together.

        :raises JobError: they contradict each other.
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
            raise JobError(
                f"{who}: with foreach, an id may have {_MAX_GROUP_ID} characters at most, as a number follows"
            )
        if self.retry_on and not self.retries:
            raise JobError(f"{who}, field 'retry_on': it says when to try again, so 'retries' must say how often")

    @property
    def has_failed(self) -> bool:
        """Whether it failed, or was skipped because another task had failed."""
        return self.status is TaskStatus.FAILED or (self.status is TaskStatus.SKIPPED and self.cause is not None)

    @property
    def is_for_items(self) -> bool:
        """Whether it does not run itself, but as one task for each item."""
        return self.foreach is not None

    def wait_s(self) -> float:
        """Return how long to wait before the next try, in seconds."""
        doublings = min(max(0, self.tries - 1), 64)  # a file may claim any number of tries
        return float(min(self.retry_delay * 2**doublings, _MAX_RETRY_WAIT_S))


_KINDS = kinds.kinds(Task)
_FIELDS = tuple(_KINDS)
#: The fields of the first Air-Executor are always written; the others only when they differ from their defaults.
_ALWAYS = _FIELDS[: _FIELDS.index("error") + 1]
_OTHERS = tuple((name, default) for name, default in defaults(Task).items() if name in _FIELDS[len(_ALWAYS) :])
