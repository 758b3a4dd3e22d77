"""The last release and this one meet: launchers, executors and records of the one under the other."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.cli import doctor
from air_executor.launcher import protocol
from air_executor.launcher.address import Address, address, service_address
from air_executor.launcher.client import control
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.record import RunState, queued
from air_executor.runs.store import RunStore
from tests.support.airflow_env import REPOSITORY, config
from tests.support.waiting import wait_for
from tests.unit.documents import identity, kept
from tests.unit.processes import family
from tests.unit.test_service import order

#: The last commit of the last release.
RELEASE = "a64e64e"

#: What an executor of the release does: it orders a run that fails early, and prints how its end reads.
EXECUTOR = """
import dataclasses, sys, time, orjson, air_executor
from air_executor.config import Config
from air_executor.launcher.client import LocalBackend
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import Identity, queued
from air_executor.runs.store import RunStore

assert air_executor.__file__.startswith(sys.argv[1])
known = {each.name for each in dataclasses.fields(Config)}
options = Config.from_json(orjson.dumps({k: v for k, v in orjson.loads(sys.argv[2]).items() if k in known}).decode())
store = RunStore(options.state_dir)
backend = LocalBackend(store, options)
who = Identity(**orjson.loads(sys.argv[3]))
record = queued("00000000-0000-4000-8000-000000000001", who, limits={}, log_file=None)
backend.start(RunRequest(id=record.id, identity=who, workload={}), record)
deadline = time.monotonic() + 100
while not (ended := backend.ended()) and time.monotonic() < deadline:
    time.sleep(0.05)
print(ended[0].id, ended[0].state.value, ended[0].reason)
"""

#: What a reader of the release finds.
READER = """
import sys
from air_executor.runs.store import RunStore
store = RunStore(sys.argv[1])
print(*sorted(f"{one.id} {one.state.value}" for one in store.records()), sep="\\n")
print(len(store.unreadable()))
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: RunStore) -> Iterator[None]:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STATE_DIR", str(store.root))
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__LAUNCH", "exec")
    with family():
        yield


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as it was released."""
    done = subprocess.run(["git", "archive", RELEASE, "air_executor"], cwd=REPOSITORY, capture_output=True)
    if done.returncode:
        pytest.skip(f"there is no history here: {done.stderr.decode()}")
    folder = tmp_path_factory.mktemp("released")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run_released(released: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start Python with the released package."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(released)}
        return subprocess.Popen(
            [sys.executable, *arguments], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )

    return start


def test_a_launcher_of_the_last_release_executes_what_this_executor_orders(
    store: RunStore, tmp_path: Path, run_released: Callable[..., subprocess.Popen[str]]
) -> None:
    service = run_released("-m", "air_executor.cli", "launcher")
    backend = LocalBackend(config(store.root, launcher="service"))
    run_id = order(backend, tmp_path / "log")
    (ended,) = wait_for(backend.take_ends, "the end of the run")
    assert (ended.id, ended.state) == (run_id, RunState.FAILED)
    assert "not a workload" in (ended.reason or "")
    status = wait_for(lambda: control.status(service_address(store)), "the service to answer")
    assert (status["pid"], status.get("protocol")) == (service.pid, None)
    backend.close()


def test_this_launcher_executes_what_an_executor_of_the_last_release_orders(
    store: RunStore, released: Path, run_released: Callable[..., subprocess.Popen[str]]
) -> None:
    with subprocess.Popen([sys.executable, "-m", "air_executor.cli", "launcher"]) as service:
        try:
            wait_for(lambda: control.status(service_address(store)), "the service")
            options = config(store.root, launcher="service").to_json()
            who = orjson.dumps(vars(identity())).decode()
            executor = run_released("-c", EXECUTOR, str(released), options, who)
            said = executor.communicate(timeout=120)[0].split(maxsplit=2)
            assert said[:2] == ["00000000-0000-4000-8000-000000000001", "failed"]
            assert "not a workload" in said[2]
            assert store.read(said[0]).state is RunState.FAILED
        finally:
            service.terminate()


def test_each_reads_the_records_of_the_other(
    store: RunStore, run_released: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if this release had a field more.
    monkeypatch.setattr("air_executor.runs.record._LATER", ("task_pid",))
    ours = [kept(store, state, task_pid=5) for state in RunState]
    reader = run_released("-c", READER, str(store.root))
    *found, unreadable = reader.communicate(timeout=120)[0].splitlines()
    assert found == sorted(f"{one.id} {one.state.value}" for one in ours)
    assert unreadable == "0"
    assert sorted(store.records(), key=lambda one: one.id) == sorted(ours, key=lambda one: one.id)


def said_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what AirExecutor has logged."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("air_executor")]


# A launcher that this executor can't talk to: only a protocol that there is not yet has such ones.


class Stranger:
    """A launcher of another version, as far as it is needed to be one: the service, if no address is given."""

    def __init__(self, store: RunStore, address: Address | None = None, **hello: Any) -> None:
        self._listener = protocol.listen((address or service_address(store)).socket)
        self._hello = {"type": "hello", "pid": os.getpid(), "runners": 0, "clients": 1, **hello}
        self.decoder = protocol.Decoder()

    def greet(self) -> None:
        self._listener.settimeout(60)
        self.connection, _ = self._listener.accept()
        self.connection.sendall(protocol.encode(self._hello))
        self.connection.setblocking(False)

    def heard(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        try:
            while data := self.connection.recv(1 << 16):
                messages += self.decoder.feed(data)
        except BlockingIOError:
            pass
        return messages

    def leave(self) -> None:
        self._listener.close()
        self.connection.close()


@pytest.mark.parametrize(
    ("hello", "remedy"),
    [
        ({"version": "9.0", "protocol": 99, "understands": 98}, "restart the scheduler"),
        ({"version": "9.0", "protocol": 99}, "restart the scheduler"),
        ({"version": "0.0", "protocol": 0, "understands": 0}, "restart the launcher"),
    ],
)
def test_what_a_launcher_of_another_protocol_would_misunderstand_waits_for_another(
    store: RunStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, hello: dict[str, Any], remedy: str
) -> None:
    stranger = Stranger(store, **hello)
    backend = LocalBackend(config(store.root, launcher="service"))
    run_id = order(backend, tmp_path / "log")
    stranger.greet()
    wait_for(lambda: backend.take_ends() or said_in(caplog), "the mismatch to be noticed")
    [said] = said_in(caplog)
    assert remedy in said
    assert stranger.heard() == []
    assert backend.take_ends() == []
    assert store.read(run_id).state is RunState.QUEUED
    stranger.leave()
    friend = Stranger(store, protocol=protocol.VERSION)
    wait_for(lambda: backend.take_ends() or backend._launchers.current, "the other launcher to be found")
    friend.greet()
    [message] = wait_for(lambda: backend.take_ends() or friend.heard(), "the order")
    assert (message["type"], message["request"]["id"]) == ("start", run_id)
    friend.leave()
    backend.close()


def test_doctor_says_which_side_to_restart(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"key": "service", "pid": 1, "runners": 0, "version": "9.0", "protocol": 99}
    monkeypatch.setattr(doctor, "launchers", lambda _: [answer])
    check = doctor._launchers(store, None)
    assert not check.ok
    assert "the launcher is of AirExecutor 9.0 (protocol 99)" in check.found
    assert check.remedy.startswith("Restart the scheduler")


def test_a_newer_launcher_that_understands_this_executor_gets_orders() -> None:
    newer = {"protocol": protocol.VERSION + 5, "understands": protocol.VERSION, "more": [1]}
    assert protocol.objection(newer) is None
    assert protocol.objection({}) is None, "the last release tells no number"


@pytest.mark.parametrize(
    ("hello", "expected"),
    [
        ({"protocol": protocol.VERSION}, [{"type": "keep", "keep_days": 2.0, "keep_runs": 5, "keep_jobs": 6}]),
        ({"protocol": 2}, []),
        ({}, []),
    ],
)
def test_who_starts_with_other_options_of_pruning_says_so_to_a_launcher_that_understands_it(
    store: RunStore, hello: dict[str, Any], expected: list[dict[str, Any]]
) -> None:
    options = config(store.root, keep_days=2.0, keep_runs=5, keep_jobs=6)
    launcher = Stranger(store, address=address(store, options), **hello)
    backend = LocalBackend(options)
    backend.warm_up()
    launcher.greet()
    wait_for(
        lambda: backend.take_ends() or (backend._launchers.current and backend._launchers.current.launcher),
        "the greeting to be read",
    )
    assert launcher.heard() == expected
    backend.close()
    launcher.leave()


def test_a_request_with_fields_that_are_not_known_here_is_taken(store: RunStore, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "air_executor.cli", "launcher"]) as service:
        wait_for(lambda: control.status(service_address(store)), "the service")
        record = queued(os.urandom(16).hex(), identity(), limits={}, log_file=None)
        store.create(record)
        who = {**vars(record.identity), "planet": "Mars"}
        request = {"id": record.id, "identity": who, "workload": {}, "colour": "red"}
        with protocol.connect(service_address(store).socket) as connection:
            connection.settimeout(60)
            connection.sendall(protocol.encode({"type": "start", "request": request, "mood": "good"}))
            wait_for(lambda: store.read(record.id).state.is_end, "the run's end")
        assert "not a workload" in (store.read(record.id).reason or "")
        service.terminate()
