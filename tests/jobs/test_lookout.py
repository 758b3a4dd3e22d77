"""A manager looks at what has changed: ended jobs cost next to nothing, however many there are."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from air_executor.jobs.lookout import Lookout
from air_executor.jobs.model import Job, JobState
from air_executor.jobs.store import JobStore


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path)
    for name in ("a", "b", "c"):
        store.create(Job(id=name, name=name, state=JobState.COMPLETED), [])
    return store


def look(lookout: Lookout, active: tuple[str, ...] = ()) -> list[str]:
    """Return which jobs are to be looked at, if it is time for it."""
    lookout.take_in()
    return lookout.names(active) if time.monotonic() >= lookout.due_s() else []


@pytest.fixture
def settled(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Lookout:
    """Of which all jobs have ended, and which looks only when it is told to."""
    monkeypatch.setattr("air_executor.jobs.lookout._LOOK_S", 0.0)
    lookout = Lookout(store, poll_s=3600.0, only=None)
    assert look(lookout) == ["a", "b", "c"]
    for name in ("a", "b", "c"):
        lookout.settle(name, lookout.glance(name))
    assert look(lookout) == []
    return lookout


def test_of_ended_jobs_only_the_one_of_which_something_is_asked_is_looked_at(store: JobStore, settled: Lookout) -> None:
    store.ask("b", "retry")
    assert look(settled) == ["b"]
    assert look(settled) == []
    assert sorted(os.listdir(store.root)) == ["a", "b", "c"]


def test_a_request_of_a_former_version_has_all_looked_at(store: JobStore, settled: Lookout) -> None:
    (store.root / "b" / "inbox").mkdir()
    (store.root / "b" / "inbox" / "1.json").write_text("{}")
    (store.root / ".asked").touch()
    assert look(settled) == ["b"]


def test_jobs_that_come_and_go_are_noticed(store: JobStore, settled: Lookout) -> None:
    store.create(Job(id="d", name="d"), [])
    assert look(settled) == ["d"]
    shutil.rmtree(store.root / "a")
    assert look(settled) == ["a"]
    settled.forget("a")
    (store.root / "c").rename(store.root / "e")
    assert look(settled) == ["c", "e"]


def test_what_changes_in_a_job_that_is_worked_on_is_told_of_that_job_only(store: JobStore, settled: Lookout) -> None:
    settled.watch("a")
    (store.root / "a" / "tasks.json").write_text("[]")
    assert look(settled) == ["a"]
    settled.unwatch("a")
    (store.root / "a" / "tasks.json").write_text("[ ]")
    assert look(settled) == []


def test_what_nobody_tells_of_is_found_by_and_by(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("air_executor.jobs.lookout._AT_LEAST", 1)
    lookout = Lookout(store, poll_s=0.0, only=None)
    for name in look(lookout):
        lookout.settle(name, lookout.glance(name))
    (store.root / "c" / "tasks.json").write_text("[ ]")
    assert [look(lookout), look(lookout), look(lookout)].count(["c"]) == 1


def test_who_works_on_some_jobs_hears_of_those_only(store: JobStore) -> None:
    lookout = Lookout(store, poll_s=3600.0, only=frozenset({"a"}))
    assert look(lookout) == ["a"]
    lookout.settle("a", lookout.glance("a"))
    store.ask("b", "retry")
    assert lookout.due_s() > time.monotonic() + 600
    lookout.take_in()
    assert lookout.due_s() > time.monotonic() + 600


def test_more_news_than_the_system_keeps_has_all_looked_at(store: JobStore, settled: Lookout) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip("the queue of this machine is too long to fill it")
    for _ in range(limit // 2 + 10):
        os.close(os.open(store.root / "x", os.O_CREAT | os.O_WRONLY))
        os.unlink(store.root / "x")
    (store.root / "b" / "state.json").touch()
    assert "b" in look(settled)


def test_nothing_is_kept_of_jobs_that_are_gone(store: JobStore, settled: Lookout) -> None:
    for number in range(300):
        name = f"job-{number % 3}"
        store.create(Job(id="1", name=name), [])
        for each in look(settled):
            settled.watch(each)
            settled.settle(each, settled.glance(each))
        shutil.rmtree(store.root / name)
        for each in look(settled):
            settled.forget(each)
    assert len(settled._turns) <= 6
    assert settled._settled.keys() == {"a", "b", "c"}
    assert set(settled._watch._folders) == {store.root}
    assert set(settled._watch._numbers.values()) == {store.root}
