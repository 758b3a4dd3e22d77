"""A real launcher and real runners, without Airflow's server: runs that fail early, and runs that wait for a GPU."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import psutil
import pytest

from air_executor.airflow.compat import AIRFLOW_VERSION
from air_executor.cli import doctor
from air_executor.config import Config
from air_executor.errors import AirExecutorError, StateDirError
from air_executor.launcher import protocol
from air_executor.launcher.address import Address, all_addresses
from air_executor.launcher.client import control
from air_executor.launcher.client.backend import LocalBackend
from air_executor.launcher.order import Order
from air_executor.launcher.server.births import Births
from air_executor.launcher.server.reaper import Reaper, Runner
from air_executor.launcher.server.strays import Strays
from air_executor.runner import main as runner
from air_executor.runs import limits
from air_executor.runs.backend import RunRequest
from air_executor.runs.codes import EXIT_ELSEWHERE, EXIT_RECORDED
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.record import UNWANTED, RunRecord, RunState, queued
from air_executor.runs.statedir import StateDir
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.contents import contents
from tests.support.titles import busy_children
from tests.support.waiting import wait_for
from tests.unit.documents import identity, kept
from tests.unit.processes import descendants, family, forked, is_alive, reap, result_of, wait_for_death

LAUNCH = pytest.mark.parametrize("launch", ["fork", "exec"])

#: A launcher that never ends by itself during a test.
PATIENT_S = 600.0


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An Airflow home of the test's own, and no process left after it."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "airflow.cfg").touch()
    monkeypatch.setenv("AIRFLOW_HOME", str(home))
    with family():
        yield


class Bench:
    """A store with backends and the launchers they start."""

    def __init__(self, store: RunStore, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.backends: list[LocalBackend] = []
        self.gpu = KernelLock(store.gpus / "0")

    def options(self, launch: str = "exec", **changes: Any) -> Config:
        return config(
            self.store.root, **{"launch": launch, "gpus": ("0",), "launcher_idle_seconds": PATIENT_S, **changes}
        )

    def backend(self, launch: str = "exec", **changes: Any) -> LocalBackend:
        backend = LocalBackend(self.options(launch, **changes))
        self.backends.append(backend)
        return backend

    def request(self, **changes: Any) -> RunRequest:
        """Return a request for a run that fails early, as its limits are wrong."""
        values = {
            "id": str(uuid.uuid4()),
            "identity": identity(),
            "workload": {"nothing": "of use"},
            "air": {"memory": "much"},
            "log_file": str(self.folder / "logs" / f"{uuid.uuid4()}.log"),
        }
        return RunRequest(**{**values, **changes})

    def waiting(self, **changes: Any) -> RunRequest:
        """Return a request for a run that lasts until it is stopped, or the GPU that the test holds is free."""
        if not is_held(self.gpu.path):
            assert self.gpu.acquire(0)
        return self.request(air={"gpus": 1}, **changes)

    def start(self, backend: LocalBackend, request: RunRequest) -> RunRequest:
        record = queued(request.id, request.identity, limits={}, log_file=request.log_file)
        backend.order(request, record)
        return request

    def end_of(self, backend: LocalBackend, request: RunRequest) -> RunRecord:
        """Return the end that ``backend`` tells, of this run and no other."""
        [record] = wait_for(backend.take_ends, f"the end of run {request.id}")
        assert record.id == request.id
        assert record.state.is_end
        assert self.store.read(record.id) == record
        return record

    def wait_for_state(self, backend: LocalBackend, request: RunRequest, state: RunState) -> RunRecord:
        def there() -> RunRecord | None:
            assert backend.take_ends() == []
            record = self.store.read(request.id)
            return record if record.state is state else None

        return wait_for(there, f"run {request.id} to be {state.value}")

    def address(self) -> Address:
        [address] = all_addresses(self.store)
        return address

    def status(self) -> dict[str, Any]:
        """Return what the one launcher says of itself."""
        return wait_for(lambda: control.status(self.address()), "the launcher to answer")

    def processes(self) -> list[psutil.Process]:
        """Return what runs of its launchers and their children: their output goes to its store.

        An Airflow of other tests in this process may still run, and begin processes.
        """
        found = []
        for process in descendants():
            with contextlib.suppress(OSError):  # it has ended
                if os.readlink(f"/proc/{process.pid}/fd/1").startswith(f"{self.store.root}/"):
                    found.append(process)
        return found

    def log_of(self, request: RunRequest) -> list[dict[str, Any]]:
        path = Path(request.log_file or "")
        return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def no_run_is_left(self) -> None:
        """Make sure that the launcher is alone, and has nothing in its hands."""
        wait_for(lambda: self.status()["runners"] == 0, "the runners to be reaped")
        pid = self.status()["pid"]
        wait_for(lambda: busy_children(psutil.Process(pid)) == [], "the launcher to be without children")
        assert list(self.store.locks.iterdir()) == []


@pytest.fixture
def bench(store: RunStore, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(store, tmp_path)
    yield bench
    bench.gpu.release()
    for backend in bench.backends:
        backend.close()


class Client:
    """Somebody who speaks to a launcher without our client's manners."""

    def __init__(self, address: Address) -> None:
        self.connection = protocol.connect(address.socket)
        self.connection.settimeout(60)
        self.decoder = protocol.Decoder()
        self.messages: list[dict[str, Any]] = []

    def send(self, *messages: dict[str, Any]) -> None:
        self.connection.sendall(b"".join(map(protocol.encode, messages)))

    def next(self, *kinds: str) -> dict[str, Any]:
        """Return the next message of these kinds; others are passed over."""
        while True:
            while self.messages:
                message = self.messages.pop(0)
                if message["type"] in kinds:
                    return message
            data = self.connection.recv(1 << 16)
            assert data, f"the launcher hung up instead of saying {kinds}"
            self.messages += self.decoder.feed(data)

    def is_hung_up(self) -> bool:
        """Wait until the launcher has hung up."""
        with contextlib.suppress(ConnectionResetError):
            while self.connection.recv(1 << 16):
                pass
        return True


@pytest.fixture
def client(bench: Bench) -> Iterator[Callable[[], Client]]:
    """Make clients of the bench's launcher."""
    made: list[Client] = []

    def make() -> Client:
        made.append(Client(bench.address()))
        return made[-1]

    yield make
    for one in made:
        one.connection.close()


# The way of a run


@LAUNCH
def test_a_workload_that_cannot_be_read_ends_failed_with_the_reason_on_record_and_in_its_log(
    bench: Bench, launch: str
) -> None:
    backend = bench.backend(launch)
    request = bench.start(backend, bench.request(air=None))
    record = bench.end_of(backend, request)
    assert record.state is RunState.FAILED
    assert "not a workload of kind 'task'" in (record.reason or "")
    assert record.outcome is None
    assert not record.delivered
    assert record.queued_at and record.starting_at and record.ended_at
    assert not record.running_at
    assert record.pid and not is_alive(record.pid)
    assert record.peak_memory_bytes
    [line] = bench.log_of(request)
    assert line["event"] == record.reason
    assert line["level"] == "error"
    bench.no_run_is_left()
    assert backend.take_ends() == [], "an end is told once"
    written = {path.name for path in bench.store.folder(request.id).iterdir() if path.stat().st_size}
    said = {"output.log"} if launch == "exec" and AIRFLOW_VERSION < (3, 3) else set()  # by Airflow's imports
    assert written - said == {"state.json", "heartbeat"}


def test_an_error_about_a_workload_does_not_tell_its_token(bench: Bench) -> None:
    backend = bench.backend()
    request = bench.start(backend, bench.request(air=None, workload={"token": "secret-token"}))
    record = bench.end_of(backend, request)
    assert record.state is RunState.FAILED
    assert "secret-token" not in (record.reason or "")
    assert "secret-token" not in str(bench.log_of(request))


@LAUNCH
def test_what_is_secret_in_a_request_is_never_on_disk_nor_on_a_command_line(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch)
    air = {"gpus": 1, "environment": {"PASSWORD": "hunter2-password"}}
    request = bench.waiting(workload={"token": "hunter2-token"})
    request = RunRequest(**{**vars(request), "air": air})
    bench.start(backend, request)
    bench.wait_for_state(backend, request, RunState.STARTING)
    for process in descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            assert "hunter2" not in " ".join(process.cmdline())
    assert [path for path, data in contents(bench.store.root).items() if b"hunter2" in data] == []


def test_a_request_that_is_shown_tells_nothing_secret(bench: Bench) -> None:
    air = {"environment": {"PASSWORD": "hunter2-password"}}
    assert "hunter2" not in repr(bench.request(workload={"token": "hunter2-token"}, air=air))


@LAUNCH
def test_limits_that_cannot_be_used_fail_the_run_and_name_the_key(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch)
    record = bench.end_of(backend, bench.start(backend, bench.request(air={"memory": "much"})))
    assert record.state is RunState.FAILED
    assert (record.reason or "").startswith("executor_config['air']['memory'] = 'much' can not be applied: ")
    bench.no_run_is_left()


@LAUNCH
def test_each_of_many_runs_ends_once(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch)
    backend.warm_up()
    requests = {bench.start(backend, bench.request()).id for _ in range(12)}
    ended: list[str] = []

    def all_there() -> bool:
        ended.extend(record.id for record in backend.take_ends())
        return len(ended) >= len(requests)

    wait_for(all_there, "all ends")
    assert sorted(ended) == sorted(requests)
    bench.no_run_is_left()
    assert backend.take_ends() == []


@LAUNCH
def test_a_run_is_requested_once_though_the_launcher_was_not_there_yet(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch)
    request = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, request, RunState.STARTING)
    assert bench.status()["runners"] == 1


@LAUNCH
def test_a_run_that_is_requested_twice_runs_once(bench: Bench, launch: str, client: Callable[[], Client]) -> None:
    bench.backend(launch).warm_up()
    request = bench.request()
    bench.store.create(queued(request.id, request.identity, limits={}, log_file=request.log_file))
    one = client()
    one.send(*[{"type": "start", "request": request.to_message()}] * 2)
    pids = {one.next("started")["pid"] for _ in range(2)}
    ends = [one.next("exited", "elsewhere") for _ in range(2)]
    assert sorted(end["type"] for end in ends) == ["elsewhere", "exited"]
    assert {end["id"] for end in ends} == {request.id}
    assert {end["exit_code"] for end in ends if end["type"] == "exited"} == {EXIT_RECORDED}
    record = bench.store.read(request.id)
    assert record.state is RunState.FAILED
    assert record.outcome != UNWANTED
    assert record.pid in pids
    assert len(bench.log_of(request)) == 1
    bench.no_run_is_left()


def test_a_second_request_whose_wait_is_over_leaves_the_record_of_the_first_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = bench.backend()
    request = bench.start(backend, bench.waiting())
    record = bench.wait_for_state(backend, request, RunState.STARTING)
    monkeypatch.setattr(runner, "LOCK_WAIT_S", 0.1)
    assert result_of(lambda: runner.run(request, bench.store, bench.options())) == EXIT_ELSEWHERE
    assert bench.store.read(request.id) == record


def test_a_second_run_of_a_workload_that_is_executed_already_ends_unwanted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = bench.backend()
    request = bench.start(backend, bench.waiting())
    first = bench.wait_for_state(backend, request, RunState.STARTING)
    monkeypatch.setattr(runner, "LOCK_WAIT_S", 0.1)
    other = bench.request(identity=request.identity)
    bench.store.create(queued(other.id, other.identity, limits={}, log_file=other.log_file))
    assert result_of(lambda: runner.run(other, bench.store, bench.options())) == 0
    end = bench.store.read(other.id)
    assert (end.state, end.outcome) == (RunState.FAILED, UNWANTED)
    assert bench.store.read(request.id) == first


# What an executor hands down


def test_signals_that_an_executor_blocks_or_ignores_reach_launchers_and_runners(bench: Bench) -> None:
    backend = bench.backend()
    signals = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
    before = signal.getsignal(signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        request = bench.start(backend, bench.waiting())
        record = bench.wait_for_state(backend, request, RunState.STARTING)
    finally:
        signal.signal(signal.SIGCHLD, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    for pid, names in ((bench.status()["pid"], (b"SigBlk", b"SigIgn")), (record.pid, (b"SigBlk",))):
        lines = dict(line.split(b":\t", 1) for line in Path(f"/proc/{pid}/status").read_bytes().splitlines())
        for name in names:
            found = int(lines[name], 16)
            assert not [signum for signum in (signal.SIGCHLD, signal.SIGTERM) if found & 1 << (signum - 1)], name
    backend.stop(request.id, "seen enough")
    assert bench.end_of(backend, request).reason == "stopped: seen enough"


def test_a_working_directory_that_was_removed_keeps_no_launcher_from_beginning(bench: Bench, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = Path.cwd()
    os.chdir(gone)
    gone.rmdir()
    try:
        backend = bench.backend("fork")
        request = bench.start(backend, bench.request())
        assert "memory" in (bench.end_of(backend, request).reason or "")
    finally:
        os.chdir(before)


# Stopping


@LAUNCH
def test_a_run_that_is_stopped_ends_killed_with_the_reason_that_was_given(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch)
    request = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, request, RunState.STARTING)
    backend.stop(request.id, "the test wants it")
    record = bench.end_of(backend, request)
    assert record.state is RunState.KILLED
    assert record.reason == "stopped: the test wants it"
    bench.no_run_is_left()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, 40])
def test_a_runner_that_is_killed_leaves_a_record_that_says_by_what_and_the_launcher_goes_on(
    bench: Bench, signum: int
) -> None:
    backend = bench.backend()
    request = bench.start(backend, bench.waiting())
    running = bench.wait_for_state(backend, request, RunState.STARTING)
    launcher = bench.status()["pid"]
    assert running.pid
    os.kill(running.pid, signum)
    record = bench.end_of(backend, request)
    assert record.state is RunState.KILLED
    assert f"(signal {int(signum)})" in (record.reason or "")
    assert bench.log_of(request)[-1]["event"].startswith(record.reason)
    assert bench.status()["pid"] == launcher


def test_the_end_of_a_run_whose_record_is_gone_is_still_told(bench: Bench) -> None:
    import shutil

    backend = bench.backend()
    request = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, request, RunState.STARTING)
    shutil.rmtree(bench.store.folder(request.id))
    backend.stop(request.id, "no matter")
    [record] = wait_for(backend.take_ends, "the end of a run without a record")
    assert record.id == request.id
    assert record.state.is_end


def test_a_request_that_is_too_long_is_refused_and_does_no_harm_afterwards(bench: Bench) -> None:
    backend = bench.backend()
    backend.warm_up()
    request = bench.request(workload={"long": "x" * (protocol.MAX_MESSAGE_BYTES + 1)})
    with contextlib.suppress(AirExecutorError):
        bench.start(backend, request)
    wait_for(lambda: all(r.state.is_end for r in bench.store.records()) or backend.take_ends(), "no run to be queued")
    backend.take_ends()
    os.kill(bench.status()["pid"], signal.SIGKILL)
    bench.end_of(backend, bench.start(backend, bench.request()))


# Bad manners


BAD_REQUESTS: list[Any] = [
    None,
    {},
    [],
    "run",
    5,
    {"id": "../x"},
    {"id": str(uuid.UUID(int=1)), "identity": {"kind": "task", "workload_id": "../x", "name": "x"}, "workload": {}},
    {"id": "../x", "identity": {"kind": "task", "workload_id": str(uuid.UUID(int=1)), "name": "x"}, "workload": {}},
    {"id": str(uuid.UUID(int=1)), "identity": {"kind": "task"}, "workload": {}},
    {"id": str(uuid.UUID(int=1)), "identity": {"kind": "task", "workload_id": str(uuid.UUID(int=1))}, "workload": {}},
    {"id": str(uuid.UUID(int=1)), "identity": {"kind": "task", "workload_id": str(uuid.UUID(int=1)), "name": "x"}},
    "id identity workload kind workload_id name",
    {"id": str(uuid.UUID(int=1)), "identity": None, "workload": {}},
    {"id": {"a": []}, "identity": {}},
]


@LAUNCH
def test_bad_requests_are_refused_one_by_one_and_the_launcher_goes_on(
    bench: Bench, launch: str, client: Callable[[], Client]
) -> None:
    backend = bench.backend(launch)
    backend.warm_up()
    one = client()
    launcher = one.next("hello")["pid"]
    for request in BAD_REQUESTS:
        one.send({"type": "start", "request": request})
        answer = one.next("refused")
        assert "not a run request" in answer["reason"]
        assert answer["id"] == (request.get("id") if isinstance(request, dict) else None)
    bench.end_of(backend, bench.start(backend, bench.request()))
    assert bench.status()["pid"] == launcher
    assert [path.name for path in bench.store.runs.iterdir()] == [record.id for record in bench.store.records()]


@LAUNCH
def test_a_request_for_a_run_without_a_record_ends_without_harm(
    bench: Bench, launch: str, client: Callable[[], Client]
) -> None:
    backend = bench.backend(launch)
    backend.warm_up()
    one = client()
    launcher = one.next("hello")["pid"]
    one.send({"type": "start", "request": bench.request().to_message()})
    wait_for(lambda: bench.status()["runners"] == 0, "the runner to end")
    bench.end_of(backend, bench.start(backend, bench.request()))
    assert bench.status()["pid"] == launcher
    bench.no_run_is_left()


@pytest.mark.parametrize("kind", ["follow", "stop"])
@pytest.mark.parametrize("run_id", [str(uuid.UUID(int=1)), "../x", None, 5, ["x"]])
def test_a_run_that_the_launcher_does_not_have_is_said_so(
    bench: Bench, client: Callable[[], Client], kind: str, run_id: Any
) -> None:
    bench.backend().warm_up()
    one = client()
    one.send({"type": kind, "id": run_id})
    assert one.next("unknown")["id"] == run_id


@LAUNCH
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["by its runner", "by its launcher"])
def test_who_hears_of_an_end_gets_the_record_as_it_was_written(
    bench: Bench, launch: str, signum: int, client: Callable[[], Client]
) -> None:
    backend = bench.backend(launch, serves="jobs")
    backend.warm_up()
    one = client()
    request = bench.waiting()
    bench.store.create(queued(request.id, request.identity, limits={}, log_file=request.log_file))
    one.send({"type": "start", "request": request.to_message()})
    running = bench.wait_for_state(backend, request, RunState.STARTING)
    bench.store.request_stop(request.id, "the test stops it")  # a signal alone may come before the runner heeds any
    os.kill(running.pid or 0, signum)
    message = one.next("exited")
    record = bench.store.read(request.id)
    assert record.state is RunState.KILLED
    assert RunRecord.from_document(message["record"]) == record


def test_an_end_is_told_without_a_record_when_none_can_be_written(bench: Bench, client: Callable[[], Client]) -> None:
    bench.backend().warm_up()
    one = client()
    request = bench.waiting()
    bench.store.create(queued(request.id, request.identity, limits={}, log_file=request.log_file))
    one.send({"type": "start", "request": request.to_message()})
    pid = one.next("started")["pid"]
    shutil.rmtree(bench.store.folder(request.id))
    os.kill(pid, signal.SIGKILL)
    message = one.next("exited")
    assert (message["id"], message["exit_code"]) == (request.id, -signal.SIGKILL)
    assert "record" not in message


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\xff" * 100,
    b"\0\0\0\x01x",
    b"\0\0\0\x02[]",
    protocol.encode({}),
    protocol.encode({"type": "dance"}),
    protocol.encode({"type": ["start"]}),
]


def test_who_sends_garbage_is_dropped_alone(bench: Bench, client: Callable[[], Client]) -> None:
    backend = bench.backend()
    backend.warm_up()
    request = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, request, RunState.STARTING)
    polite = client()
    launcher = polite.next("hello")["pid"]
    for data in GARBAGE:
        rude = client()
        rude.connection.sendall(data)
        assert rude.is_hung_up()
    silent, half, gone = client(), client(), client()
    half.connection.sendall(b"\0\0")
    gone.send({"type": "status"})
    gone.connection.close()
    polite.send({"type": "status"})
    status = polite.next("status")
    assert (status["pid"], status["runners"]) == (launcher, 1)
    assert silent.next("hello")["pid"] == launcher
    backend.stop(request.id, "enough")
    assert bench.end_of(backend, request).state is RunState.KILLED


# The life of a launcher


def test_backends_share_a_launcher_unless_options_differ_that_matter_to_its_runs(bench: Bench) -> None:
    one, same, other = bench.backend(), bench.backend(keep_runs=5), bench.backend(stop_grace_seconds=3.0)
    for backend in (one, same):
        bench.end_of(backend, bench.start(backend, bench.request()))
    assert len(all_addresses(bench.store)) == 1
    bench.end_of(other, bench.start(other, bench.request()))
    assert len(all_addresses(bench.store)) == 2
    assert len({wait_for(lambda a=a: control.status(a), "it")["pid"] for a in all_addresses(bench.store)}) == 2


def test_of_two_processes_that_want_a_launcher_at_once_one_starts_it(bench: Bench) -> None:
    def want() -> LocalBackend:
        backend = bench.backend()
        backend.warm_up()
        return backend

    with forked(want) as one, forked(want) as two, forked(want) as three:
        [launcher] = [child for pid in (one, two, three) for child in psutil.Process(pid).children()]
        assert bench.status()["pid"] == launcher.pid


def test_options_of_one_environment_do_not_serve_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.backend().warm_up()
    monkeypatch.setenv("SHLVL", "5")
    bench.backend().warm_up()
    assert len(all_addresses(bench.store)) == 1
    monkeypatch.setenv("SOME_SETTING", "x")
    bench.backend().warm_up()
    assert len(all_addresses(bench.store)) == 2


def test_files_of_a_launcher_are_for_its_owner_alone(bench: Bench) -> None:
    bench.backend().warm_up()
    address = bench.address()
    assert {path.name for path in bench.store.launchers.iterdir()} == {
        path.name for path in (address.socket, address.lock, address.log)
    }
    for path in (address.socket, address.lock, address.log):
        assert path.stat().st_mode & 0o077 == 0, path


@LAUNCH
def test_after_a_launcher_is_killed_between_runs_the_next_run_gets_a_new_one(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch)
    bench.end_of(backend, bench.start(backend, bench.request()))
    first = bench.status()["pid"]
    os.kill(first, signal.SIGKILL)
    wait_for_death(first)
    bench.end_of(backend, bench.start(backend, bench.request()))
    assert bench.status()["pid"] != first
    bench.no_run_is_left()


@LAUNCH
def test_a_run_outlives_its_launcher_and_its_end_is_told(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch)
    request = bench.start(backend, bench.waiting())
    running = bench.wait_for_state(backend, request, RunState.STARTING)
    launcher = bench.status()["pid"]
    os.kill(launcher, signal.SIGKILL)
    wait_for_death(launcher)
    for _ in range(5):
        assert backend.take_ends() == []
    assert running.pid and is_alive(running.pid)
    backend.stop(request.id, "without a launcher")
    record = bench.end_of(backend, request)
    assert (record.state, record.reason) == (RunState.KILLED, "stopped: without a launcher")


def test_a_run_that_dies_with_its_launcher_is_told_as_lost(bench: Bench) -> None:
    backend = bench.backend()
    request = bench.start(backend, bench.waiting())
    running = bench.wait_for_state(backend, request, RunState.STARTING)
    assert running.pid
    os.kill(bench.status()["pid"], signal.SIGKILL)
    os.kill(running.pid, signal.SIGKILL)
    record = bench.end_of(backend, request)
    assert record.state is RunState.LOST
    assert f"pid {running.pid}" in (record.reason or "")


@LAUNCH
def test_a_runner_that_outlives_its_launcher_does_not_keep_the_next_one_from_coming(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch)
    request = bench.start(backend, bench.waiting())
    running = bench.wait_for_state(backend, request, RunState.STARTING)
    first = bench.status()["pid"]
    os.kill(first, signal.SIGKILL)
    wait_for_death(first)
    other = bench.backend(launch)
    bench.end_of(other, bench.start(other, bench.request()))
    assert bench.status()["pid"] != first
    assert running.pid and is_alive(running.pid)


@LAUNCH
def test_another_backend_can_follow_a_run_to_its_end(bench: Bench, launch: str) -> None:
    former = bench.backend(launch)
    request = bench.start(former, bench.waiting())
    bench.wait_for_state(former, request, RunState.STARTING)
    former.close()
    assert former.take_ends() == []
    heir = bench.backend(launch)
    heir.warm_up()
    heir.follow(bench.store.read(request.id))
    assert heir.take_ends() == []
    heir.stop(request.id, "inherited")
    record = bench.end_of(heir, request)
    assert record.reason == "stopped: inherited"
    assert heir.take_ends() == []


def test_a_run_that_ended_while_nobody_followed_is_told_to_who_follows(bench: Bench) -> None:
    former = bench.backend()
    request = bench.start(former, bench.request())
    wait_for(lambda: bench.store.read(request.id).state.is_end, "the end")
    former.close()
    heir = bench.backend()
    heir.follow(bench.store.read(request.id))
    assert bench.end_of(heir, request).state is RunState.FAILED


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.RUNNING, RunState.FAILED, RunState.SUCCEEDED])
def test_a_record_that_vanishes_before_the_first_look_ends_its_run_and_nothing_else(
    bench: Bench, state: RunState
) -> None:
    heir, vanished = bench.backend(), kept(bench.store, state)
    other = kept(bench.store, RunState.KILLED)
    heir.follow(vanished)
    heir.follow(other)
    shutil.rmtree(bench.store.folder(vanished.id))
    told: dict[str, RunRecord] = {}

    def are_told() -> bool:
        told.update({record.id: record for record in heir.take_ends()})
        return told.keys() == {vanished.id, other.id}

    wait_for(are_told, "both ends")
    assert told[other.id] == other
    assert told[vanished.id].state is (state if state.is_end else RunState.FAILED)


@pytest.mark.parametrize("error", [StateDirError("no access"), OSError("broken"), ValueError("nonsense")])
def test_a_run_that_cannot_be_looked_at_hurts_no_other_and_is_lost_in_the_end(
    bench: Bench, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heir, bad, good = bench.backend(), kept(bench.store, RunState.RUNNING), kept(bench.store, RunState.KILLED)
    runner = bench.store.lock(bad.identity.workload_id)
    assert runner.acquire(0)
    read = RunStore.read

    def read_most(store: RunStore, run_id: str) -> RunRecord:
        if run_id == bad.id:
            raise error
        return read(store, run_id)

    monkeypatch.setattr(RunStore, "read", read_most)
    monkeypatch.setattr("air_executor.launcher.client.followed.LOOK_S", 0.0)
    monkeypatch.setattr("air_executor.launcher.client.followed._OBSCURE_S", 0.0)
    heir.follow(bad)
    heir.follow(good)
    assert wait_for(heir.take_ends, "the other's end") == [good]
    for _ in range(10):
        assert heir.take_ends() == []  # it has a runner
    runner.release()
    (lost,) = wait_for(heir.take_ends, "its end")
    assert (lost.id, lost.state) == (bad.id, RunState.LOST)
    assert str(error) in (lost.reason or "")
    assert len([entry for entry in caplog.records if bad.id in entry.getMessage()]) == 1


def test_an_end_that_could_not_be_written_is_written_when_it_is_acknowledged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    heir, dead = bench.backend(), kept(bench.store, RunState.RUNNING)

    def refuse(*_: object) -> None:
        raise StateDirError("No space left on device")

    monkeypatch.setattr("air_executor.launcher.client.followed.LOOK_S", 0.0)
    monkeypatch.setattr("air_executor.launcher.client.followed._OBSCURE_S", 0.0)
    with monkeypatch.context() as full:
        full.setattr(RunStore, "write", refuse)
        heir.follow(dead)
        (end,) = wait_for(heir.take_ends, "its end")
        with pytest.raises(StateDirError):
            heir.acknowledge(end)
    assert bench.store.read(dead.id) == dead
    assert bench.store.open.has(dead.id)
    heir.acknowledge(end)
    found = bench.store.read(dead.id)
    assert (found.state, found.reason, found.reported_at is None) == (RunState.LOST, end.reason, False)
    assert not bench.store.open.has(dead.id)


@LAUNCH
def test_an_idle_launcher_ends_and_leaves_neither_socket_nor_process(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch, launcher_idle_seconds=0.5)
    request = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, request, RunState.STARTING)
    assert bench.processes()
    bench.gpu.release()
    record = bench.end_of(backend, request)
    wait_for(lambda: all_addresses(bench.store) == [], "the socket to go")
    wait_for(lambda: backend.take_ends() == [] and not bench.processes(), "the launcher to go", seen=bench.processes)
    bench.end_of(backend, bench.start(backend, bench.request()))  # a new one comes when it is wanted
    assert bench.store.read(record.id) == record


@LAUNCH
def test_a_launcher_without_any_patience_still_serves_who_has_come(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch, launcher_idle_seconds=0.0)
    for _ in range(2):
        bench.end_of(backend, bench.start(backend, bench.request()))
    backend.close()
    wait_for(lambda: all_addresses(bench.store) == [], "the socket to go")


def test_a_launcher_that_is_told_to_end_leaves_its_runs(bench: Bench) -> None:
    backend = bench.backend()
    request = bench.start(backend, bench.waiting())
    running = bench.wait_for_state(backend, request, RunState.STARTING)
    launcher = bench.status()["pid"]
    os.kill(launcher, signal.SIGTERM)
    wait_for_death(launcher)
    assert all_addresses(bench.store) == []
    assert backend.take_ends() == []
    assert running.pid and is_alive(running.pid)
    backend.stop(request.id, "end")
    bench.end_of(backend, request)


def test_a_stop_that_comes_before_the_death_of_the_launcher_is_noticed_is_heard_all_the_same(bench: Bench) -> None:
    backend = bench.backend()
    request = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, request, RunState.STARTING)
    launcher = bench.status()["pid"]
    os.kill(launcher, signal.SIGKILL)
    wait_for_death(launcher)
    backend.stop(request.id, "into the void")
    record = bench.end_of(backend, request)
    assert (record.state, record.reason) == (RunState.KILLED, "stopped: into the void")


def test_closing_hands_over_what_was_ordered(bench: Bench) -> None:
    backend = bench.backend()
    request = bench.start(backend, bench.request())
    backend.close()
    wait_for(lambda: bench.store.read(request.id).state.is_end, "the run to come to its end")
    assert backend.take_ends() == []


# A launcher that cannot be


@LAUNCH
def test_when_no_launcher_can_start_the_runs_fail_with_the_reason_and_nothing_raises(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: str
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path / "nothing"))
    backend = bench.backend(launch)
    backend.warm_up()
    requests = [bench.start(backend, bench.request()) for _ in range(3)]
    ended: list[RunRecord] = []

    def all_there() -> bool:
        ended.extend(backend.take_ends())
        return len(ended) >= 3

    wait_for(all_there, "the runs to fail")
    assert sorted(record.id for record in ended) == sorted(request.id for request in requests)
    [log] = bench.store.launchers.glob("*.log")
    for record, request in ((record, next(r for r in requests if r.id == record.id)) for record in ended):
        assert record.state is RunState.FAILED
        assert "the launcher died" in (record.reason or "")
        assert str(log) in (record.reason or "")
        assert bench.store.read(record.id) == record
        assert [line["event"] for line in bench.log_of(request)] == [record.reason]
    assert b"Python" in log.read_bytes()
    assert backend.take_ends() == []
    monkeypatch.delenv("PYTHONHOME")
    mended = bench.backend(launch)
    bench.end_of(mended, bench.start(mended, bench.request()))


def test_a_launcher_that_is_dead_before_it_is_spoken_to_has_died(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path / "nothing"))
    backend = bench.backend()
    connect = protocol.connect

    def connect_late(path: Path) -> socket.socket:
        if backend._launchers.process is not None:
            backend._launchers.process.wait(120)
        return connect(path)

    monkeypatch.setattr(protocol, "connect", connect_late)
    bench.start(backend, bench.request())
    [record] = wait_for(backend.take_ends, "the run to fail")
    assert "the launcher died" in (record.reason or "")


def test_when_the_folder_of_the_launchers_is_gone_the_runs_fail_and_nothing_raises(bench: Bench) -> None:
    backend = bench.backend()
    bench.store.launchers.rmdir()
    bench.store.launchers.touch()
    backend.warm_up()
    request = bench.start(backend, bench.request())
    record = bench.end_of(backend, request)
    assert record.state is RunState.FAILED
    assert "no launcher can be started" in (record.reason or "")


def test_a_state_directory_where_there_are_no_sockets_is_said_to_be_the_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as on vfat

    monkeypatch.setattr(socket.socket, "bind", bind)
    check = doctor._state_dir(StateDir(bench.store.root, "it is set"))
    assert not check.ok
    backend = bench.backend()
    request = bench.start(backend, bench.request())
    record = bench.end_of(backend, request)
    for said in (check.found, record.reason or "", bench.log_of(request)[-1]["event"]):
        assert "no socket can be made" in said
        assert "set [air_executor] state_dir to a folder on a local disk" in said
    monkeypatch.undo()
    assert doctor._state_dir(StateDir(bench.store.root, "it is set")).ok
    assert list(bench.store.root.glob(".try-*")) == []


def test_a_run_that_a_runner_has_is_not_failed_because_no_launcher_can_start(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path / "nothing"))
    backend = bench.backend()
    request = bench.start(backend, bench.waiting())
    # As if the launcher had died after the birth of the runner, before it could say so.
    pid = os.fork()
    if not pid:
        with open(os.devnull, "ab") as null:
            os.dup2(null.fileno(), 2)
        os._exit(runner.run(request, bench.store, bench.options()))
    try:
        wait_for(lambda: bench.store.read(request.id).state is RunState.STARTING, "the runner")
        log = bench.address().log

        def has_given_up() -> bool:
            told.extend(backend.take_ends())
            return bool(told) or request.id not in backend._followed.orders

        told: list[RunRecord] = []
        wait_for(has_given_up, "the backend to give up")
        assert log.exists()
        assert told == []
        assert bench.store.read(request.id).state is RunState.STARTING
    finally:
        reap(pid)
    assert bench.end_of(backend, request).state is RunState.LOST


def test_a_module_that_cannot_be_preloaded_stops_nobody(bench: Bench) -> None:
    backend = bench.backend("fork", preload=("no_such_module_anywhere", "json"))
    bench.end_of(backend, bench.start(backend, bench.request()))
    assert "no_such_module_anywhere cannot be imported" in bench.address().log.read_text()


SITE = """
import os, sys
if "air_executor.runner" in " ".join(sys.orig_argv):
    os._exit(3)
"""


NOTING = """
import os, sys, time
if "air_executor.runner" in " ".join(sys.orig_argv):
    found = [time.tzname[0], hash("x"), sys.warnoptions, os.environ["MINE"], sys.flags.hash_randomization]
    open(os.environ["WHERE"], "w").write(repr(found))
"""


@LAUNCH
def test_the_environment_of_a_task_is_there_from_the_first_instruction_of_its_interpreter(
    bench: Bench, tmp_path: Path, launch: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOTING)
    own = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore::ImportWarning",
        "TZ": "XYZ-3",
        "MINE": "\u00e4 b",
        "WHERE": str(tmp_path / "found"),
    }
    expected = subprocess.run(
        [sys.executable, "-c", "print(hash('x'))"], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True
    )
    backend = bench.backend(launch, serves="jobs")
    request = bench.waiting()
    request = dataclasses.replace(request, air={"gpus": 1, "environment": own})
    bench.start(backend, request)
    runner = bench.wait_for_state(backend, request, RunState.STARTING).pid
    tz, number, warnoptions, mine, _ = ast.literal_eval((tmp_path / "found").read_text())
    assert (tz, str(number), mine) == ("XYZ", expected.stdout.strip(), "\u00e4 b")
    assert "ignore::ImportWarning" in warnoptions
    assert runner and os.getsid(runner) == runner
    other = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, other, RunState.STARTING)


@LAUNCH
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PYTHONPATH", "{folder}", "no orjson for you"),
        ("PYTHONHOME", "{folder}", "Fatal Python error"),
        ("PYTHONMALLOC", "nonsense", "PYTHONMALLOC: unknown allocator"),
    ],
)
def test_an_environment_with_which_no_python_starts_fails_its_task_alone_and_is_named(
    bench: Bench, tmp_path: Path, launch: str, name: str, value: str, words: str
) -> None:
    (tmp_path / "orjson.py").write_text("raise SystemExit('no orjson for you')")
    backend = bench.backend(launch, serves="jobs")
    air = {"environment": {name: value.format(folder=tmp_path)}}
    request = bench.request(air=air)
    record = queued(request.id, request.identity, limits=limits.public(air), log_file=request.log_file)
    backend.order(request, record)
    end = bench.end_of(backend, request)
    assert end.state is RunState.FAILED
    assert f"the environment of its task ({name})" in (end.reason or "")
    assert words in (end.reason or "")
    assert bench.log_of(request)[-1]["event"] == end.reason
    launcher = bench.status()["pid"]
    assert "'memory'" in (bench.end_of(backend, bench.start(backend, bench.request())).reason or "")
    assert bench.status()["pid"] == launcher


@LAUNCH
def test_an_environment_that_is_too_large_for_a_process_is_refused_and_the_launcher_goes_on(
    bench: Bench, launch: str
) -> None:
    backend = bench.backend(launch, serves="jobs")
    request = bench.start(backend, bench.request(air={"environment": {"LONG": "x" * 5_000_000}}))
    record = bench.end_of(backend, request)
    assert "Argument list too long" in (record.reason or "")
    bench.end_of(backend, bench.start(backend, bench.request()))


def test_a_long_request_does_not_keep_the_launcher_until_it_is_read(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "go").mkdir()
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "while 'air_executor.runner' in ' '.join(sys.orig_argv) and not os.path.exists(os.environ['GO']):\n"
        "    time.sleep(0.05)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("GO", str(tmp_path / "go" / "now"))
    backend = bench.backend("exec")
    request = bench.start(backend, bench.request(workload={"long": "x" * 3_000_000}))
    wait_for(lambda: not backend.take_ends() and bench.status()["runners"] == 1, "the launcher to answer meanwhile")
    (tmp_path / "go" / "now").touch()
    assert "'memory'" in (bench.end_of(backend, request).reason or "")


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_runner_that_dies_before_it_reads_its_request_leaves_the_launcher_working(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", str(site))
    backend = bench.backend("exec")
    request = bench.start(backend, bench.request(workload={"long": "x" * size}))
    [record] = wait_for(backend.take_ends, "the end of the run")
    assert (record.id, record.state) == (request.id, RunState.FAILED)
    assert bench.status()["runners"] == 0


def test_a_long_request_reaches_its_runner_whole(bench: Bench) -> None:
    backend = bench.backend("exec")
    record = bench.end_of(backend, bench.start(backend, bench.request(workload={"long": "x" * 3_000_000})))
    assert "'memory'" in (record.reason or "")


def test_requests_wait_in_their_order_while_no_process_can_be_born_and_are_refused_in_the_end(bench: Bench) -> None:
    room, said = 1, []
    born: list[str] = []

    def spawn(order: Order) -> int:
        nonlocal room
        if not room:
            raise BlockingIOError(errno.EAGAIN, "no process to be had")
        room -= 1
        return len(born) + 1

    client: Any = SimpleNamespace()
    births = Births(
        spawn,
        tell=lambda _, message: said.append((message["type"], message["id"], message.get("reason", ""))),
        born=lambda pid, order, _: born.append(order.id),
        may_start=lambda: True,
    )
    requests = [bench.request() for _ in range(4)]
    for request in requests:
        message = {"type": "start", "request": request.to_message()}
        births.order(client, message, orjson.dumps(message))
    assert born == [requests[0].id]
    room = 2
    births.start_waiting()
    assert born == [request.id for request in requests[:3]]
    births.waiting[0].until_s = 0.0
    births.start_waiting()
    assert not births.waiting
    *started, (kind, run_id, reason) = said
    assert started == [("started", request.id, "") for request in requests[:3]]
    assert (kind, run_id) == ("refused", requests[3].id)
    assert "no process to be had" in reason


def open_files(pid: int) -> set[str]:
    names = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.add(os.readlink(path))
    return names


@LAUNCH
def test_a_runner_has_nothing_of_its_launcher_open(bench: Bench, launch: str) -> None:
    backend = bench.backend(launch)
    request = bench.start(backend, bench.waiting())
    running = bench.wait_for_state(backend, request, RunState.STARTING)
    assert running.pid
    launcher = psutil.Process(bench.status()["pid"])
    of_launcher, of_runner = open_files(launcher.pid), open_files(running.pid)
    assert {name for name in of_launcher & of_runner if name.startswith(("socket:", "pipe:"))} == set()
    assert os.getsid(running.pid) == running.pid


def test_somebody_elses_socket_gets_nothing_from_a_launcher(bench: Bench) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    bench.backend().warm_up()
    address = bench.address()
    before = bench.status()
    for path in (bench.store.root, bench.store.launchers):
        path.chmod(0o755)
    address.socket.chmod(0o666)

    def ask_as_somebody_else() -> list[Any]:
        os.chdir(address.folder)
        os.setresuid(12345, 12345, 12345)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(address.socket.name)
            return list(connection.recv(1000))

    assert result_of(ask_as_somebody_else) == []
    assert bench.status()["pid"] == before["pid"]


def test_a_launcher_without_its_arguments_ends_with_an_error() -> None:
    done = subprocess.run([sys.executable, "-m", "air_executor.launcher"], capture_output=True, timeout=60)
    assert done.returncode != 0


def test_who_follows_a_run_that_is_just_dying_is_told_and_who_followed_it_knows(store: RunStore) -> None:
    told: list[tuple[Any, str]] = []
    former: Any = SimpleNamespace()
    heir: Any = SimpleNamespace()
    reaper = Reaper(
        store,
        Strays(),
        [],
        tell=lambda client, message: told.append((client, message["type"])),
        ended=lambda run_id: None,
    )
    runner = Runner(run_id="a", workload_id="b", client=former)
    reaper._dying[1] = runner
    for _ in range(2):
        reaper.follow(heir, "a")
    reaper.end(heir, "a", "stop")
    assert told == [(former, "elsewhere"), (heir, "followed"), (heir, "followed"), (heir, "followed")]
    assert runner.client is heir
