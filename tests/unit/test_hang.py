"""Orders have a deadline: launchers that hang are noticed and replaced, and nothing of what they have is lost."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from air_executor.launcher import protocol
from air_executor.launcher.address import service_address
from air_executor.launcher.client import control, dispatcher, link, restarts
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.processes import is_alive, wait_for_death
from tests.unit.test_launcher import Bench, _home, bench  # noqa: F401 (fixtures)
from tests.unit.test_service import order
from tests.unit.test_versions import Stranger, said_in


def has_said_hello(backend: LocalBackend) -> bool:
    link = backend._launchers.current
    return link is not None and bool(link.launcher)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of a second instead of many."""
    for module in (link, dispatcher, restarts):
        monkeypatch.setattr(module, "QUIET_S", 1.0)
    for module in (link, restarts):
        monkeypatch.setattr(module, "ANSWER_S", 1.0)
    monkeypatch.setattr(link, "START_S", 60.0)


@pytest.mark.usefixtures("hasty")
def test_a_launcher_that_is_frozen_is_killed_and_replaced_and_its_runs_go_on(
    bench: Bench,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = bench.backend()
    first = bench.start(backend, bench.waiting())
    running = bench.wait_for_state(backend, first, RunState.STARTING)
    frozen = bench.status()["pid"]
    os.kill(frozen, signal.SIGSTOP)
    second = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, second, RunState.STARTING)
    wait_for_death(frozen)
    assert bench.status()["pid"] != frozen
    assert running.pid and is_alive(running.pid)
    [said] = [text for each in caplog.records if f"(pid {frozen})" in (text := each.getMessage())]
    assert "hangs: it does not answer, and is killed" in said
    for request in (first, second):
        backend.stop(request.id, "enough")
        record = bench.end_of(backend, request)
        assert (record.state, record.reason) == (RunState.KILLED, "stopped: enough")


@pytest.mark.usefixtures("hasty")
def test_the_ends_of_runs_of_a_frozen_launcher_are_told_though_nothing_is_ordered(bench: Bench) -> None:  # noqa: F811
    backend = bench.backend()
    request = bench.start(backend, bench.waiting())
    running = bench.wait_for_state(backend, request, RunState.STARTING)
    os.kill(bench.status()["pid"], signal.SIGSTOP)
    os.kill(running.pid or 0, signal.SIGTERM)
    assert bench.end_of(backend, request).state is RunState.KILLED


@pytest.mark.usefixtures("hasty")
def test_another_executor_whose_launcher_was_frozen_before_it_came_gets_a_new_one(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench.backend().warm_up()
    frozen = bench.status()["pid"]
    os.kill(frozen, signal.SIGSTOP)
    monkeypatch.setattr(link, "START_S", 1.0)  # it does not even say hello
    heir = bench.backend()
    request = bench.start(heir, bench.request())
    monkeypatch.setattr(link, "START_S", 60.0)
    wait_for(lambda: heir.take_ends() or not is_alive(frozen), "the frozen launcher to be given up")
    bench.end_of(heir, request)


def test_a_launcher_gets_its_time_to_answer_after_a_pause_of_the_whole_machine(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Stranger(store, protocol=protocol.VERSION)
    backend = LocalBackend(config(store.root, launcher="service"))
    run_id = order(backend, tmp_path / "log")
    stranger.greet()
    wait_for(lambda: backend.take_ends() or stranger.heard(), "the order")
    slept_s = 0.0
    monkeypatch.setattr(
        "air_executor.machine.awake.time", SimpleNamespace(monotonic=lambda: time.monotonic() + slept_s)
    )
    for _ in range(3):
        slept_s += 3600.0
        backend.take_ends()
    assert not said_in(caplog)
    slept_s += 3600 * 24
    for _ in range(4):
        slept_s += 5.0
        assert backend.take_ends() == []
    [question] = wait_for(stranger.heard, "the question")
    assert question == {"type": "status"}
    stranger.connection.sendall(protocol.encode({"type": "status", "waiting": 1}))
    slept_s += 3600.0
    assert backend.take_ends() == []
    assert not said_in(caplog)
    assert store.read(run_id).state is RunState.QUEUED
    stranger.leave()
    backend.close()


def test_a_launcher_that_still_begins_is_not_taken_for_one_that_hangs_however_much_is_ordered(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Stranger(store, protocol=protocol.VERSION)
    backend = LocalBackend(config(store.root, launcher="service"))
    passed_s = 0.0
    monkeypatch.setattr(
        "air_executor.machine.awake.time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed_s)
    )
    run_id = order(backend, tmp_path / "log")
    for _ in range(int((link.QUIET_S + link.ANSWER_S) // 5) + 2):
        passed_s += 5.0
        assert backend.take_ends() == []
    assert not said_in(caplog)
    stranger.greet()
    [message] = wait_for(lambda: backend.take_ends() or stranger.heard(), "the order")
    assert (message["type"], message["request"]["id"]) == ("start", run_id)
    assert not said_in(caplog)
    stranger.leave()
    backend.close()


@pytest.mark.usefixtures("hasty")
def test_an_order_that_got_lost_in_a_launcher_that_works_is_given_again(store: RunStore, tmp_path: Path) -> None:
    stranger = Stranger(store, protocol=protocol.VERSION)
    backend = LocalBackend(config(store.root, launcher="service"))
    run_id = order(backend, tmp_path / "log")
    stranger.greet()
    [first] = wait_for(lambda: backend.take_ends() or stranger.heard(), "the order")
    [question] = wait_for(lambda: backend.take_ends() or stranger.heard(), "the question")
    assert question == {"type": "status"}
    stranger.connection.sendall(protocol.encode({"type": "status", "waiting": 0}))
    assert wait_for(lambda: backend.take_ends() or stranger.heard(), "the order again") == [first]
    assert first["request"]["id"] == run_id
    stranger.leave()
    backend.close()


@pytest.mark.usefixtures("hasty")
def test_a_service_that_hangs_is_said_so_is_not_killed_and_makes_up_for_it(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STATE_DIR", str(store.root))
    with subprocess.Popen([sys.executable, "-m", "air_executor.cli", "launcher"]) as service:
        status = wait_for(lambda: control.status(service_address(store)), "the service")
        backend = LocalBackend(config(store.root, launcher="service"))
        backend.warm_up()
        wait_for(lambda: backend.take_ends() or has_said_hello(backend), "the launcher's hello")
        os.kill(status["pid"], signal.SIGSTOP)
        run_id = order(backend, tmp_path / "log")
        wait_for(lambda: backend.take_ends() or said_in(caplog), "the launcher to be said to hang")
        [said] = said_in(caplog)
        assert "hangs: it does not answer. What is ordered waits" in said
        assert is_alive(status["pid"])
        os.kill(status["pid"], signal.SIGCONT)
        (ended,) = wait_for(backend.take_ends, "the end of the run")
        assert (ended.id, ended.state) == (run_id, RunState.FAILED)
        backend.close()
        service.terminate()


@pytest.fixture
def full(store: RunStore) -> Iterator[Callable[[Path], socket.socket]]:
    """Listen somewhere, and take no more connections."""
    made: list[socket.socket] = []

    def listen(path: Path) -> socket.socket:
        path.parent.mkdir(parents=True, exist_ok=True)
        listener = protocol.listen(path)
        listener.listen(0)
        made.extend([listener, protocol.connect(path)])
        return listener

    yield listen
    for each in made:
        each.close()


def test_connecting_to_a_launcher_whose_queue_is_full_takes_a_moment(
    tmp_path: Path, full: Callable[[Path], socket.socket]
) -> None:
    listener = full(tmp_path / "s")
    with pytest.raises(TimeoutError, match="takes no connections"):
        protocol.connect(tmp_path / "s")
    listener.accept()[0].close()
    protocol.connect(tmp_path / "s").close()


@pytest.mark.usefixtures("hasty")
def test_a_launcher_whose_queue_is_full_has_not_died_and_is_replaced_when_that_lasts(
    bench: Bench,  # noqa: F811
    full: Callable[[Path], socket.socket],
) -> None:
    backend = bench.backend()
    full(backend._launchers.address.socket)
    request = bench.start(backend, bench.request())
    assert backend._dispatcher._restarts._deaths == 0
    record = bench.end_of(backend, request)
    assert "'memory'" in (record.reason or ""), "the run was executed"


def test_orders_go_as_fast_as_the_launcher_takes_them_not_only_once_a_loop(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = Stranger(store, protocol=protocol.VERSION)
    backend = LocalBackend(config(store.root, launcher="service"))
    backend.warm_up()
    stranger.greet()
    wait_for(lambda: backend.take_ends() or has_said_hello(backend), "the launcher's hello")
    ordered = {order(backend, tmp_path / ("x" * 2000)) for _ in range(300)}
    poll = select.poll()
    poll.register(backend.fileno() or -1, select.POLLIN)
    arrived: list[Any] = []
    monkeypatch.setattr(backend, "take_ends", lambda: pytest.fail("that is once a loop"))
    while len(arrived := arrived + stranger.heard()) < len(ordered):
        assert poll.poll(60_000), "nothing tells that more can be sent"
        backend.has_news()
    assert {message["request"]["id"] for message in arrived} == ordered
    stranger.connection.setblocking(True)
    assert not poll.poll(0), "nothing is to be told, and nobody is woken"
    stranger.leave()
    backend.close()


def test_a_process_that_is_no_launcher_is_never_killed(bench: Bench) -> None:  # noqa: F811
    backend = bench.backend()
    backend.warm_up()
    assert backend._launchers.current is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        backend._launchers.current.note_process(innocent.pid)
        assert not backend._launchers.current.kill()
        assert psutil.Process(innocent.pid).is_running()
        innocent.kill()
