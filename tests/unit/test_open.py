"""Looking at what is open costs what is open, not what has ever run."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable

import pytest

from air_executor.errors import StateDirError
from air_executor.observe.everywhere import AllRuns
from air_executor.observe.query import observe_runs
from air_executor.runs.pruning import prune
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore
from tests.unit.documents import kept, record


@pytest.fixture
def reads(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the runs whose records are read."""
    reads: list[str] = []
    read = store.read

    def count(run_id: str) -> RunRecord:
        reads.append(run_id)
        return read(run_id)

    monkeypatch.setattr(store, "read", count)
    return reads


def of_the_last_release(store: RunStore, state: RunState, **changes: object) -> RunRecord:
    """A run that has no link."""
    made = record(state, **changes)
    store.folder(made.id).mkdir()
    store.write(made)
    return made


def ids(records: object) -> set[str]:
    return {each.id for each in records}  # type: ignore[attr-defined]


def test_of_many_runs_only_those_are_read_that_are_open(store: RunStore, reads: list[str]) -> None:
    store.mark_open()
    for _ in range(50):
        store.mark_reported(kept(store, RunState.SUCCEEDED))
    live, untold = kept(store, RunState.QUEUED), kept(store, RunState.FAILED)
    reads.clear()
    assert ids(store.open_records()) == {live.id, untold.id}
    assert set(reads) == {live.id, untold.id}
    reads.clear()
    runs = AllRuns(store.root)
    runs.here = store
    assert [run.record.id for run in observe_runs(runs)] == [live.id]
    assert set(reads) == {live.id, untold.id}
    reads.clear()
    assert store.unreadable() == []
    assert set(reads) == {live.id, untold.id}


def test_runs_of_the_last_release_are_found_before_and_after_they_get_their_links(
    store: RunStore, reads: list[str]
) -> None:
    live = of_the_last_release(store, RunState.RUNNING)
    untold = of_the_last_release(store, RunState.FAILED)
    done = of_the_last_release(store, RunState.SUCCEEDED, reported_at="2026-01-01T00:00:00+00:00")
    assert ids(store.open_records()) == {live.id, untold.id, done.id}
    store.mark_open()
    reads.clear()
    assert ids(store.open_records()) == {live.id, untold.id}
    assert set(reads) == {live.id, untold.id}
    store.mark_open()
    assert ids(store.open_records()) == {live.id, untold.id}


def test_what_an_older_release_has_begun_meanwhile_gets_its_link_later(store: RunStore, reads: list[str]) -> None:
    old = kept(store, RunState.SUCCEEDED)
    long_ago_s = time.time() - 3600
    os.utime(store.folder(old.id), (long_ago_s, long_ago_s))
    store.mark_open()
    store.mark_reported(old)
    os.utime(store.folder(old.id), (long_ago_s, long_ago_s))
    began = of_the_last_release(store, RunState.RUNNING)
    assert ids(store.open_records()) == set()
    reads.clear()
    store.mark_open()
    assert reads == [began.id]  # not what has not changed since
    assert ids(store.open_records()) == {began.id}


def test_while_an_executor_of_the_last_release_is_there_all_are_read(store: RunStore) -> None:
    store.mark_open()
    began = of_the_last_release(store, RunState.RUNNING)
    former = store.executors / f"3.{uuid.uuid4()}"
    former.touch()
    assert ids(store.open_records()) == {began.id}
    former.rename(f"{former}.1700000000000000")
    assert ids(store.open_records()) == set()


def test_a_run_that_could_not_be_made_leaves_no_link(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: RunRecord) -> None:
        raise StateDirError("no space left")

    monkeypatch.setattr(store, "write", refuse)
    with pytest.raises(StateDirError):
        kept(store)
    assert store.open.ids() == set()
    monkeypatch.undo()
    live = kept(store)
    with pytest.raises(StateDirError):  # a second one with its id
        store.create(record(run_id=live.id))
    assert store.open.ids() == {live.id}


@pytest.mark.parametrize("lost", ["open", "executors"])
def test_where_folders_are_missing_all_are_read(store: RunStore, lost: str) -> None:
    store.mark_open()
    live = kept(store, RunState.RUNNING)
    shutil.rmtree(store.root / lost)
    assert ids(store.open_records()) == {live.id}
    other = kept(store, RunState.RUNNING)
    assert ids(store.open_records()) == {live.id, other.id}


def crash_before_the_folder(store: RunStore) -> str:
    run_id = str(uuid.uuid4())
    store.open.add(run_id)
    return run_id


def remove_by_hand(store: RunStore) -> str:
    made = kept(store)
    shutil.rmtree(store.folder(made.id))
    return made.id


@pytest.mark.parametrize("leave", [crash_before_the_folder, remove_by_hand])
def test_links_of_runs_that_are_gone_are_passed_over_and_removed(
    leave: Callable[[RunStore], str], store: RunStore
) -> None:
    store.mark_open()
    run_id = leave(store)
    assert ids(store.open_records()) == set()
    prune(store, keep_days=7, keep_runs=100)
    assert store.open.ids() == {run_id}  # its folder may be about to be made
    long_ago_s = time.time() - 3600
    os.utime(store.open.folder / run_id, (long_ago_s, long_ago_s), follow_symlinks=False)
    prune(store, keep_days=7, keep_runs=100)
    assert store.open.ids() == set()


def test_what_is_pruned_has_no_link(store: RunStore) -> None:
    store.mark_open()
    done = kept(store, RunState.SUCCEEDED, delivered=True)
    os.utime(store.folder(done.id), (0, 0))
    assert prune(store, keep_days=7, keep_runs=100).removed == 1
    assert store.open.ids() == set()
