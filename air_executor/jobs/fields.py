"""The kinds of fields of jobs and tasks: how a value is checked, and how JSON Schema describes it.

The fields themselves are those of :mod:`air_executor.jobs.model`, each with its kind and a description
(:func:`about`). The checks, the files and the schema all follow from these.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Any

from air_executor.errors import JobError, LimitsError
from air_executor.jobs.names import NAME
from air_executor.jobs.placeholders import REFERENCE
from air_executor.jsontext import MAX_INT, MIN_INT
from air_executor.runs import limits

#: JSON that is nested deeper could be read, but not written.
_MAX_DEPTH = 100

#: Fields of the user's own begin with one of these.
OWN = ("x-", "_")

#: What other engines call these fields, for hints.
_ELSEWHERE = {
    "after": "dependencies",
    "cmd": "command",
    "depends": "dependencies",
    "dir": "cwd",
    "dotenv": "env_file",
    "environment": "env",
    "finally": "when",
    "group": "id",
    "kwargs": "arguments",
    "label": "id",
    "loop": "foreach",
    "matrix": "foreach",
    "name": "id",
    "needs": "dependencies",
    "requires": "dependencies",
    "run": "command",
    "script": "command",
    "trigger_rule": "when",
    "with_items": "foreach",
    "working_dir": "cwd",
    "working_directory": "cwd",
}


class NotPlainError(ValueError):
    """A value can't be written as JSON. The message names the offending part, as the whole may be long."""


@dataclass(frozen=True)
class Kind:
    """A kind of value. ``check`` returns the value, or raises a ``ValueError`` that says what it must be."""

    check: Callable[[Any], Any]
    schema: Mapping[str, Any]
    is_secret: bool = False
    """No message may show the value."""


def about(kind: Kind, description: str, *, is_own: bool = False) -> dict[str, Any]:
    """Return the metadata of a dataclass's field.

    :param is_own: AirExecutor writes the field; users need not.
    """
    return {"kind": kind, "description": " ".join(description.split()), "is_own": is_own}


def kinds(model: Any) -> dict[str, Kind]:
    """Return the kinds of a dataclass's fields by their names, in order."""
    return {item.name: item.metadata["kind"] for item in dataclasses.fields(model) if "kind" in item.metadata}


def schema(model: Any, *, required: Iterable[str] = (), without_own: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of a dataclass's fields. A field that is not required may be ``null``, like a missing one.

    :param required: names of fields that must be there.
    :param without_own: leave out the fields that AirExecutor writes.
    """
    properties = {}
    for item in dataclasses.fields(model):
        if "kind" not in item.metadata or (without_own and item.metadata["is_own"]):
            continue
        what = dict(item.metadata["kind"].schema)
        if item.name not in required:
            what = _or_null(what)
        if item.default is not dataclasses.MISSING and item.default is not None:
            what["default"] = item.default.value if isinstance(item.default, enum.Enum) else item.default
        own = {"readOnly": True} if item.metadata["is_own"] else {}
        properties[item.name] = {"description": item.metadata["description"], **what, **own}
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": {"^(x-|_)": {"description": "Fields of your own. They are kept."}},
        "additionalProperties": False,
        "required": list(required),
    }


def _or_null(what: dict[str, Any]) -> dict[str, Any]:
    if "enum" in what:
        return {**what, "enum": [*what["enum"], None]}
    if isinstance(what.get("type"), str):
        return {**what, "type": [what["type"], "null"]}
    return {**what, "anyOf": [*what["anyOf"], {"type": "null"}]} if "anyOf" in what else what


def check_names(document: Mapping[Any, Any], known: Iterable[str], who: str) -> None:
    """Check that a document has no misspelt fields.

    :param known: the names of all fields.
    :param who: names the document, for the message.
    :raises JobError: a field is unknown, and not one of the user's own; the message suggests the nearest name.
    """
    known = list(known)
    for name in document:
        if name in known or (isinstance(name, str) and name.startswith(OWN)):
            continue
        near = _near(str(name), known)
        hint = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}."
        raise JobError(f"{who}: there is no field {name!r}; {hint} Fields of your own begin with x- or _")


def _near(name: str, known: list[str]) -> str | None:
    plain = name.lower().replace("-", "_")
    if _ELSEWHERE.get(plain) in known:
        return _ELSEWHERE[plain]
    elsewhere = [each for each, name in _ELSEWHERE.items() if name in known]
    near = difflib.get_close_matches(plain, [*known, *elsewhere], 1, 0.6)
    return (near[0] if near[0] in known else _ELSEWHERE[near[0]]) if near else None


def kind_name(value: Any) -> str:
    """Return the kind of a JSON value, for messages."""
    return {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(type(value), repr(value)[:80])


def check_plain(value: Any) -> Any:
    """Return ``value`` if it can be written as JSON and read again.

    :raises NotPlainError: it can't; the message names the offending part.
    """
    below = [(value, 0)]
    while below:
        each, depth = below.pop()
        if depth > _MAX_DEPTH:
            raise NotPlainError(f"it must not be nested more than {_MAX_DEPTH} deep")
        if isinstance(each, dict):
            if strange := [name for name in each if not isinstance(name, str)]:
                raise NotPlainError(f"it must be JSON, whose names are text, and {strange[0]!r} is not")
            below += [(item, depth + 1) for item in each.values()]
        elif isinstance(each, (list, tuple)):
            below += [(item, depth + 1) for item in each]
        elif isinstance(each, int) and not MIN_INT <= each <= MAX_INT:
            raise NotPlainError(
                f"it must be JSON, whose whole numbers have up to 64 bits, and {str(each)[:40]} has more"
            )
        elif isinstance(each, float) and not math.isfinite(each):
            raise NotPlainError(f"it must be JSON, which has no {each}")
        elif not isinstance(each, (str, int, float, date, enum.Enum, uuid.UUID, type(None))):
            raise NotPlainError(f"it must be JSON, and a {type(each).__name__} is in it")
    return value


# The kinds


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
    """Return ``value`` if it maps names of environment variables to text.

    :raises ValueError: it does not.
    """
    if not isinstance(value, dict):
        raise ValueError("it must be an object of text to text")
    if strange := [name for name, text in value.items() if not isinstance(name, str) or not isinstance(text, str)]:
        raise ValueError(f"it must be an object of text to text, and {strange[0]!r} or its value is not (quote it)")
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
    return dict(check_plain(value))


def _limits(value: Any) -> dict[str, Any]:
    known = list(LIMITS.schema["properties"])
    for name in _object(value):
        if name in ("environment", "timeout"):
            raise ValueError("environment and timeout are fields of the task itself")
        if name not in known:
            near = _near(str(name), known)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"there is no limit {name!r}; {hint}")
    try:
        limits.parse(value)
    except LimitsError as error:
        raise ValueError(str(error).replace("executor_config['air']", "limits").rstrip(".")) from None
    return dict(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError("it must be a number of seconds, 0 or more")
    return _number(value) if isinstance(value, int) else value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("it must be a whole number")
    if not MIN_INT <= value <= MAX_INT:
        raise ValueError("it must be a whole number of up to 64 bits")
    return value


def _exit_codes(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(code) is int and 1 <= code <= 255 for code in value):
        raise ValueError("it must be a list of exit codes, each a whole number from 1 to 255")
    return value


def moment(text: str) -> datetime:
    """Read a moment from a job's files. Without a time zone it is UTC.

    :raises ValueError: it is not a moment, or not between 1970 and 9998.
    """
    # Python 3.10 reads neither a "Z" nor a "z", and fractions of 3 or 6 digits only; others write up to 9.
    text = re.sub(r"(?<=:\d\d)\.(\d+)", lambda found: f".{found[1][:6]:0<6}", text)
    read = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text))
    read = read if read.tzinfo else read.replace(tzinfo=timezone.utc)
    if not 1970 <= read.year < 9999:
        raise ValueError(f"{text} is not between the years 1970 and 9998")
    return read


def _moment(value: Any) -> str:
    try:
        moment(_text(value))
    except ValueError:
        raise ValueError("it must be a moment such as 2026-01-31T12:00:00+00:00") from None
    return str(value)


def _items(value: Any) -> Any:
    if not isinstance(value, list) and not (isinstance(value, str) and re.fullmatch(REFERENCE, value)):
        raise ValueError("it must be a list, or the result of a task: ${tasks.ID.result}")
    return check_plain(value)


def _hook(value: Any) -> Any:
    if isinstance(value, dict):
        return check_plain(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("it must be a command line, or an object with the fields of a task")
    return value


def at_least(least: int) -> Kind:
    """Return the kind of whole numbers from ``least`` on."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"it must be a whole number, at least {least}")
        return _number(value)

    return Kind(check, {"type": "integer", "minimum": least})


def one_of(values: type[enum.Enum]) -> Kind:
    """Return the kind of an enumeration's values."""
    names = [each.value for each in values]

    def check(value: Any) -> Any:
        try:
            return values(value)
        except ValueError:
            raise ValueError(f"it must be one of {', '.join(names)}") from None

    return Kind(check, {"enum": names})


_NO_ZERO_BYTE = r"^[^\u0000]*$"

TEXT = Kind(_text, {"type": "string", "pattern": _NO_ZERO_BYTE})
SOME_TEXT = Kind(_some_text, {"type": "string", "minLength": 1, "pattern": _NO_ZERO_BYTE})
#: Checked as text only: :func:`air_executor.jobs.names.check_name` follows, with a better message.
ID = Kind(_text, {"type": "string", "pattern": f"^{NAME}$"})
TEXTS = Kind(_texts, {"type": "array", "items": TEXT.schema})
VARIABLES = Kind(
    check_variables,
    {"type": "object", "propertyNames": {"pattern": r"^[^=\u0000]+$"}, "additionalProperties": TEXT.schema},
    is_secret=True,
)
NAMES = Kind(_names, {"type": "array", "items": {"type": "string", "pattern": r"^[^=\u0000]+$"}})
OBJECT = Kind(_object, {"type": "object"})
_SIZE = {"type": ["integer", "string"]}
LIMITS = Kind(
    _limits,
    {
        "type": "object",
        "properties": {
            "memory": {
                "description": "bytes, or text such as 512MiB or 2GB; a list: for the first try, for the one after "
                "an end for lack of memory, and so on; auto, or an object with it: from earlier runs",
                "anyOf": [
                    _SIZE,
                    {"type": "array", "items": _SIZE, "minItems": 1},
                    {
                        "type": "object",
                        "properties": {
                            "auto": {
                                "type": "object",
                                "properties": {"floor": _SIZE, "ceiling": _SIZE},
                                "additionalProperties": False,
                            }
                        },
                        "required": ["auto"],
                        "additionalProperties": False,
                    },
                ],
            },
            "cpu_time": {"description": "seconds", "type": "number", "exclusiveMinimum": 0},
            "cpus": {"description": "number of CPUs that it may use", "type": "integer", "minimum": 1},
            "nice": {"description": "priority of its processes", "type": "integer", "minimum": -20, "maximum": 19},
            "gpus": {
                "description": "number of GPUs, which no other task gets meanwhile",
                "type": "integer",
                "minimum": 1,
            },
        },
        "additionalProperties": False,
    },
)
BOOLEAN = Kind(_boolean, {"type": "boolean"})
SECONDS = Kind(_seconds, {"type": "number", "minimum": 0})
NUMBER = Kind(_number, {"type": "integer"})
EXIT_CODES = Kind(_exit_codes, {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 255}})
MOMENT = Kind(_moment, {"type": "string", "format": "date-time"})
ITEMS = Kind(_items, {"anyOf": [{"type": "array"}, {"type": "string", "pattern": f"^{REFERENCE}$"}]})
HOOK = Kind(_hook, {"anyOf": [{"type": "string", "pattern": r"\S"}, {"$ref": "#/$defs/hook"}]})
ANYTHING = Kind(check_plain, {})
