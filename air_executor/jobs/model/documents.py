"""Reading the fields of a job's or a task's document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from air_executor.errors import JobError
from air_executor.jobs.fields import Kind, NotPlainError, check_plain


def read_fields(
    document: Mapping[str, Any], known: Mapping[str, Kind], who: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the checked values of known fields, and all other fields as they are. ``null`` counts as not given.

    :param who: names the job or task, for messages.
    :raises JobError: a value can't be used; the message names the field.
    """
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in document.items():
        kind = known.get(name)
        try:
            if kind is None:
                extra[name] = check_plain(value)
            elif value is not None or name == "id":
                values[name] = kind.check(value)
        except (ValueError, TypeError) as error:
            is_hidden = isinstance(error, NotPlainError) or (kind is not None and kind.is_secret)
            found = "" if is_hidden else f", not {shown(value)}"
            raise JobError(f"{who}, field {name!r}: {error}{found}") from None
    return values, extra


def shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:200] + "…"


def defaults(model: Any) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields by their names."""
    return {
        item.name: item.default_factory() if callable(item.default_factory) else item.default for item in fields(model)
    }
