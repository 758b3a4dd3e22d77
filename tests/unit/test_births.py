"""A launcher goes on whatever dies at birth; what it prints has an end; and who only looks on does not keep it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from air_executor.cli import doctor
from air_executor.launcher.client import control
from air_executor.launcher.server import backoff, log
from air_executor.launcher.server.backoff import Backoff
from air_executor.launcher.server.log import Log
from air_executor.observe import metrics
from air_executor.observe.everywhere import AllRuns
from air_executor.runs.backend import LauncherCounts
from tests.support.waiting import wait_for
from tests.unit.processes import result_of
from tests.unit.test_launcher import Bench, _home, bench  # noqa: F401 (fixtures)

#: Nothing can be prepared for a task: as with a version of Airflow that is not understood.
SABOTAGE = """
import sys
if "air_executor.launcher" in ' '.join(sys.orig_argv):
    from air_executor.runner import main

    def prepare(*_):
        raise RuntimeError("not with this Airflow")

    main.prepare = prepare
"""


def test_a_launcher_whose_processes_die_at_birth_serves_on_without_and_says_so(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    backend = bench.backend("fork", serves="jobs")
    assert "'memory'" in (bench.end_of(backend, bench.start(backend, bench.request())).reason or "")
    [trouble] = wait_for(lambda: bench.status()["troubles"], "the launcher to give up")
    found = re.match(r"(\d+) processes that were forked ahead have died at birth", trouble)
    assert found is not None
    deaths = int(found[1])  # those that are too far apart do not make it give up
    assert deaths >= 3
    line = f"air_executor_launcher_spare_deaths {deaths}"

    def counted() -> str:
        return metrics.text(AllRuns(bench.store.root))

    wait_for(lambda: line in counted().splitlines(), line, seen=counted)

    def told() -> bool:
        backend.take_ends()
        return backend.launchers() == LauncherCounts(live=1, generations=1, spare_deaths=deaths)

    wait_for(told, "the launcher to have told of them", seen=backend.launchers)
    wait_for(
        lambda: not (check := doctor._launchers(bench.store, None)).ok and trouble in check.found,
        "doctor to tell of it",
        seen=lambda: doctor._launchers(bench.store, None),
    )
    assert "'memory'" in (bench.end_of(backend, bench.start(backend, bench.request())).reason or "")
    said = backend._launchers.address.log.read_text()
    assert said.count("RuntimeError: not with this Airflow") <= deaths + 2, "theirs, and the first run's"


def test_births_wait_longer_after_each_death_and_are_given_up_after_three_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now_s

    monkeypatch.setattr(backoff, "time", Clock)
    some = Backoff()
    waits = []
    for _ in range(4):
        some.failed()
        waits.append(some.due_s - now_s)
        now_s += 20.0  # too far apart to be given up
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert some.trouble() is None
    some.succeeded()
    for _ in range(3):
        some.failed()
        now_s = some.due_s
    assert some.has_given_up
    some.succeeded()
    assert not some.has_given_up
    assert some.trouble() is None


def test_a_log_that_grows_too_long_is_cut_to_its_last_part_while_others_write_to_it(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def write() -> list[Any]:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(fd, 1)
        ours = Log(path)
        for number in range(200_000):
            os.write(1, b"line %d\n" % number)
        ours.cut()
        size = path.stat().st_size
        os.write(fd, b"another's\n")
        ours.cut()
        return [size, path.stat().st_size]

    size, later = result_of(write)
    lines = path.read_text().splitlines()
    assert size < log.MAX_BYTES / 2
    assert later == size + 10
    assert "was removed" in lines[0]
    assert lines[-2:] == ["line 199999", "another's"]
    assert all(line.startswith("line ") for line in lines[1:-1])


def test_output_that_is_no_log_of_ours_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"

    def write() -> int:
        os.dup2(os.open(elsewhere, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.write(1, b"x\n" * log.MAX_BYTES)
        (tmp_path / "log").write_text("x")
        Log(tmp_path / "log").cut()
        return elsewhere.stat().st_size

    assert result_of(write) == 2 * log.MAX_BYTES
    assert (tmp_path / "log").read_text() == "x"


def test_who_only_looks_on_does_not_keep_a_launcher_from_ending(bench: Bench) -> None:  # noqa: F811
    backend = bench.backend(launcher_idle_seconds=2.0)
    bench.end_of(backend, bench.start(backend, bench.request()))
    address = backend._launchers.address
    wait_for(lambda: not control.status(address) and not address.socket.exists(), "the launcher to end", every_s=0.1)


def test_the_last_words_of_a_task_process_that_was_forked_ahead_are_the_runs(tmp_path: Path) -> None:
    launchers, runs, other = (tmp_path / name for name in ("launchers.log", "output.log", "other"))

    def task() -> None:
        os.dup2(os.open(launchers, os.O_RDWR | os.O_CREAT | os.O_APPEND), 2)
        from air_executor.airflow.tasks import redirect  # not here: it replaces Airflow's supervisor

        former = os.fstat(2)
        kept, reading = os.dup(2), os.open(launchers, os.O_RDONLY)
        foreign = os.open(other, os.O_WRONLY | os.O_CREAT)
        redirect(former, str(runs))
        os.write(kept, b"last words")
        os.write(foreign, b"of no concern")
        os.read(reading, 1)
        assert not os.get_inheritable(kept)

    result_of(task)
    assert (launchers.read_bytes(), runs.read_bytes(), other.read_bytes()) == (b"", b"last words", b"of no concern")
    assert runs.stat().st_mode & 0o077 == 0
