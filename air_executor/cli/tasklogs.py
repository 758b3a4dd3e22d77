"""Printing the log of a run."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from air_executor.cli.jsonout import print_line
from air_executor.machine.safe_files import open_log
from air_executor.runs.record import RunRecord
from air_executor.runs.store import RunStore

#: A longer line is shown in pieces of this many bytes: a progress bar is one line, however long its task runs.
_MAX_LINE_BYTES = 1 << 20

#: A log's end is looked for in pieces of this many bytes.
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Filter:
    """Which lines of a log are wanted."""

    tail: int | None = None
    """Only this many of those that are there: the last ones."""
    pattern: re.Pattern[str] | None = None
    """Only those in which it is found."""

    def of_the_past(self, reader: LogReader, *, is_over: bool) -> Iterable[str]:
        """Return the wanted ones of the lines that are there."""
        if self.tail is not None and self.pattern is None:
            reader.skip_to_tail(self.tail)
        lines = self.wanted(reader.lines(is_over=is_over))
        return lines if self.tail is None else deque(lines, maxlen=self.tail)

    def wanted(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines in which the pattern is found."""
        return (line for line in lines if self.pattern is None or self.pattern.search(line))


ALL = Filter()


def pattern(text: str) -> re.Pattern[str]:
    """Return a regular expression that argparse has read."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def print_log(store: RunStore, record: RunRecord, reader: LogReader, wanted: Filter = ALL) -> None:
    """Print what there is."""
    for line in wanted.of_the_past(reader, is_over=True):
        print(line)
    _print_output(store, record)


def follow(store: RunStore, record: RunRecord, reader: LogReader, wanted: Filter = ALL) -> None:
    """Print what there is and what comes, until the run has ended."""
    for line in followed(store, record, reader, wanted):
        print(line, flush=True)
    _print_output(store, store.settled(store.read(record.id)))


def stream(store: RunStore, record: RunRecord, reader: LogReader, wanted: Filter = ALL) -> None:
    """Print what there is and what comes as NDJSON: an object for each line, and one for the end of the run."""
    for line in followed(store, record, reader, wanted):
        print_line({"run": record.id, "line": line})
    record = store.settled(store.read(record.id))
    output = store.output_tail(record.id, max_bytes=1 << 20)
    print_line({"run": record.id, "state": record.state.value, "reason": record.why, "output": output or None})


def followed(store: RunStore, record: RunRecord, reader: LogReader, wanted: Filter = ALL) -> Iterator[str]:
    """Yield the lines that there are and those that come, until the run has ended."""
    ended = record.state.is_end
    lines = wanted.of_the_past(reader, is_over=ended)
    while True:
        yield from lines
        if ended:
            return
        time.sleep(reader.every_s)
        record = store.settled(store.read(record.id))
        ended = record.state.is_end
        lines = wanted.wanted(reader.lines(is_over=ended))


def _print_output(store: RunStore, record: RunRecord) -> None:
    if record.reason:
        print(f"-- run {record.id} ended {record.state.value}: {record.reason}")
    output = store.output_tail(record.id, max_bytes=1 << 20)
    if output:
        print(f"-- printed by the runner itself ({store.output_file(record.id)}):", output, sep="\n")


class LogReader:
    """Reads a task's log as it grows, each byte once, with no more than a line of it in memory."""

    every_s = 0.2
    """How often a log that is followed is read again, in seconds."""

    def __init__(self, path: str | None) -> None:
        self._path = path or ""
        self._position = 0

    def skip_to_tail(self, count: int) -> None:
        """Pass over all but the last ``count`` lines of what is there, without reading them."""
        self._position = tail_position(self._path, count)

    def lines(self, *, is_over: bool) -> Iterator[str]:
        """Yield the lines that have come since the last call, for people.

        :param is_over: nothing more comes; otherwise a last line that is still being written is left for later.
        """
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open_log(self._path))
            except OSError:
                return
            if file.seek(0, os.SEEK_END) < self._position:
                self._position = 0  # it was begun anew
            file.seek(self._position)
            while piece := file.readline(_MAX_LINE_BYTES):
                if not is_over and not piece.endswith(b"\n") and len(piece) < _MAX_LINE_BYTES:
                    return
                self._position += len(piece)
                for line in piece.splitlines():
                    yield _render(line)


def tail_position(path: str | Path, count: int) -> int:
    """Return where the last ``count`` lines of a file begin, in bytes."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_log(path))
        except OSError:
            return 0
        position = file.seek(0, os.SEEK_END)
        missing = count
        if position:
            file.seek(position - 1)
            missing += file.read(1) == b"\n"  # which ends the last line, and begins none
        while position and missing:
            size = min(position, _BLOCK_BYTES)
            file.seek(position - size)
            block = file.read(size)
            end = size
            while missing and (end := block.rfind(b"\n", 0, end)) >= 0:
                missing -= 1
                if not missing:
                    return position - size + end + 1
            position -= size
        return position if missing else file.seek(0, os.SEEK_END)


def _render(line: bytes) -> str:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        event = None
    return _sentence(event) if isinstance(event, dict) else line.decode(errors="replace")


def _sentence(event: dict[str, Any]) -> str:
    stamp = str(event.pop("timestamp", ""))[:23]
    level = str(event.pop("level", "")).upper()
    text = str(event.pop("event", ""))
    event.pop("logger", None)
    detail = event.pop("error_detail", None)
    rest = " ".join(f"{name}={value!r}" for name, value in event.items())
    sentence = f"{stamp} {level:<8} {text}" + (f"  {rest}" if rest else "")
    return sentence + _traceback(detail) if detail else sentence


def _traceback(detail: Any) -> str:
    lines = []
    try:
        for error in detail:
            for frame in error["frames"]:
                lines.append(f"  File {frame['filename']}, line {frame['lineno']}, in {frame['name']}")
            lines.append(f"{error['exc_type']}: {error['exc_value']}")
    except (KeyError, TypeError):
        lines = [str(detail)]  # not in the form that Airflow gives its errors
    return "".join(f"\n    {line}" for line in lines)
