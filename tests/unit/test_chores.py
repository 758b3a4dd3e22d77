"""What a launcher does beside, in processes of their own: pruning, above all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from air_executor.errors import StateDirError
from air_executor.launcher.address import Address
from air_executor.launcher.server import janitor
from air_executor.launcher.server.chores import Chores
from air_executor.launcher.server.janitor import Janitor
from air_executor.launcher.server.reaper import Reaper
from air_executor.launcher.server.strays import Strays
from air_executor.runs import pruning
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.documents import identity, kept
from tests.unit.processes import is_alive, result_of


class Cleaner:
    """A launcher's janitor, its chores, and who reaps them."""

    def __init__(self, store: RunStore) -> None:
        address = Address("by-hand", store.launchers)
        self.chores = Chores(lambda: None)
        self.janitor = Janitor(store, config(store.root, keep_runs=0), address, self.chores)
        self._reaper = Reaper(
            store, Strays(), [self.chores], tell=lambda client, message: None, ended=lambda run_id: None
        )

    def round(self) -> set[int]:
        """Do a round of chores, and return the processes that prune."""
        self._reaper.reap()
        self.chores.end_overdue()
        self.janitor.work()
        return self.chores.pids

    def is_idle(self) -> bool:
        """Reap what has ended, and tell whether nobody prunes."""
        self._reaper.reap()
        return not self.chores.pids


def with_cleaner(store: RunStore, work: Callable[[Cleaner], Any]) -> Any:
    """Return what ``work`` returns, in a process whose only children are those that prune."""
    return result_of(lambda: work(Cleaner(store)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "PRUNE_S", 0.0)


@pytest.mark.parametrize("error", [StateDirError("no access"), ValueError("odd"), RecursionError("deep")])
def test_pruning_that_fails_says_why_and_is_tried_again(
    error: Exception, store: RunStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def prune(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pruning, "prune", prune)

    def work(cleaner: Cleaner) -> None:
        first = cleaner.round()
        wait_for(lambda: (pids := cleaner.round()) != first and pids, "the next try")
        wait_for(cleaner.is_idle, "its end")

    with_cleaner(store, work)
    said = capfd.readouterr()
    assert "pruning failed" in said.out
    assert str(error) in said.out + said.err
    assert isinstance(error, StateDirError) or "Traceback" in said.err


def test_pruning_that_hangs_is_not_begun_beside_itself_and_has_an_end(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "begun").touch()

    def prune(*_: Any, **__: Any) -> None:
        with (tmp_path / "begun").open("a") as file:
            file.write(f"{os.getpid()}\n")
        while True:
            time.sleep(1)

    monkeypatch.setattr(pruning, "prune", prune)

    def begun() -> list[int]:
        return [int(pid) for pid in (tmp_path / "begun").read_text().splitlines()]

    def work(cleaner: Cleaner) -> list[Any]:
        [first] = cleaner.round()
        wait_for(begun, "it to begin")
        is_alone = all(cleaner.round() == {first} for _ in range(10))
        cleaner.chores._until_s[first] = time.monotonic()  # its time is over
        [second] = wait_for(lambda: (pids := cleaner.round()) != {first} and pids, "the next one")
        wait_for(lambda: len(begun()) == 2, "the next one to begin")
        os.kill(second, 9)
        return [first, is_alone, begun() == [first, second]]

    first, alone, one_by_one = with_cleaner(store, work)
    assert alone and one_by_one
    assert not is_alive(first)
    assert f"process {first} has taken more than" in capfd.readouterr().out


def test_a_launcher_prunes_by_what_the_latest_executor_says_and_passes_over_what_makes_no_sense(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prune(*_: Any, keep_days: float, keep_runs: int) -> None:
        (tmp_path / "part").write_text(f"{keep_days} {keep_runs}")
        (tmp_path / "part").rename(tmp_path / "kept")

    monkeypatch.setattr(pruning, "prune", prune)

    def work(cleaner: Cleaner) -> list[str]:
        found = []
        for options in ({}, {"keep_runs": 5}, {"keep_days": 0.5, "keep_runs": "all", "more": 1}, {"keep_days": None}):
            (tmp_path / "kept").unlink(missing_ok=True)
            cleaner.janitor.keep(options)
            cleaner.round()
            wait_for((tmp_path / "kept").exists, "the pruning")
            found.append((tmp_path / "kept").read_text())
            wait_for(cleaner.is_idle, "its end")
        return found

    assert with_cleaner(store, work) == ["7.0 0", "7.0 5", "0.5 5", "0.5 5"]


def test_what_cannot_be_removed_keeps_nothing_else(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, odd, *_ = [kept(store, RunState.SUCCEEDED, delivered=True, reported_at="2026-01-01") for _ in range(4)]
    (store.locks / "planted").mkdir()  # can't be opened as a lock
    read = store.read

    def read_most(run_id: str) -> Any:
        if run_id == odd.id:
            raise StateDirError("it cannot be read")
        return read(run_id)

    monkeypatch.setattr(store, "read", read_most)
    remove = shutil.rmtree

    def remove_most(path: str) -> None:
        if path.endswith(stuck.id):
            raise PermissionError(13, "Permission denied", path)
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", remove_most)
    with pytest.raises(StateDirError, match="2 runs were removed; 3 could not be"):
        pruning.prune(store, keep_days=0, keep_runs=0)
    assert sorted(store.ids()) == sorted([stuck.id, odd.id])


def test_connection_tests_of_dead_schedulers_are_pruned(store: RunStore) -> None:
    test = kept(store, RunState.SUCCEEDED, who=identity(kind="connection_test"))
    callback = kept(store, RunState.SUCCEEDED, who=identity(kind="callback"))
    live = kept(store, RunState.RUNNING, who=identity(kind="connection_test"))
    assert pruning.prune(store, keep_days=7, keep_runs=0).removed == 0  # its executor may still want to see it
    long_ago_s = time.time() - 3600
    for record in (test, callback, live):
        os.utime(store.folder(record.id), (long_ago_s, long_ago_s))
    assert pruning.prune(store, keep_days=7, keep_runs=0).removed == 1
    assert sorted(store.ids()) == sorted([callback.id, live.id])
