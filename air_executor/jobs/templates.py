"""What ``${tasks.ID.result}`` and ``${item}`` become in a task's command, arguments and variables.

Nothing else is ours: every other ``${…}`` stays as it is, for the shell or whoever it is meant for. ``$${tasks.…}``
becomes ``${tasks.…}``, and ``$${item}`` in a task for an item becomes ``${item}``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from air_executor import jsontext
from air_executor.errors import JobError
from air_executor.jobs.fields import NAME, REFERENCE

if TYPE_CHECKING:
    from air_executor.jobs.model import Task

_PLACE = re.compile(rf"(?P<escape>\$?)(?P<text>\$\{{(?:tasks\.(?P<id>{NAME})\.result|item)\}})")

#: The variable that holds the item for a shell's command line.
_ITEM = "AIR_EXECUTOR_ITEM"


def references(task: Task) -> list[str]:
    """Return the ids of the tasks whose results a task uses."""
    has_more = task.arguments or task.env or task.foreach
    if not has_more and not any("${" in text for text in (task.command or "", *task.args)):
        return []  # most tasks are so
    found = dict.fromkeys(
        place["id"]
        for text in _texts([task.command, task.args, task.env, task.arguments, task.foreach])
        if "${tasks." in text
        for place in _PLACE.finditer(text)
        if place["id"] and not place["escape"]
    )
    return list(found)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def result_of(task: Task, tasks: Mapping[str, Task]) -> Any:
    """Return a task's result; of one that runs for each of several items, the list of theirs."""
    if not task.is_for_items or task.result is not None:
        return task.result
    return [each.result for each in tasks_for_items(task, tasks)]


def tasks_for_items(task: Task, tasks: Mapping[str, Task]) -> list[Task]:
    """Return the tasks that there are for the items of ``task``, in the items' order."""
    found: list[Task] = []
    while (item := tasks.get(item_id(task, len(found)))) is not None and item.queued_by == task.id:
        found.append(item)
    return found


def item_id(task: Task, index: int) -> str:
    """Return the id of the task for one item of ``task``."""
    return f"{task.id}.{index}"


def items(task: Task, tasks: Mapping[str, Task]) -> list[Any]:
    """Return the items for each of which a task is to run.

    :raises JobError: they are the result of a task that has none, or not a list.
    """
    found = task.foreach
    if isinstance(found, str):
        found = _Values(task, tasks).get(re.fullmatch(REFERENCE, found)[1])  # type: ignore[index]
    if not isinstance(found, list):
        raise JobError(f"foreach needs a list, and {task.foreach} is {jsontext.dumps(found).decode()[:200]}")
    return found


def fill(task: Task, tasks: Mapping[str, Task]) -> Task:
    """Return a task with values in place of what stands for them.

    In a shell's command line a value is a variable, so that no shell ever reads it as a part of the program.

    :raises JobError: a task whose result is used has none.
    """
    is_script_for_item = task.shell and task.index is not None
    if not is_script_for_item and not any(
        "${" in text for text in _texts([task.command, task.args, task.env, task.arguments])
    ):
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


class MissingInputError(JobError):
    """A task uses what is not there, and will not be."""


class _Values:
    """The values that a task may name."""

    def __init__(self, task: Task, tasks: Mapping[str, Task]) -> None:
        self._task, self._tasks = task, tasks
        self.variables: dict[str, str] = {}
        """Those that a shell's command line names."""

    def get(self, task_id: str) -> Any:
        other = self._tasks.get(task_id)
        result = None if other is None else result_of(other, self._tasks)
        if other is None or other.status.value != "completed":
            raise MissingInputError(f"it uses the result of {task_id}, which has not completed")
        return result

    def _is_ours(self, place: re.Match[str]) -> bool:
        return place["id"] is not None or self._task.index is not None

    def _value(self, place: re.Match[str]) -> Any:
        return self._task.item if place["id"] is None else self.get(place["id"])

    def _text(self, place: re.Match[str]) -> str:
        value = self._value(place)
        if value is None and place["id"] is not None:
            raise MissingInputError(f"it uses the result of {place['id']}, which has none")
        return self._as_text(value, place["text"])

    def _as_text(self, value: Any, what: str) -> str:
        text = value if isinstance(value, str) else jsontext.dumps(value).decode()
        if "\0" in text:
            raise MissingInputError(f"{what} holds a zero byte, which no command can be given")
        return text

    def put_into(self, text: str) -> str:
        """Fill in a text."""

        def become(place: re.Match[str]) -> str:
            if not self._is_ours(place):
                return place[0]
            return place["text"] if place["escape"] else self._text(place)

        return _PLACE.sub(become, text) if "${" in text else text

    def put_into_any(self, value: Any) -> Any:
        """Fill in plain data. A text that is nothing but one of our places becomes the value itself."""
        if isinstance(value, dict):
            return {name: self.put_into_any(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.put_into_any(each) for each in value]
        if not isinstance(value, str):
            return value
        place = _PLACE.fullmatch(value)
        if place is not None and not place["escape"] and self._is_ours(place):
            return self._value(place)
        return self.put_into(value)

    def put_into_script(self, script: str) -> str:
        """Put variables into a shell's command line, quoted as the place needs it."""
        parts, end, quotes = [], 0, _Quotes(script)
        if self._task.index is not None:  # whether it is named or not: in a here-document only the variable helps
            self.variables[_ITEM] = self._as_text(self._task.item, "${item}")
        for place in _PLACE.finditer(script):
            if not self._is_ours(place):
                continue
            parts.append(script[end : place.start()])
            end = place.end()
            if place["escape"]:
                parts.append(place["text"])
                continue
            name = _ITEM if place["id"] is None else f"AIR_EXECUTOR_VALUE_{len(self.variables) + 1}"
            self.variables[name] = self._text(place)
            parts.append(
                {"": f'"${{{name}}}"', '"': f"${{{name}}}", "'": f"'\"${{{name}}}\"'"}[quotes.at(place.start())]
            )
        return "".join([*parts, script[end:]])


class _Quotes:
    """Tells within which quotes of a shell's command line a place is.

    Should it be wrong, as within a here-document, a value is split into words or quoted once too often; it is never
    executed, as it is a variable all the same.
    """

    def __init__(self, script: str) -> None:
        self._script = script
        self._position = 0
        #: The quotes around, the innermost last; ``$(`` begins anew.
        self._open = [""]

    def at(self, position: int) -> str:
        """Return ``"``, ``'`` or nothing, for positions that grow from call to call."""
        while self._position < position:
            self._position += self._step(self._script, self._position)
        return self._open[-1] if self._open[-1] in ("", '"', "'") else ""

    def _step(self, script: str, at: int) -> int:
        """Go over what begins at ``at``, and return its length."""
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
