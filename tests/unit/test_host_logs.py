"""Logs of runs on other hosts, from the log server that Airflow's workers have."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from air_executor.airflow import task_instances
from air_executor.airflow.compat import served_logs
from air_executor.airflow.compat.served_logs import LogAwayError, update
from air_executor.cli.elsewhere import HostLog
from air_executor.cli.tasklogs import Filter, follow, print_log
from air_executor.cli.worker import _SERVE_LOGS
from air_executor.errors import AirExecutorError
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import free_port
from tests.support.waiting import wait_for
from tests.unit.documents import kept


class Host:
    """A host with a log, and its log server."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "dag" / "task.log"
        self.log.parent.mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None
        #: What was asked for: ranges, and how many bytes came.
        self.asked: list[tuple[str | None, int]] = []

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", _SERVE_LOGS, str(os.getpid())])
        url = f"http://127.0.0.1:{os.environ['AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT']}/"

        def answers() -> bool:
            try:
                return _get(url, timeout=5).status_code > 0
            except requests.RequestException:
                return False

        wait_for(answers, "the log server")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def get(self, url: str, **how: Any) -> requests.Response:
        answer = _get(url, **how)
        self.asked.append((how["headers"].get("Range"), int(answer.headers.get("Content-Length", 0))))
        return answer


_get = requests.get


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    monkeypatch.setenv("AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT", str(free_port()))
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "a key for logs, of 64 bytes at least" * 2)
    monkeypatch.setattr(task_instances, "hostname", lambda _: "127.0.0.1")
    made = Host(tmp_path / "logs")
    monkeypatch.setattr(served_logs.requests, "get", made.get)
    yield made
    made.stop()


def test_only_what_is_new_comes_from_a_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.start()
    copy = io.BytesIO()
    with pytest.raises(LogAwayError, match="has not begun"):
        update(copy, "127.0.0.1", str(host.log))
    host.log.write_bytes(b"x" * 10_000)
    assert not update(copy, "127.0.0.1", str(host.log))
    with host.log.open("ab") as log:
        log.write(b"more")
    host.asked.clear()
    assert not update(copy, "127.0.0.1", str(host.log))
    assert host.asked == [("bytes=10000-", 4)]
    assert copy.getvalue() == host.log.read_bytes()
    assert not update(copy, "127.0.0.1", str(host.log))  # nothing is new
    assert copy.getvalue() == host.log.read_bytes()
    host.log.write_bytes(b"anew")
    assert update(copy, "127.0.0.1", str(host.log))
    assert copy.getvalue() == b"anew"
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "another key for logs, of 64 bytes" * 2)
    with pytest.raises(AirExecutorError, match="secret_key"):
        update(copy, "127.0.0.1", str(host.log))


def test_a_host_that_is_away_for_a_while_ends_nothing(
    host: Host, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    record = kept(store, RunState.RUNNING, log_file=str(host.log))
    reader = HostLog(store, record.id)
    for _ in range(2):
        assert list(reader.lines(is_over=False)) == []
    assert capsys.readouterr().err.count("does not answer") == 1
    host.log.write_text("one\ntwo\nthree\n")
    host.start()
    assert list(reader.lines(is_over=False)) == ["one", "two", "three"]
    with host.log.open("a") as log:
        log.write("four\n")
    assert list(reader.lines(is_over=False)) == ["four"]
    host.stop()
    assert list(reader.lines(is_over=False)) == []
    host.log.write_text("a\n")  # shorter than what has been shown of it
    host.start()
    assert list(reader.lines(is_over=False)) == ["a"]


def test_the_end_of_a_run_is_told_when_its_log_can_not_be_had(
    host: Host, store: RunStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = kept(store, RunState.RUNNING, log_file=str(host.log))
    reader = HostLog(store, record.id)

    def ends(_: float) -> None:
        store.write(record.advance(RunState.LOST, reason="its host was lost"))

    monkeypatch.setattr("air_executor.cli.tasklogs.time.sleep", ends)
    follow(store, record, reader)
    shown = capsys.readouterr()
    assert "its host was lost" in shown.out and "the end of the log is missing" in shown.err
    with pytest.raises(LogAwayError):
        print_log(store, store.read(record.id), HostLog(store, record.id))


def test_the_last_lines_are_those_of_the_first_answer(host: Host, store: RunStore) -> None:
    record = kept(store, RunState.RUNNING, log_file=str(host.log))
    reader = HostLog(store, record.id)
    assert list(Filter(tail=1).of_the_past(reader, is_over=False)) == []
    host.log.write_text("one\ntwo\n")
    host.start()
    assert list(reader.lines(is_over=False)) == ["two"]
