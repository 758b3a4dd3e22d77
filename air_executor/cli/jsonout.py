"""Printing JSON: a document for people and programs, or one line of a stream (NDJSON)."""

from __future__ import annotations

import sys
from typing import Any

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


def _write(data: bytes) -> None:
    sys.stdout.write(data.decode() + "\n")
    sys.stdout.flush()
