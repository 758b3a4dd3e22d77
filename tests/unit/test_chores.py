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
from air_executor.launcher import protocol
from air_executor.launcher.address import Address
from air_executor.launcher.server import launcher as server
from air_executor.launcher.server.launcher import Launcher
from air_executor.runs import pruning
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.documents import identity, kept
from tests.unit.processes import is_alive, result_of


def with_launcher(store: RunStore, work: Callable[[Launcher], Any]) -> Any:
    """Return what ``work`` returns, in a process whose only children are the launcher's."""

    def in_child() -> Any:
        address = Address("by-hand", store.launchers)
        with protocol.listen(address.socket) as listener:
            return work(Launcher(store, config(store.root, keep_runs=0), address, listener))

    return result_of(in_child)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PRUNE_S", 0.0)
    monkeypatch.setattr(Launcher, "_let_go", lambda _: None)


def rounds(launcher: Launcher) -> int:
    """Do a round of the launcher's chores, and return the process that prunes."""
    launcher._reap()
    launcher._end_overdue_chores()
    launcher._prune_now_and_then()
    return launcher._pruner


@pytest.mark.parametrize("error", [StateDirError("no access"), ValueError("odd"), RecursionError("deep")])
def test_pruning_that_fails_says_why_and_is_tried_again(
    error: Exception, store: RunStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def prune(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pruning, "prune", prune)

    def work(launcher: Launcher) -> int:
        first = rounds(launcher)
        second = wait_for(lambda: (pid := rounds(launcher)) != first and pid, "the next try")
        wait_for(lambda: launcher._reap() or not launcher._pruner, "its end")
        return second

    with_launcher(store, work)
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

    def work(launcher: Launcher) -> list[Any]:
        first = rounds(launcher)
        wait_for(begun, "it to begin")
        beside = {rounds(launcher) for _ in range(10)}
        launcher._chores[first] = time.monotonic()  # its time is over
        second = wait_for(lambda: (pid := rounds(launcher)) != first and pid, "the next one")
        wait_for(lambda: len(begun()) == 2, "the next one to begin")
        os.kill(second, 9)
        return [first, beside == {first}, begun() == [first, second]]

    first, alone, one_by_one = with_launcher(store, work)
    assert alone and one_by_one
    assert not is_alive(first)
    assert f"process {first} has taken more than" in capfd.readouterr().out


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
