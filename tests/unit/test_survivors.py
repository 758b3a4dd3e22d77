"""What can't be killed keeps no end from being told, is named there, and has the next try wait for it."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from air_executor.config import Config
from air_executor.launcher.address import all_addresses
from air_executor.launcher.client import control
from air_executor.launcher.client.backend import LocalBackend
from air_executor.machine import processes
from air_executor.runner import command
from air_executor.runner import main as runner
from air_executor.runner.active import ActiveRun
from air_executor.runs.backend import RunRequest
from air_executor.runs.pruning import prune
from air_executor.runs.record import RunState, queued
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.machine import needs_root, silent_disk
from tests.support.waiting import wait_for
from tests.unit.documents import identity
from tests.unit.processes import family, forked, is_alive, reap, result_of

#: A user that is not root.
SOMEBODY = 12345


@pytest.fixture(autouse=True)
def _family() -> Iterator[None]:
    importlib.import_module("air_executor.jobs.hooks")  # another user may not be able to read the files of this Python
    with family():
        yield


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture
def options(folder: Path) -> Config:
    return config(folder / "state", serves="jobs", stop_grace_seconds=0.2)


def request_of(folder: Path, script: str, **air: Any) -> RunRequest:
    """Return a request for a try of always the same task."""
    return RunRequest(
        id=str(uuid.uuid4()),
        identity=identity(kind="job", job_name="job", task_id="task"),
        workload={"argv": [script], "shell": True, "cwd": str(folder)},
        air=air or None,
        log_file=str(folder / "log"),
    )


def order(store: RunStore, folder: Path, script: str, **air: Any) -> RunRequest:
    request = request_of(folder, script, **air)
    store.create(queued(request.id, request.identity, limits={}, log_file=request.log_file))
    return request


def as_somebody(work: Callable[[], Any]) -> Callable[[], Any]:
    def drop_and_work() -> Any:
        os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
        os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
        return work()

    return drop_and_work


def sudo(folder: Path) -> str:
    """A program that executes another one as root, as sudo does."""
    path = folder / "sudo"
    shutil.copy(shutil.which("setpriv") or "setpriv", path)
    path.chmod(0o4755)
    return f"{path} --reuid 0 --regid 0 --clear-groups"


@contextlib.contextmanager
def beside(work: Callable[[], Any]) -> Iterator[None]:
    """Work goes on in a forked child meanwhile."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        reap(pid)


def try_once(store: RunStore, options: Config, request: Callable[[], RunRequest]) -> str:
    """Execute a run in this process, and return its id."""
    ordered = request()
    assert runner.run(ordered, store, options) == 0
    return ordered.id


@needs_root
@pytest.mark.parametrize("run", ["exec {}", "{} & wait", "{} & until [ -s pid ]; do sleep 0.02; done; exit 3"])
def test_a_try_waits_for_what_the_one_before_has_left_as_another_user(folder: Path, options: Config, run: str) -> None:
    store = RunStore(options.state_dir)
    result_of(as_somebody(store.prepare))
    script = run.format(f"{sudo(folder)} sh -c 'echo $$ > pid; exec sleep 600'")
    first = result_of(as_somebody(lambda: try_once(store, options, lambda: order(store, folder, script, timeout=20))))
    pid = int((folder / "pid").read_text())
    assert is_alive(pid)
    record = store.read(first)
    assert record.state is (RunState.FAILED if "exit" in run else RunState.KILLED)
    name = f"process {pid} (sleep) of user root"
    said, _, left = (record.reason or "").partition("; ")
    assert said.startswith("it ended with exit code 3" if "exit" in run else "wall time limit of 20 s reached")
    assert (
        left == f"left behind, as it can't be killed: process {pid} (sleep) of user root may not be killed by this user"
    )

    with beside(as_somebody(lambda: try_once(store, options, lambda: order(store, folder, "echo > second")))):
        wait_for(lambda: b"this try waits at most 300 s" in (folder / "log").read_bytes(), "the wait")
        assert name.encode() in (folder / "log").read_bytes()
        assert not (folder / "second").exists()
        os.kill(pid, signal.SIGKILL)
        wait_for((folder / "second").exists, "the second try to begin")
    assert list((store.root / "leftovers").iterdir()) == []


@needs_root
def test_what_a_success_leaves_as_another_user_is_named_and_nothing_waits_for_it(folder: Path, options: Config) -> None:
    store = RunStore(options.state_dir)
    result_of(as_somebody(store.prepare))
    script = f"{sudo(folder)} sh -c 'echo $$ > pid; exec sleep 600' & until [ -s pid ]; do sleep 0.02; done"
    first = result_of(as_somebody(lambda: try_once(store, options, lambda: order(store, folder, script))))
    record = store.read(first)
    assert record.state is RunState.SUCCEEDED
    assert "(sleep) of user root may not be killed" in (record.reason or "")
    result_of(as_somebody(lambda: try_once(store, options, lambda: order(store, folder, "echo > second"))))
    assert (folder / "second").exists()


@needs_root
def test_other_work_does_not_wait(folder: Path, options: Config) -> None:
    store = RunStore(options.state_dir)
    store.prepare()
    with forked(lambda: None) as pid:
        left = processes.look(pid)
        assert left is not None
        store.leftovers.write(identity(kind="job", job_name="job", task_id="task"), [left])
        for other in ({"job_name": "another"}, {"task_id": "another"}, {"map_index": 1}):
            who = identity(**{"kind": "job", "job_name": "job", "task_id": "task", **other})
            assert store.leftovers.living(who) == []
        prune(store, keep_days=1, keep_runs=1)
        assert len(list((store.root / "leftovers").iterdir())) == 1
    prune(store, keep_days=1, keep_runs=1)
    assert list((store.root / "leftovers").iterdir()) == []


@pytest.fixture
def stuck(folder: Path) -> Iterator[Path]:
    with silent_disk(folder / "image", folder / "mount") as mount:
        yield mount / "file"


@needs_root
@pytest.mark.parametrize("how", ["timeout", "left", "runner killed", "all killed"])
def test_a_process_in_uninterruptible_sleep_does_not_keep_an_end_from_being_told(
    folder: Path, options: Config, stuck: Path, how: str
) -> None:
    store = RunStore(options.state_dir)
    store.prepare()
    write = f"sh -c 'echo $$ > pid; exec dd if=/dev/zero of={stuck} conv=notrunc count=1'"
    stuck_now = "until grep -qs '^State:.D' /proc/$(cat pid)/status; do sleep 0.02; done"
    script = f"{write} & {stuck_now}; exit 3" if how == "left" else f"{write}; true"
    request = request_of(folder, script, **({"timeout": 20} if how == "timeout" else {}))
    run_id = request.id
    backend = LocalBackend(options)
    backend.order(request, queued(run_id, request.identity, limits={}, log_file=request.log_file))
    pid = int(wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), "the process"))
    if how.endswith("killed"):
        wait_for(lambda: (process := processes.look(pid)) and process.state == "D", "the process to be stuck")
        wait_for(lambda: store.read(run_id).state is RunState.RUNNING, "the run to be recorded")
        if how == "all killed":
            (address,) = all_addresses(store)
            launcher = wait_for(lambda: control.status(address), "the launcher to answer")
            os.kill(launcher["pid"], signal.SIGKILL)
        os.kill(store.read(run_id).pid or 0, signal.SIGKILL)
    (record,) = wait_for(backend.take_ends, "the end")
    assert record.state is {"left": RunState.FAILED, "all killed": RunState.LOST}.get(how, RunState.KILLED)
    assert f"process {pid} (dd) of user root is in uninterruptible sleep" in (record.reason or "")
    assert is_alive(pid)
    backend.close()


def test_a_signal_that_comes_when_the_command_has_ended_does_not_change_its_end(folder: Path, options: Config) -> None:
    """It comes when the handler that only wakes a loop has gone, and the former one, which raises, is there again."""
    store = RunStore(options.state_dir)
    store.prepare()

    class Unlucky(ActiveRun):
        @contextlib.contextmanager
        def heeding_signals(self, *, monitored: bool = False) -> Iterator[socket.socket]:
            with super().heeding_signals(monitored=monitored) as wake:
                yield wake
            if monitored:
                os.kill(os.getpid(), signal.SIGTERM)

    def execute() -> str:
        request = order(store, folder, "true")
        record = store.read(request.id).advance(RunState.STARTING)
        active = Unlucky(store, record, options)
        with active.heeding_signals():
            return command.execute(request, active, store).state.value

    assert result_of(execute) == "succeeded"
