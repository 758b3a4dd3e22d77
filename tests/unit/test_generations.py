"""A launcher that serves prepares nothing: a successor does, and takes over when it is ready."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from air_executor.cli import doctor
from air_executor.launcher import protocol
from air_executor.launcher.address import Address, all_addresses, service_address
from air_executor.launcher.client import control
from air_executor.launcher.server import succession
from air_executor.launcher.server.succession import Succession
from air_executor.observe import metrics
from air_executor.observe.check import Check
from air_executor.observe.everywhere import AllRuns
from air_executor.runs.backend import LauncherCounts, RunRequest
from air_executor.runs.record import RunState
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.processes import is_alive, wait_for_death
from tests.unit.test_launcher import Bench, _home, bench  # noqa: F401 (fixtures)

# Launchers of jobs are warm at once; what they do with each other is the same.
WARM = {"launch": "fork", "serves": "jobs"}


def status_at(address: Address) -> dict[str, Any]:
    return wait_for(lambda: control.status(address), "the launcher to answer")


def renew(address: Address) -> int:
    """Have the launcher of an address succeeded, and return the successor's pid."""
    former = status_at(address)["pid"]
    os.kill(former, signal.SIGUSR2)
    return wait_for(lambda: pid if (pid := status_at(address)["pid"]) != former else None, "the successor to take over")


def running(bench: Bench, backend: Any) -> RunRequest:  # noqa: F811
    request = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, request, RunState.STARTING)
    return request


def test_new_orders_go_to_the_successor_and_the_former_launcher_ends_with_its_last_run(bench: Bench) -> None:  # noqa: F811
    backend = bench.backend(**WARM)
    old = running(bench, backend)
    address = backend._launchers.address
    first = status_at(address)["pid"]
    second = renew(address)
    wait_for(lambda: backend.take_ends() or backend._launchers.former, "the executor to hear of it")
    new = running(bench, backend)
    assert psutil.Process(bench.store.read(old.id).pid or 0).ppid() == first
    assert psutil.Process(bench.store.read(new.id).pid or 0).ppid() == second
    assert sorted(status_at(each)["pid"] for each in all_addresses(bench.store)) == sorted([first, second])
    wait_for(lambda: backend.take_ends() or backend.launchers().generations == 2, "both to have been met")
    assert backend.launchers() == LauncherCounts(live=2, generations=2)
    lines = {"air_executor_launchers 2", "air_executor_launchers_superseded 1"}

    def counted() -> str:
        return metrics.text(AllRuns(bench.store.root))

    wait_for(lambda: lines <= set(counted().splitlines()), "both to be counted", seen=counted)
    backend.stop(old.id, "enough of the old")
    assert bench.end_of(backend, old).reason == "stopped: enough of the old"
    wait_for_death(first)
    wait_for(lambda: backend.take_ends() or not backend._launchers.former, "the connection to be let go")
    assert all_addresses(bench.store) == [address]
    backend.kill(new.id)
    assert bench.end_of(backend, new).state is RunState.KILLED
    assert status_at(address)["pid"] == second
    assert status_at(address)["troubles"] == []


def test_the_runs_of_former_launchers_are_told_and_stopped_for_who_comes_later(bench: Bench) -> None:  # noqa: F811
    backend = bench.backend(**WARM)
    old = running(bench, backend)
    renew(backend._launchers.address)
    backend.close()
    heir = bench.backend(**WARM)
    heir.warm_up()
    heir.follow(bench.store.read(old.id))
    wait_for(lambda: heir.take_ends() or not heir._followed.unattended, "a launcher to tell of the run")
    heir.stop(old.id, "inherited")
    assert bench.end_of(heir, old).reason == "stopped: inherited"


def test_three_generations_at_once_leave_each_other_alone(bench: Bench) -> None:  # noqa: F811
    backend = bench.backend(**WARM)
    old = running(bench, backend)
    first = status_at(backend._launchers.address)["pid"]
    second = renew(backend._launchers.address)
    third = renew(backend._launchers.address)
    wait_for_death(second)
    # What is left of a runner is cleared away: its launcher's child of before is no such thing.
    os.kill(bench.store.read(old.id).pid or 0, signal.SIGKILL)
    assert bench.end_of(backend, old).state is RunState.KILLED
    wait_for_death(first)
    assert is_alive(third)
    launchers = backend._launchers

    def is_known() -> bool:
        return bool(backend.take_ends()) or (launchers.current is not None and launchers.current.pid == third)

    wait_for(is_known, "the executor to hear of it")
    new = running(bench, backend)
    assert psutil.Process(bench.store.read(new.id).pid or 0).ppid() == third


def test_an_idle_launcher_with_a_successor_ends_at_once_and_no_order_is_lost(bench: Bench) -> None:  # noqa: F811
    backend = bench.backend(**WARM)
    backend.warm_up()
    first = status_at(backend._launchers.address)["pid"]
    os.kill(first, signal.SIGUSR2)
    requests = []
    while not requests or is_alive(first):
        requests.append(bench.start(backend, bench.request()))
        ended = wait_for(backend.take_ends, "the run's end")
        assert [record.id for record in ended] == [requests[-1].id]
        assert "'memory'" in (ended[0].reason or "")


SABOTAGE = """
import os, sys
if "air_executor.launcher" in ' '.join(sys.orig_argv) and os.path.exists({flag!r}):
    sys.exit("no successor today")
"""


def test_a_launcher_whose_successor_dies_serves_on_and_says_so(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flag = tmp_path / "flag"
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    backend = bench.backend(**WARM)
    old = running(bench, backend)
    first = status_at(backend._launchers.address)["pid"]
    flag.touch()
    os.kill(first, signal.SIGUSR2)
    [trouble] = wait_for(lambda: status_at(backend._launchers.address)["troubles"], "the failure to be said")
    assert "a successor was given up (it died); the next is tried after 60 s" in trouble

    def diagnosis() -> Check | None:
        check = doctor._launchers(bench.store, None)
        return check if trouble in check.found else None

    check = wait_for(diagnosis, "doctor to tell of it", seen=lambda: doctor._launchers(bench.store, None))
    assert not check.ok
    assert str(backend._launchers.address.log) in check.remedy
    assert "no successor today" in backend._launchers.address.log.read_text()
    new = running(bench, backend)
    for request in (old, new):
        backend.stop(request.id, "enough")
        bench.end_of(backend, request)
    flag.unlink()
    assert renew(backend._launchers.address) != first


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Succession]:
    """A succession whose successors do nothing."""
    monkeypatch.setattr(succession, "module_command", lambda _: [sys.executable, "-c", "import signal; signal.pause()"])
    yield Succession(Address("k", tmp_path), config(tmp_path))


def test_a_successor_that_takes_too_long_is_killed_and_the_next_waits_longer_each_time(
    slow: Succession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(succession, "_READY_S", 0.0)
    watched = []
    with protocol.listen(tmp_path / "s") as listener:
        for wait_s in (60.0, 120.0, 240.0):
            slow.wish(now=True)
            slow.look(listener, watched.append)
            pid = slow.pid
            slow.look(listener, watched.append)
            assert not slow.hear()
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            slow.reaped(pid)
            assert f"not ready after 0 s); the next is tried after {wait_s:g} s" in (slow.trouble() or "")
            assert wait_s - 60 < (slow.due_in_s() or 0) <= wait_s
    assert len(watched) == 3


def test_what_is_wished_for_several_times_gives_one_successor(slow: Succession, tmp_path: Path) -> None:
    assert slow.due_in_s() is None
    watched = []
    with protocol.listen(tmp_path / "s") as listener:
        for _ in range(3):
            slow.wish()
            slow.look(listener, watched.append)
        assert watched == []
        assert (slow.due_in_s() or 0) > 1
        slow.wish(now=True)
        for _ in range(3):
            slow.look(listener, watched.append)
    assert len(watched) == 1
    os.kill(slow.pid, signal.SIGKILL)
    os.waitpid(slow.pid, 0)
    watched[0].close()


def test_a_service_keeps_its_process_id_over_generations(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STATE_DIR", str(bench.store.root))
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__LAUNCH", "exec")
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__GPUS", "0")
    address = service_address(bench.store)
    with subprocess.Popen([sys.executable, "-m", "air_executor.cli", "launcher"]) as service:
        assert status_at(address)["pid"] == service.pid
        backend = bench.backend("exec", launcher="service")
        old = running(bench, backend)
        second = renew(address)
        assert service.poll() is None
        backend.stop(old.id, "enough")
        bench.end_of(backend, old)
        wait_for(lambda: "keeper" in str(cmdline(service.pid)), "the first launcher to become the keeper")
        new = running(bench, backend)
        service.send_signal(signal.SIGUSR2)
        third = wait_for(
            lambda: pid if (pid := status_at(address)["pid"]) != second else None, "the third to take over"
        )
        assert service.poll() is None
        service.send_signal(signal.SIGTERM)
        assert service.wait(120) == 0
        assert not is_alive(second)
        assert not is_alive(third)
        assert not address.socket.exists()
        backend.stop(new.id, "enough")
        bench.end_of(backend, new)


def test_a_service_whose_last_launcher_dies_has_died(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STATE_DIR", str(bench.store.root))
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__LAUNCH", "exec")
    with subprocess.Popen([sys.executable, "-m", "air_executor.cli", "launcher"]) as service:
        second = renew(service_address(bench.store))
        wait_for(lambda: "keeper" in str(cmdline(service.pid)), "the first launcher to become the keeper")
        os.kill(second, signal.SIGKILL)
        assert service.wait(120) == 1


def cmdline(pid: int) -> list[str]:
    return psutil.Process(pid).cmdline()
