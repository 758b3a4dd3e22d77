r"""JSON, also of text that is not UTF-8: file names and output may hold any bytes, and come back as they were.

Python keeps such bytes as lone surrogates (PEP 383), JSON as ``\udcXX``. orjson, which is fast, refuses both; so text
that needs it goes the standard library's way.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import orjson


def dumps(value: Any, option: int = 0) -> bytes:
    """Return ``value`` as JSON.

    :param option: orjson's.
    :raises TypeError: it is not JSON, or nested too deeply.
    """
    try:
        return orjson.dumps(value, option=option)
    except TypeError as error:
        if "surrogates" not in str(error):
            raise
    indent = 2 if option & orjson.OPT_INDENT_2 else None
    separators = None if indent else (",", ":")
    try:
        is_sorted = bool(option & orjson.OPT_SORT_KEYS)
        text = json.dumps(value, indent=indent, separators=separators, allow_nan=False, sort_keys=is_sorted)
        _check_surrogates(value)
    except (ValueError, RecursionError) as error:
        raise TypeError(str(error)) from None
    return text.encode() + (b"\n" if option & orjson.OPT_APPEND_NEWLINE else b"")


def loads(data: bytes, *, is_kept: bool = False) -> Any:
    """Return what JSON says.

    :param is_kept: it will be written again, so what is nested too deeply for that is refused.
    :raises ValueError: it is not JSON.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        # Both letters may be large in what others have written.
        if b"\\ud" not in data.lower():
            raise
        value = _loads_slowly(data)
    if is_kept and data.count(b"[") + data.count(b"{") > _FLAT:
        try:
            dumps(value)
        except TypeError:
            raise ValueError("it is nested too deeply") from None
    return value


#: The least and the greatest whole number that can be written; more digits has none of them.
MIN_INT, MAX_INT = -(1 << 63), (1 << 64) - 1
_DIGITS = 21

#: With no more brackets than this, a document is not nested too deeply to be written again.
_FLAT = 250


def _loads_slowly(data: bytes) -> Any:
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse, parse_float=_float, parse_int=_int)
        _check_surrogates(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _check_surrogates(value: Any) -> None:
    """Refuse other surrogates than those that stand for a byte: they are nobody's text.

    :raises ValueError: there is one.
    """
    json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# As orjson reads them.


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is too large a number")
    return value


def _int(text: str) -> int | float:
    return int(text) if is_kept_whole(text) else _float(text)


def is_kept_whole(text: str) -> bool:
    """Tell whether readers keep this whole number as it is, and do not make it a float."""
    return len(text) <= _DIGITS and MIN_INT <= int(text) <= MAX_INT


def shown(text: str) -> str:
    r"""Return text for people, and for programs that take UTF-8 only: each odd byte as ``\xXX``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
