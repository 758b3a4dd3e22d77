"""A task's log as the command line shows it: each byte read once, whatever its size."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from air_executor.cli.tasklogs import LogReader
from air_executor.config import env_var
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import LossyLog
from tests.unit.documents import kept
from tests.unit.processes import result_of

#: More than the reader may use of memory, and enough to be read in an instant.
BIG_BYTES = 600 << 20


def test_what_has_come_is_told_once_and_a_line_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LogReader(str(path))
    assert list(reader.lines(is_over=False)) == []
    with path.open("ab", buffering=0) as log:
        log.write(b'{"event": "one", "level": "info"}\ntw')
        assert [line.split() for line in reader.lines(is_over=False)] == [["INFO", "one"]]
        assert list(reader.lines(is_over=False)) == []
        log.write("o ü".encode()[:-1])
        assert list(reader.lines(is_over=False)) == []
        log.write("ü".encode()[-1:] + b"\nthree")
        assert list(reader.lines(is_over=False)) == ["two ü"]
        assert list(reader.lines(is_over=True)) == ["three"]
        assert list(reader.lines(is_over=True)) == []
    path.write_bytes(b"anew\n")
    assert list(reader.lines(is_over=False)) == ["anew"]


def test_a_line_without_an_end_is_shown_while_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("air_executor.cli.tasklogs._MAX_LINE_BYTES", 10)
    path = tmp_path / "log"
    reader = LogReader(str(path))
    path.write_bytes(b"\r 1 %\r 2 %\r 3 %")
    assert [line for line in reader.lines(is_over=False) if line] == [" 1 %", " 2 %"]
    assert list(reader.lines(is_over=True)) == ["", " 3 %"]


@pytest.mark.parametrize("arguments", [[], ["-f"]])
def test_a_log_that_is_larger_than_the_memory_is_shown(arguments: list[str], store: RunStore, tmp_path: Path) -> None:
    log = tmp_path / "log"
    record = kept(store, RunState.SUCCEEDED, log_file=str(log))
    with log.open("wb") as file:
        block = b"x" * 99 + b"\n"
        for _ in range(20):
            file.write(block * 1000)
        file.seek(BIG_BYTES)  # the rest is one line of nothing
        file.write(b"\nthe last one\n")

    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (BIG_BYTES, BIG_BYTES))

    with (tmp_path / "out").open("wb") as out:
        reading = subprocess.Popen(
            [sys.executable, "-m", "air_executor.cli", "logs", record.id, *arguments],
            env={**os.environ, env_var("state_dir"): str(store.root), "AIRFLOW_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            preexec_fn=little_memory,
        )
        assert reading.stdout is not None
        tail = subprocess.run(["tail", "-c", "100"], stdin=reading.stdout, stdout=out, check=True, timeout=120)
    assert reading.wait(60) == 0
    assert tail.returncode == 0
    assert (tmp_path / "out").read_text().splitlines()[-1] == "the last one"


def test_a_log_loses_what_has_no_room_and_says_so_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def write() -> None:
        with path.open("ab") as file:
            log, (_, hard) = LossyLog(file), resource.getrlimit(resource.RLIMIT_FSIZE)
            assert (log.name, log.fileno()) == (str(path), file.fileno())
            log.write(b"first\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
            for line in (b"second\n", b"third\n", b"fourth\n"):
                assert log.write(line) == len(line)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            for line in (b"fifth\n", b"sixth\n"):
                log.write(line)
            log.close()

    result_of(write)
    first, cut, note, *rest = path.read_bytes().splitlines()
    assert (first, cut, rest) == (b"first", b"seco", [b"fifth", b"sixth"])
    told = orjson.loads(note)
    assert (told["level"], told["event"]) == ("error", "3 lines are missing here: File too large")
