"""What keeps the answers of the MCP server small, and UTF-8."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import orjson

from air_executor.cli.jsonout import printable

_T = TypeVar("_T")

#: A list in an answer is cut when its JSON is longer than this.
_MAX_LIST_BYTES = 256 * 1024

#: A field in a list, as an error, a command or its arguments, is cut to this many characters.
_MAX_TEXT = 2000

#: An item of a list has no more fields than fit into this many bytes of JSON, unless it is a result.
_MAX_FIELDS_BYTES = 64 * 1024


def part(
    name: str, items: Iterable[_T], offset: int, limit: int, *, shown: Callable[[_T], dict[str, Any]], more: int = 0
) -> dict[str, Any]:
    """Return at most ``limit`` items as they are ``shown``, and how many there are beside them.

    :param more: how many of those are not given.
    """
    everything, size = list(items), 0
    found: list[dict[str, Any]] = []
    for each in everything[offset : offset + limit]:
        item = shown(each)
        if _size(item) > _MAX_LIST_BYTES:
            item = bounded(item)
        size += _size(item)
        if size > _MAX_LIST_BYTES:
            break
        found.append(item)
    rest = len(everything) - len(found) + more
    return {name: found, **({f"{name}_left_off": rest} if rest else {})}


def bounded(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without what is long: each field is cut, and the last ones are left off if there are many."""
    found: dict[str, Any] = {}
    size = 0
    for number, (name, value) in enumerate(document.items()):
        small = value if _size(value) <= _MAX_TEXT else cut(value if isinstance(value, str) else _json(value))
        size += _size({name: small})
        if size > _MAX_FIELDS_BYTES:
            return {**found, "fields_left_off": len(document) - number}
        found[name] = small
    return found


def cut(text: str | None) -> str | None:
    """Return a text, shortened if it is long."""
    return text if text is None or len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def utf8(value: Any) -> Any:
    """Return JSON whose texts are UTF-8, whatever bytes a file's name or a command had."""
    try:
        orjson.dumps(value)
    except TypeError:
        if isinstance(value, dict):
            return {utf8(name): utf8(each) for name, each in value.items()}
        if isinstance(value, list):
            return [utf8(each) for each in value]
        if isinstance(value, str):
            return printable(value)
        raise
    return value


def _json(value: Any) -> str:
    return orjson.dumps(utf8(value)).decode()


def _size(value: Any) -> int:
    return len(orjson.dumps(utf8(value)))
