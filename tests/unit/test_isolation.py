"""A runner on one of many hosts ends its task before the retry can begin elsewhere, and only then."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from air_executor.runner import active, isolation
from air_executor.runner.active import ActiveRun
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.documents import identity, kept

FENCE_S = 25.0


def run_of(store: RunStore, kind: str = "task", fence_s: float | None = FENCE_S) -> ActiveRun:
    options = dataclasses.replace(config(store.root), fence_seconds=fence_s)
    return ActiveRun(store, kept(store, RunState.RUNNING, who=identity(kind=kind)), options)


def contact(store: RunStore, age_s: float) -> None:
    store.note_contact()
    moment_s = time.time() - age_s
    os.utime(Path(store.root, "worker.contact"), (moment_s, moment_s))


@pytest.mark.parametrize(
    ("heard_s", "contact_s", "ends"),
    [
        (None, 1000.0, False),  # it has not begun: Airflow refuses a second that begins
        (10.0, 1000.0, False),  # Airflow answers
        (60.0, 2.0, False),  # the worker reaches Temporal
        (60.0, 60.0, True),
    ],
)
def test_a_task_ends_when_neither_airflow_nor_temporal_is_reached(
    store: RunStore, heard_s: float | None, contact_s: float, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(store)
    run.heard_s = None if heard_s is None else time.monotonic() - heard_s
    contact(store, contact_s)
    assert run.check(told=False) is None  # the clock may have been set: the worker's next touch tells
    monkeypatch.setattr(isolation, "_TOUCH_S", 0.0)
    ending = run.check(told=False)
    assert (ending is not None) is ends
    if ending is not None:
        assert "neither Airflow nor Temporal" in ending.reason
        assert ending.signum is signal.SIGTERM and ending.grace_s == 5.0 and not ending.unwanted


def test_on_one_machine_and_when_its_end_is_told_no_task_ends_for_it(store: RunStore) -> None:
    alone, told = run_of(store, fence_s=None), run_of(store)
    alone.heard_s = told.heard_s = time.monotonic() - 1000
    assert alone.check(told=False) is None
    assert told.check(told=True) is None


@pytest.mark.parametrize("kind", ["task", "job"])
def test_a_clock_that_is_set_ends_nothing(store: RunStore, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(store, kind)
    run.heard_s = time.monotonic() - 1000
    for age_s in (-3600.0, 3600.0):
        contact(store, age_s)  # the clock was set back, or on
        assert run.check(told=False) is None
        contact(store, 0.0)  # the worker's next touch
        monkeypatch.setattr(isolation, "_TOUCH_S", 0.0)
        assert run.check(told=False) is None
        monkeypatch.undo()


def test_a_jobs_task_has_more_time_and_begins_again(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_TOUCH_S", 0.0)
    run = run_of(store, "job")
    contact(store, 5 * FENCE_S)
    assert run.check(told=False) is None
    contact(store, 7 * FENCE_S)
    ending = run.check(told=False)
    assert ending is not None and ending.unwanted and "has not reached Temporal" in ending.reason


def test_contact_is_noted_again_and_again(store: RunStore) -> None:
    assert store.last_contact_s() is None
    contact(store, 100.0)
    store.note_contact()
    assert time.time() - (store.last_contact_s() or 0.0) < 50


def test_a_task_that_has_told_its_end_is_left_alone_by_the_thread_too(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active, "FENCE_GRACE_S", 0.0)
    monkeypatch.setattr(isolation, "_TOUCH_S", 0.0)
    run = run_of(store)
    contact(store, 100.0)
    asked: list[bool] = []

    def is_told() -> bool:
        asked.append(True)
        return True

    with subprocess.Popen(["sleep", "600"]) as process:
        run.attach(process.pid)
        run.heard_s = time.monotonic() - 100
        run.guard_isolation(is_told)
        wait_for(lambda: len(asked) > 2, "the thread to have looked")
        assert process.poll() is None and run.ending is None
        run.is_over = True
        process.kill()


def test_a_task_ends_even_if_its_runner_waits_for_something(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active, "FENCE_GRACE_S", 0.5)
    monkeypatch.setattr(isolation, "_TOUCH_S", 0.0)
    run = run_of(store)
    contact(store, 100.0)
    with subprocess.Popen(["sleep", "600"]) as process:
        run.attach(process.pid)
        run.heard_s = time.monotonic() - 100
        run.guard_isolation(lambda: False)
        # Nobody calls check().
        assert process.wait(60) == -signal.SIGKILL
    wait_for(lambda: run.ending, "the reason")
    assert run.ending is not None and "neither Airflow nor Temporal" in run.ending.reason
