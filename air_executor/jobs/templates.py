"""Puts values in the place of ``${tasks.ID.result}`` and ``${item}`` in a task's command, arguments and variables.

Every other ``${…}`` stays as it is, for the shell or another program. ``$${tasks.…}`` becomes ``${tasks.…}``, and in a
task for an item ``$${item}`` becomes ``${item}``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from air_executor import jsontext
from air_executor.errors import JobError
from air_executor.jobs.model import Task, TaskStatus
from air_executor.jobs.placeholders import PLACEHOLDER, REFERENCE, texts

#: The variable that holds the item for a shell's command line.
_ITEM = "AIR_EXECUTOR_ITEM"


class MissingInputError(JobError):
    """A task uses a value that does not exist. Another try would fail as well."""


def result_of(task: Task, tasks: Mapping[str, Task]) -> Any:
    """Return a task's result. That of a task with ``foreach`` is the list of its items' results."""
    if not task.is_for_items or task.result is not None:
        return task.result
    return [each.result for each in tasks_for_items(task, tasks)]


def tasks_for_items(task: Task, tasks: Mapping[str, Task]) -> list[Task]:
    """Return the tasks that exist for the items of ``task``, in the order of the items."""
    found: list[Task] = []
    while (item := tasks.get(item_id(task, len(found)))) is not None and item.queued_by == task.id:
        found.append(item)
    return found


def item_id(task: Task, index: int) -> str:
    """Return the id of the task for the item of ``task`` at ``index``."""
    return f"{task.id}.{index}"


def items(task: Task, tasks: Mapping[str, Task]) -> list[Any]:
    """Return the items of a task with ``foreach``.

    :raises JobError: they are the result of a task that has none, or not a list.
    """
    found = task.foreach
    if isinstance(found, str):
        found = _Values(task, tasks).get(re.fullmatch(REFERENCE, found)[1])  # type: ignore[index]
    if not isinstance(found, list):
        raise JobError(f"foreach needs a list, and {task.foreach} is {jsontext.dumps(found).decode()[:200]}")
    return found


def fill(task: Task, tasks: Mapping[str, Task]) -> Task:
    """Return a task with values in the place of its placeholders; the same task if it has none.

    In a shell's command line a value becomes a variable, so that no shell reads it as part of the program.

    :raises MissingInputError: a task whose result is used has none.
    """
    is_script_for_item = task.shell and task.index is not None
    if not is_script_for_item and not _has_placeholder(task):
        return task
    values = _Values(task, tasks)
    command, env = task.command, {name: values.put_into(text) for name, text in task.env.items()}
    if command is not None:
        command = values.put_into_script(command) if task.shell else values.put_into(command)
    return dataclasses.replace(
        task,
        command=command,
        args=[values.put_into(text) for text in task.args],
        arguments=values.put_into_any(task.arguments),
        env={**env, **values.variables},
    )


def _has_placeholder(task: Task) -> bool:
    return any(
        "${" in text for value in (task.command, task.args, task.env, task.arguments) if value for text in texts(value)
    )


class _Values:
    """The values that a task may use."""

    def __init__(self, task: Task, tasks: Mapping[str, Task]) -> None:
        self._task, self._tasks = task, tasks
        self.variables: dict[str, str] = {}
        """Variables that a shell's command line refers to."""

    def get(self, task_id: str) -> Any:
        """Return the result of a task.

        :raises MissingInputError: it has not completed.
        """
        other = self._tasks.get(task_id)
        if other is None or other.status is not TaskStatus.COMPLETED:
            raise MissingInputError(f"it uses the result of {task_id}, which has not completed")
        return result_of(other, self._tasks)

    def _is_placeholder(self, match: re.Match[str]) -> bool:
        """Tell whether a match is a placeholder in this task: ``${item}`` is one only in a task for an item."""
        return match["id"] is not None or self._task.index is not None

    def _value(self, match: re.Match[str]) -> Any:
        return self._task.item if match["id"] is None else self.get(match["id"])

    def _text(self, match: re.Match[str]) -> str:
        value = self._value(match)
        if value is None and match["id"] is not None:
            raise MissingInputError(f"it uses the result of {match['id']}, which has none")
        return self._as_text(value, match["text"])

    def _as_text(self, value: Any, what: str) -> str:
        text = value if isinstance(value, str) else jsontext.dumps(value).decode()
        if "\0" in text:
            raise MissingInputError(f"{what} holds a zero byte, which no command can be given")
        return text

    def put_into(self, text: str) -> str:
        """Fill in a text."""

        def replacement(match: re.Match[str]) -> str:
            if not self._is_placeholder(match):
                return match[0]
            return match["text"] if match["escape"] else self._text(match)

        return PLACEHOLDER.sub(replacement, text) if "${" in text else text

    def put_into_any(self, value: Any) -> Any:
        """Fill in plain data. A text that is one placeholder and nothing else becomes the value itself."""
        if isinstance(value, dict):
            return {name: self.put_into_any(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.put_into_any(each) for each in value]
        if not isinstance(value, str):
            return value
        match = PLACEHOLDER.fullmatch(value)
        if match is not None and not match["escape"] and self._is_placeholder(match):
            return self._value(match)
        return self.put_into(value)

    def put_into_script(self, script: str) -> str:
        """Put variables into a shell's command line, quoted as their place needs it."""
        parts, end, quotes = [], 0, _Quotes(script)
        if self._task.index is not None:  # always: in a here-document, only the variable itself can be used
            self.variables[_ITEM] = self._as_text(self._task.item, "${item}")
        for match in PLACEHOLDER.finditer(script):
            if not self._is_placeholder(match):
                continue
            parts.append(script[end : match.start()])
            end = match.end()
            if match["escape"]:
                parts.append(match["text"])
                continue
            name = _ITEM if match["id"] is None else f"AIR_EXECUTOR_VALUE_{len(self.variables) + 1}"
            self.variables[name] = self._text(match)
            parts.append(
                {"": f'"${{{name}}}"', '"': f"${{{name}}}", "'": f"'\"${{{name}}}\"'"}[quotes.at(match.start())]
            )
        return "".join([*parts, script[end:]])


class _Quotes:
    """Tells which quotes surround a position in a shell's command line.

    Where it is wrong, as within a here-document, a value is split into words or quoted twice. It is never executed, as
    it is a variable in any case.
    """

    def __init__(self, script: str) -> None:
        self._script = script
        self._position = 0
        #: The open quotes, the innermost last; within ``$(`` there are none at first.
        self._open = [""]

    def at(self, position: int) -> str:
        """Return ``"``, ``'`` or nothing. ``position`` must not be less than in the call before."""
        while self._position < position:
            self._position += self._step(self._script, self._position)
        return self._open[-1] if self._open[-1] in ("", '"', "'") else ""

    def _step(self, script: str, at: int) -> int:
        """Take in what begins at ``at``, and return its length."""
        char, quote = script[at], self._open[-1]
        if quote == "'":
            if char == "'":
                self._open.pop()
        elif char == "\\":
            return 2
        elif script.startswith("$(", at):
            self._open.append("(")
            return 2
        elif char == '"':
            if quote == '"':
                self._open.pop()
            else:
                self._open.append('"')
        elif quote == '"':
            pass
        elif char == "'":
            self._open.append("'")
        elif char == "(":
            self._open.append("(")
        elif char == ")" and quote == "(":
            self._open.pop()
        elif char == "#" and (not at or script[at - 1] in " \t\n;&|("):
            line_end = script.find("\n", at)
            return (line_end if line_end >= 0 else len(script)) - at
        return 1
