"""Printing the log of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from air_executor.runs.record import RunRecord
from air_executor.runs.store import RunStore

#: How often a log that is followed is read again, in seconds.
_READ_S = 0.2


def print_log(store: RunStore, record: RunRecord) -> None:
    """Print what there is."""
    for line in _lines(record, 0, whole=False)[1]:
        print(line)
    _print_output(store, record)


def follow(store: RunStore, record: RunRecord) -> None:
    """Print what there is and what comes, until the run has ended."""
    position = 0
    while True:
        ended = record.state.is_end
        position, lines = _lines(record, position, whole=not ended)
        for line in lines:
            print(line, flush=True)
        if ended:
            _print_output(store, record)
            return
        time.sleep(_READ_S)
        record = store.settled(store.read(record.id))


def _print_output(store: RunStore, record: RunRecord) -> None:
    if record.reason:
        print(f"-- run {record.id} ended {record.state.value}: {record.reason}")
    output = store.output_tail(record.id, max_bytes=1 << 20)
    if output:
        print(f"-- printed by the runner itself ({store.output_file(record.id)}):", output, sep="\n")


def _lines(record: RunRecord, position: int, *, whole: bool) -> tuple[int, list[str]]:
    """Return the lines after byte ``position`` of the task's log, and where they end.

    :param whole: leave out a last line that is still being written.
    """
    try:
        data = Path(record.log_file or "").read_bytes()[position:]
    except OSError:
        return position, []
    if whole:
        data = data[: data.rfind(b"\n") + 1]
    return position + len(data), list(_render(data))


def _render(data: bytes) -> Iterator[str]:
    for line in data.splitlines():
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            event = None
        yield _sentence(event) if isinstance(event, dict) else line.decode(errors="replace")


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
