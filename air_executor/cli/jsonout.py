"""Printing JSON: a document for people and programs, or one line of a stream (NDJSON)."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import orjson

from air_executor import jsontext


def print_json(value: Any) -> None:
    """Print ``value`` as JSON for people and programs."""
    _write(jsontext.dumps(value, option=orjson.OPT_INDENT_2))


def print_line(value: Any) -> None:
    """Print ``value`` as JSON in one line."""
    _write(jsontext.dumps(value))


def printable(text: str) -> str:
    """Return text that can be JSON, whatever bytes a command line or a file's name had."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def printing_text(document: dict[str, Any], name: str) -> Iterator[None]:
    """Print a JSON document with one more field, ``name``: the text that is printed inside this context.

    The text is passed on piece by piece, so it may be larger than the memory. Nothing is printed before the first
    piece: a failure before that can still be printed as the only document.
    """
    text = _Text(sys.stdout, document, name)
    with contextlib.redirect_stdout(text):
        yield
    text.end()


class _Text(io.TextIOBase):
    """A stream that writes text as the last field of a JSON document."""

    def __init__(self, target: TextIO, document: dict[str, Any], name: str) -> None:
        self._target = target
        fields = jsontext.dumps(document, option=orjson.OPT_INDENT_2).decode().removesuffix("\n}")
        self._head = f'{fields},\n  "{name}": "'

    def write(self, text: str) -> int:
        """Write a piece of the text."""
        self._target.write(self._head + jsontext.dumps(text)[1:-1].decode())
        self._head = ""
        return len(text)

    def end(self) -> None:
        """Write the end of the document."""
        self.write("")
        self._target.write('"\n}\n')
        self._target.flush()


def _write(data: bytes) -> None:
    sys.stdout.write(data.decode() + "\n")
    sys.stdout.flush()
