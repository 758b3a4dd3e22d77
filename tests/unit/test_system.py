"""What the operating system is asked for to hold processes."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from air_executor.machine import system
from tests.support.waiting import wait_for
from tests.unit.processes import changed_descriptors, forked, is_alive, result_of, wait_for_death

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen(SLEEPER)
    yield process.pid
    process.kill()
    process.wait()


# Which process it is


def test_a_process_is_told_by_its_pid_and_its_start(sleeper: int) -> None:
    started = system.start_time(sleeper)
    assert started is not None
    assert system.is_process(sleeper, started)
    assert not system.is_process(sleeper, started - 1)
    assert not system.is_process(sleeper, started + 1)
    assert not system.is_process(sleeper, None)


def test_a_process_that_is_gone_is_none() -> None:
    pid, started = result_of(lambda: [os.getpid(), system.start_time(os.getpid())])
    assert system.start_time(pid) is None
    assert not system.is_process(pid, started)
    assert not system.signal_process(pid, started, signal.SIGKILL)
    assert system.open_pidfd(pid) is None


def test_a_process_is_signalled_and_it_is_said_so(sleeper: int) -> None:
    assert system.signal_process(sleeper, system.start_time(sleeper), signal.SIGTERM)
    wait_for_death(sleeper)


@pytest.mark.parametrize("wrong_by_s", [-1000.0, -1.0, 1.0, None])
def test_a_process_that_has_the_pid_of_another_is_never_signalled(sleeper: int, wrong_by_s: float | None) -> None:
    started = system.start_time(sleeper)
    assert started is not None
    wrong = None if wrong_by_s is None else started + wrong_by_s
    assert not system.signal_process(sleeper, wrong, signal.SIGKILL)
    # A signal would have been delivered before the next one, which the process does heed.
    assert is_alive(sleeper)
    assert system.signal_process(sleeper, started, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(sleeper, 0)[1]) == -signal.SIGTERM


def test_signalling_leaves_no_descriptor(sleeper: int) -> None:
    def send_signals() -> None:
        system.signal_process(sleeper, None, signal.SIGTERM)
        system.signal_process(sleeper, system.start_time(sleeper), signal.SIGCONT)

    assert changed_descriptors(send_signals) == []


def test_the_boot_has_an_id_that_all_processes_share() -> None:
    assert system.boot_id()
    asked = [sys.executable, "-c", "from air_executor.machine import system; print(system.boot_id())"]
    assert subprocess.check_output(asked, text=True).strip() == system.boot_id()


# Who dies with whom


def test_a_child_that_wants_it_dies_with_its_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def have_a_child() -> None:
        parent = os.getpid()
        if not os.fork():
            system.die_with_parent(parent)
            (tmp_path / "part").write_text(str(os.getpid()))
            (tmp_path / "part").rename(note)
            while True:
                signal.pause()
        wait_for(note.exists, "the child")

    with forked(have_a_child) as parent:
        child = int(note.read_text())
        assert is_alive(child)
        os.kill(parent, signal.SIGKILL)
        wait_for_death(child)


def test_a_child_whose_parent_is_dead_already_dies_at_once() -> None:
    pid = os.fork()
    if not pid:
        system.die_with_parent(os.getpid())  # that is not its parent: as if the parent had changed
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGKILL


def test_signals_wait_until_they_are_released_and_others_stay_as_they_were() -> None:
    def work() -> list[Any]:
        heard: list[int] = []
        signal.signal(signal.SIGUSR1, lambda signum, _: heard.append(signum))
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR2})
        with system.signals_held({signal.SIGUSR1}) as release:
            os.kill(os.getpid(), signal.SIGUSR1)
            states = [list(heard)]
            release()
            states.append(list(heard))
            os.kill(os.getpid(), signal.SIGUSR1)
        with contextlib.suppress(ValueError), system.signals_held({signal.SIGUSR1}):
            raise ValueError
        return [*states, heard, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))]

    usr1 = signal.SIGUSR1
    assert result_of(work) == [[], [usr1], [usr1, usr1], [signal.SIGUSR2]]


def test_what_is_printed_where_no_room_is_left_is_lost_and_no_more() -> None:
    def print_to_a_full_disk() -> str:
        with Path("/dev/full").open("wb", buffering=0) as full:
            os.dup2(full.fileno(), 1)
            os.dup2(full.fileno(), 2)
        system.outlive_full_disks()
        print("lost", flush=True)
        print("lost", file=sys.stderr, flush=True)
        read, write = os.pipe()
        os.dup2(write, 1)
        print("kept ü", flush=True)
        return os.read(read, 100).decode()

    assert result_of(print_to_a_full_disk) == "kept ü\n"


# Memory


def test_memory_moves_into_huge_pages_and_is_the_same() -> None:
    size = 16 << 20

    def huge_kb() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))

    def move() -> list[Any]:
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
            for offset in range(0, size, 4096):
                own[offset : offset + 4] = offset.to_bytes(4, "little")
            before = huge_kb()
            system.use_huge_pages()
            same = all(own[offset : offset + 4] == offset.to_bytes(4, "little") for offset in range(0, size, 4096))
            return [same, huge_kb() - before]

    same, more_kb = result_of(move)
    assert same
    # Older kernels can't be asked for it, and it may be turned off.
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 1) and "[never]" not in THP.read_text():
        assert more_kb >= size // 1024 // 2


# The other end


def test_the_user_at_the_other_end_of_a_socket_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert system.peer(one) == system.Peer(os.getpid(), os.geteuid())


def test_a_pidfd_tells_the_end_of_a_process(sleeper: int) -> None:
    import select

    fd = system.open_pidfd(sleeper)
    assert fd is not None
    try:
        assert select.select([fd], [], [], 0)[0] == []
        os.kill(sleeper, signal.SIGKILL)
        assert select.select([fd], [], [], 30)[0] == [fd]
    finally:
        os.close(fd)


def test_start_times_of_one_process_agree_among_all_who_ask(sleeper: int) -> None:
    started = system.start_time(sleeper)
    seen_by_another = result_of(lambda: system.start_time(sleeper))
    assert system.is_process(sleeper, seen_by_another)
    assert started is not None
    assert started <= time.time() + 1


def test_a_machine_is_crowded_while_more_processes_want_to_run_than_it_has_cpus() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1) + 2)]
    try:
        wait_for(system.is_crowded, "all of them to run at the same time", 60)
    finally:
        for process in busy:
            process.kill()
            process.wait()
