"""Why a run failed: what its log ends with stands in its record too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.runs.record import RunState
from air_executor.runs.records import public
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import last_exception
from tests.unit.conftest import Cli
from tests.unit.documents import kept


def failed(kind: str, value: str, event: str = "Task failed with exception") -> dict[str, Any]:
    causes = [{"exc_type": kind, "exc_value": value, "frames": []}, {"exc_type": "OSError", "exc_value": "cause"}]
    return {"event": event, "level": "error", "error_detail": causes}


def written(path: Path, *events: Any) -> str:
    lines = [each if isinstance(each, bytes) else orjson.dumps(each) for each in events]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([{"event": "begins"}, failed("ValueError", "not so")], "ValueError: not so"),
        ([failed("ValueError", "two\nlines"), {"event": "Post Execute"}], "ValueError: two lines"),
        ([failed("KeyError", "")], "KeyError"),
        ([failed("A", "1"), failed("B", "2", "Failed to run task callback")], "A: 1"),
        ([failed("A", "1"), failed("B", "2")], "B: 2"),
        ([failed("B", "2", "something else")], "B: 2"),
        ([b"error_detail", b'{"error_detail": 5}', b'{"error_detail": []}', b'["error_detail"]', b"\xff"], None),
        ([{"event": "Task exited", "exit_code": 3}], None),
        ([failed("A", "1"), b"x" * (1 << 20)], None),
        ([b"x" * (1 << 20), failed("A", "1")], "A: 1"),
    ],
)
def test_the_exception_is_what_the_log_ends_with(tmp_path: Path, events: list[Any], expected: str | None) -> None:
    assert last_exception(written(tmp_path / "log", *events)) == expected


def test_a_log_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    for path in (None, "", str(tmp_path), str(tmp_path / "none")):
        assert last_exception(path) is None


def test_runs_and_show_tell_it(cli: Cli, store: RunStore) -> None:
    record = kept(store, RunState.FAILED, exception="ValueError: [not] so")
    assert "ValueError: [not] so" in cli.run("runs", "--state", "failed").stdout
    assert cli.json("show", record.id)["reason"] == "ValueError: [not] so"
    assert store.read(record.id).exception == record.exception
    both = kept(store, RunState.FAILED, exception="ValueError", reason="it was worse")
    assert public(both)["reason"] == "it was worse"
