"""A launcher that is asked to end: what becomes of its runs is the user's choice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from air_executor.launcher.address import all_addresses
from air_executor.launcher.client import control
from air_executor.launcher.client.backend import LocalBackend
from air_executor.launcher.server.farewell import is_main_of_container
from air_executor.pocket.leftover import end_launchers
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import RunRecord, RunState, queued
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.machine import needs_root
from tests.support.waiting import wait_for
from tests.unit.documents import identity
from tests.unit.processes import family, is_alive, wait_for_death

#: A task with something to clean up, which is known to have begun.
TASK = "trap 'echo cleaned > cleaned; exit 1' TERM; echo $$ > began; while [ ! -e enough ]; do sleep 0.02; done"


@pytest.fixture(autouse=True)
def _family() -> Iterator[None]:
    with family():
        yield


class Place:
    def __init__(self, folder: Path, store: RunStore, policy: str, **more: Any) -> None:
        self.folder, self.store = folder, store
        options = config(store.root, serves="jobs", on_launcher_stop=policy, stop_grace_seconds=60.0, **more)
        self.backend = LocalBackend(options)

    def start(self, script: str = TASK) -> str:
        who = identity(kind="job")
        workload = {"argv": [script], "shell": True, "cwd": str(self.folder)}
        request = RunRequest(id=str(uuid.uuid4()), identity=who, workload=workload, log_file=str(self.folder / "log"))
        self.backend.order(request, queued(request.id, who, limits={}, log_file=request.log_file))
        return request.id

    def begun(self) -> str:
        run_id = self.start()
        wait_for(lambda: self.backend.take_ends() or (self.folder / "began").exists(), "the task to begin")
        return run_id

    def launcher(self) -> int:
        (address,) = all_addresses(self.store)
        return int(wait_for(lambda: control.status(address), "the launcher to answer")["pid"])

    def end_of(self, run_id: str) -> RunRecord:
        (record,) = wait_for(self.backend.take_ends, "the end")
        assert record.id == run_id
        return record


@pytest.fixture
def place(tmp_path: Path, store: RunStore, request: Any) -> Iterator[Place]:
    place = Place(tmp_path, store, request.param)
    yield place
    place.backend.close()


@pytest.mark.parametrize("place", ["stop"], indirect=True)
def test_a_launcher_that_stops_its_runs_gives_them_time_and_ends_when_their_ends_are_recorded(place: Place) -> None:
    run_id = place.begun()
    launcher = place.launcher()
    os.kill(launcher, signal.SIGTERM)
    wait_for_death(launcher)
    record = place.store.read(run_id)
    assert record.state is RunState.KILLED
    assert record.reason == "stopped: its launcher was stopped"
    assert (place.folder / "cleaned").exists()
    assert place.end_of(run_id) == record


@pytest.mark.parametrize("place", ["drain"], indirect=True)
def test_a_launcher_that_drains_ends_with_its_last_run_and_leaves_new_ones_to_the_next(place: Place) -> None:
    run_id = place.begun()
    launcher = place.launcher()
    os.kill(launcher, signal.SIGTERM)
    wait_for(lambda: not all_addresses(place.store), "the launcher to take leave")
    later = place.start("echo later > later")
    assert place.backend.take_ends() == []
    assert is_alive(launcher)
    assert not (place.folder / "later").exists()
    (place.folder / "enough").touch()
    ended = []
    wait_for(lambda: ended.extend(place.backend.take_ends()) or len(ended) == 2, "both ends")
    assert {record.id: record.state for record in ended} == {
        run_id: RunState.SUCCEEDED,
        later: RunState.SUCCEEDED,
    }
    wait_for_death(launcher)
    assert place.launcher() != launcher


@pytest.mark.parametrize("place", ["detach", "auto"], indirect=True)
def test_a_launcher_that_lets_go_ends_at_once_and_its_runs_go_on(place: Place) -> None:
    run_id = place.begun()
    launcher = place.launcher()
    os.kill(launcher, signal.SIGTERM)
    wait_for_death(launcher)
    wait_for(lambda: place.store.read(run_id).state is RunState.RUNNING, "the run to be seen running")
    (place.folder / "enough").touch()
    assert place.end_of(run_id).state is RunState.SUCCEEDED


@pytest.mark.parametrize("place", ["drain"], indirect=True)
def test_whoever_asks_twice_waits_for_nothing(place: Place) -> None:
    place.begun()
    launcher = place.launcher()
    os.kill(launcher, signal.SIGTERM)
    wait_for(lambda: not all_addresses(place.store), "the launcher to take leave")
    os.kill(launcher, signal.SIGTERM)
    wait_for_death(launcher)
    (place.folder / "enough").touch()
    wait_for(place.backend.take_ends, "the end")


ASK = f"{sys.executable} -c 'from air_executor.launcher.server import farewell as f; print(f.is_main_of_container())'"


@needs_root
@pytest.mark.parametrize(
    ("command", "is_main"),
    [(f"exec {ASK}", True), (f"{ASK}; true", True), (f"sh -c {ASK!r}'; true'; true", False)],
    ids=["main", "below an init", "further below"],
)
def test_a_container_s_main_process_is_known(command: str, is_main: bool) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", command]
    assert subprocess.check_output(unshare, text=True).strip() == str(is_main)
    assert not is_main_of_container()


def test_a_launcher_that_answers_nobody_yet_is_ended_with_the_run_of_its_dag(tmp_path: Path, store: RunStore) -> None:
    place = Place(tmp_path, store, "stop", launcher_idle_seconds=3600.0)
    place.backend.warm_up()
    launcher = place.launcher()
    os.kill(launcher, signal.SIGSTOP)
    try:
        end_launchers(place.store.root)
    finally:
        os.kill(launcher, signal.SIGCONT)
    wait_for_death(launcher)
    place.backend.close()


def test_a_launcher_whose_state_directory_was_removed_does_not_make_it_again(tmp_path: Path, store: RunStore) -> None:
    place = Place(tmp_path, store, "stop", launcher_idle_seconds=0.5)
    place.backend.warm_up()
    launcher = place.launcher()
    shutil.rmtree(place.store.root)
    place.backend.close()
    wait_for_death(launcher)
    assert not place.store.root.exists()
