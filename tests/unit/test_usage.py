"""What a task and its descendants use together, with real processes: each test's child is the runner of one task."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from air_executor.machine import family, rollup, system
from air_executor.machine.family import Family
from air_executor.machine.leftovers import Leftovers
from air_executor.machine.rollup import Rollup, Views
from air_executor.runner.usage import Usage
from air_executor.runs.limits import parse
from tests.support.waiting import wait_for
from tests.unit.processes import forked, reap, result_of

MIB = 1 << 20

Say = Callable[[], Any]

#: Root may look into every process; others not into private ones, which task processes are.
as_root_and_others = pytest.mark.parametrize("user", [0, 12345])


def hold(mebibytes: int) -> mmap.mmap:
    """Return private memory of this size, filled."""
    memory = mmap.mmap(-1, mebibytes * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fill(memory)
    return memory


def fill(memory: Any) -> None:
    for offset in range(0, len(memory), mmap.PAGESIZE):
        memory[offset] = 1


def read(memory: Any) -> int:
    return sum(memory[offset] for offset in range(0, len(memory), mmap.PAGESIZE))


def fork(count: int, work: Callable[[], Any], say: Say) -> None:
    """Fork this many children that do ``work``, say so, and stay."""
    for _ in range(count):
        if not os.fork():
            try:
                held = work()
                say()
                while True:
                    signal.pause()
                    del held
            finally:
                os._exit(1)


@contextlib.contextmanager
def task(work: Callable[[Say], Any], usage: Usage) -> Iterator[int]:
    """A task process of this one, which is its runner, and where to read what its processes say."""
    system.adopt_orphans()
    said, saying = os.pipe()
    if not os.fork():
        try:
            usage.grant_view()
            held = work(lambda: os.write(saying, b"+"))
            while True:
                signal.pause()
                del held
        finally:
            os._exit(1)
    usage.begin()
    try:
        yield said
    finally:
        Leftovers().end()


def peak(work: Callable[[Say], Any], *, says: int = 1, limit: str = "4GiB", user: int = 0, times: int = 6) -> float:
    """Return the peak in MiB of a task that does ``work``, a while after this many of its processes have said that
    they are there."""

    def run() -> float:
        os.setresuid(user, user, user)
        system.keep_memory_private()
        usage = Usage(parse({"memory": limit}))
        missing, left = says, times
        with task(work, usage) as said:
            while left:
                if missing and select.select([said], [], [], 0.01)[0]:
                    missing -= len(os.read(said, missing))
                if usage.measure() and not missing:
                    left -= 1
                time.sleep(0.01)
        return usage.peak_bytes / MIB

    return float(result_of(run))


# Memory is counted once


@as_root_and_others
@pytest.mark.parametrize("limit", ["400MiB", "4GiB"])
def test_what_forked_children_only_read_is_counted_once(limit: str, user: int) -> None:
    def work(say: Say) -> Any:
        memory = hold(200)
        fork(8, lambda: read(memory), say)
        return memory

    assert 195 < peak(work, says=8, limit=limit, user=user) < 300


@as_root_and_others
def test_what_each_child_holds_is_counted_for_each(user: int) -> None:
    found = peak(lambda say: fork(8, lambda: hold(100), say), says=8, limit="400MiB", user=user)
    assert 790 < found < 980


@as_root_and_others
def test_what_children_make_their_own_is_counted_for_each(user: int) -> None:
    def work(say: Say) -> Any:
        memory = hold(50)
        fork(4, lambda: fill(memory), say)
        return memory

    assert 245 < peak(work, says=4, limit="100MiB", user=user) < 340


@as_root_and_others
@pytest.mark.parametrize("limit", ["400MiB", "4GiB"])
def test_a_shared_segment_is_counted_once(limit: str, user: int) -> None:
    path = Path("/dev/shm", f"air-test-{uuid.uuid4()}")  # which is what shm_open() opens

    def attach() -> Any:
        with path.open("r+b") as file:
            segment = mmap.mmap(file.fileno(), 200 * MIB)
        fill(segment)
        return segment

    def work(say: Say) -> Any:
        with path.open("wb") as file:
            file.truncate(200 * MIB)
        fork(7, attach, say)
        segment = attach()
        say()
        return segment

    try:
        assert 195 < peak(work, says=8, limit=limit, user=user) < 300
    finally:
        path.unlink()


@as_root_and_others
def test_shared_anonymous_memory_is_counted_once(user: int) -> None:
    def work(say: Say) -> Any:
        memory = mmap.mmap(-1, 100 * MIB)
        fork(6, lambda: fill(memory), say)
        return memory

    assert 95 < peak(work, says=6, limit="150MiB", user=user) < 180


@as_root_and_others
@pytest.mark.parametrize("limit", ["10MiB", "4GiB"])
def test_a_task_that_was_born_from_a_big_launcher_begins_near_nothing(limit: str, user: int) -> None:
    ballast = hold(300)  # this process is the launcher
    with forked(lambda: read(ballast)), forked(lambda: read(ballast)):
        assert peak(lambda say: say(), limit=limit, user=user) < 30
        assert peak(lambda say: fork(5, lambda: read(ballast), say), says=5, limit=limit, user=user) < 60


@pytest.mark.parametrize("access", [mmap.ACCESS_READ, mmap.ACCESS_WRITE])
@pytest.mark.parametrize("limit", ["10MiB", "4GiB"])
def test_pages_of_files_are_not_counted(tmp_path: Path, limit: str, access: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(200 * MIB))

    def work(say: Say) -> Any:
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0, access=access)
        (read if access == mmap.ACCESS_READ else fill)(memory)
        say()
        return memory

    assert peak(work, limit=limit) < 30


def test_programs_are_counted_with_all_that_they_hold() -> None:
    program = "import sys; held = b'x' * (100 << 20); print('+', end='', flush=True); sys.stdin.read()"

    def work(say: Say) -> Any:
        started = [
            subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(3)
        ]
        for process in started:
            assert process.stdout is not None
            process.stdout.read(1)
        say()
        return started

    for limit in ("4GiB", "200MiB"):
        assert 300 < peak(work, limit=limit) < 370


def test_what_has_lost_its_parent_is_counted() -> None:
    def work(say: Say) -> Any:
        if not os.fork():
            fork(1, lambda: hold(100), say)
            os._exit(0)

    assert 95 < peak(work, limit="4GiB") < 140
    assert 95 < peak(work, limit="50MiB") < 140


def test_what_is_swapped_out_is_counted() -> None:
    text = b"""55d0-7ffe ---p 00000000 00:00 0    [rollup]
Rss:               1000 kB
Pss:                700 kB
Pss_Dirty:          600 kB
Pss_Anon:           500 kB
Pss_File:           150 kB
Pss_Shmem:           50 kB
Private_Dirty:      400 kB
Anonymous:          600 kB
SwapPss:           3000 kB
"""
    kib = 1024
    assert rollup.parse(text) == Rollup(3550 * kib, 600 * kib, 500 * kib, 300 * kib)
    assert rollup.parse(text.replace(b"Pss_Anon:", b"Pss_None:")) is None
    assert rollup.parse(b"") is None
    assert rollup.parse(b"what\never\n") is None


# Seen by whom


def test_programs_of_a_private_process_are_seen_and_its_forks_show_themselves() -> None:
    def run() -> list[bool]:
        os.setresuid(12345, 12345, 12345)
        system.keep_memory_private()
        usage, views = Usage(parse({"memory": 1})), Views()
        with subprocess.Popen(["sleep", "600"]) as program, task(lambda say: say(), usage) as said:
            assert os.read(said, 1)
            private = next(member.pid for member in Family().look() if member.pid != program.pid)
            seen = [views.look(program.pid) is not None, views.look(private) is not None]
            assert usage._views is not None
            usage._views.receive()
            seen.append(usage._views.look(private) is not None)
            reap(program.pid)
        return seen

    assert result_of(run) == [True, False, True]


def test_what_a_daemon_has_opened_under_the_number_of_our_socket_is_left_alone() -> None:
    def run() -> list[Any]:
        views = Views()
        number = views._sender.fileno()
        views.grant(waits=True)
        os.close(number)
        receiver, sender = socket.socketpair()
        os.dup2(sender.fileno(), number)
        forked_one = os.fork()
        if not forked_one:
            os._exit(0)
        status = os.waitpid(forked_one, 0)[1]
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(1)
        return [status]

    assert result_of(run) == [0]


def test_a_task_can_send_its_runner_what_it_likes() -> None:
    def run() -> int:
        usage = Usage(parse({"memory": 1}))
        assert usage._views is not None
        sender = usage._views._sender
        receiver, _ = os.pipe()  # to read from it would take for ever
        with open(os.devnull) as null:
            socket.send_fds(sender, [b"+"], [receiver, null.fileno()])
        sender.sendall(b"text")
        fds = set(os.listdir("/proc/self/fd"))
        usage._views.receive()
        assert set(os.listdir("/proc/self/fd")) == fds
        return len(usage._views._fds)

    assert result_of(run) == 0


def test_of_forks_that_show_nothing_what_they_add_is_counted_and_the_rest_once() -> None:
    fork_unseen = ctypes.CDLL(None).fork  # Python's hooks do not hear of it

    def run() -> float:
        os.setresuid(12345, 12345, 12345)
        system.keep_memory_private()
        usage = Usage(parse({"memory": "300MiB"}))
        go, going = os.pipe()

        def work(say: Say) -> Any:
            memory = hold(200)
            for _ in range(4):
                if not fork_unseen():
                    say()
                    os.read(go, 1)
                    added = hold(50)
                    say()
                    while True:
                        signal.pause()
                        del added
            return memory

        def reached(mebibytes: int) -> bool:
            return usage.measure() and usage.peak_bytes > mebibytes * MIB

        with task(work, usage) as said:
            missing = 4
            while missing:
                missing -= len(os.read(said, missing))
            wait_for(lambda: reached(195), "it to be clear that the forks show nothing")
            assert usage.peak_bytes < 250 * MIB
            os.write(going, b"++++")
            missing = 4
            while missing:
                missing -= len(os.read(said, missing))
            wait_for(lambda: reached(390), "what the forks have added")
        return usage.peak_bytes / MIB

    assert 390 < float(result_of(run)) < 450


# What looking costs


def test_looking_costs_the_same_whatever_else_the_machine_runs() -> None:
    def opened() -> dict[str, list[str]]:
        """Return which files of the kernel a look opens, by process: the runner, then each that descends from it."""
        paths: list[str] = []

        def audit(event: str, args: Any) -> None:
            if event in ("open", "os.listdir", "os.scandir"):
                paths.append(str(args[0]))

        def run() -> dict[str, list[str]]:
            usage = Usage(parse({"memory": "1GiB", "cpu_time": 60}))
            with task(lambda say: fork(3, lambda: None, say), usage) as said:
                missing = 3
                while missing:
                    missing -= len(os.read(said, missing))
                usage._family.look()  # psutil and others have read by now what they read once
                sys.addaudithook(audit)
                members = usage._family.look()
                looked_at = [path.split("/") for path in paths if path.startswith("/proc")]
            # Each file once: threads, also one that another test has left in this process, have the same.
            numbers = {str(pid): str(number) for number, pid in enumerate([os.getpid(), *(one.pid for one in members)])}
            files: dict[str, set[str]] = defaultdict(set)
            for _root, _proc, pid, *path in looked_at:
                files[numbers.get(pid, f"process {pid}, which is another's")].add(path[-1])
            return {process: sorted(names) for process, names in files.items()}

        return dict(result_of(run))

    alone = opened()
    others = [subprocess.Popen(["sleep", "600"]) for _ in range(500)]
    try:
        assert opened() == alone
        assert alone.keys() == {"0", "1", "2", "3", "4"}
        assert all(2 <= len(files) <= 4 for files in alone.values())
    finally:
        for other in others:
            other.kill()
        for other in others:
            other.wait()


def test_without_lists_of_children_they_are_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "_knows_children", lambda: False)
    assert 95 < peak(lambda say: fork(1, lambda: hold(100), say), limit="4GiB") < 140


# CPU time


def burn(seconds: float) -> None:
    until_s = time.process_time() + seconds
    while time.process_time() < until_s:
        pass


@as_root_and_others
def test_cpu_time_is_of_the_living_the_ended_and_the_orphans_once_each(user: int) -> None:
    def work(say: Say) -> None:
        ended = os.fork()
        if not ended:
            burn(0.5)
            os._exit(0)
        os.waitpid(ended, 0)
        between = os.fork()
        if not between:
            fork(1, lambda: burn(0.5), say)  # it comes to the runner
            os._exit(0)
        os.waitpid(between, 0)
        fork(1, lambda: burn(0.5), say)
        burn(0.5)
        say()

    def run() -> float:
        os.setresuid(user, user, user)
        burn(0.3)
        before = os.fork()  # what the runner did before counts for nobody
        if not before:
            burn(0.5)
            os._exit(0)
        os.waitpid(before, 0)
        usage = Usage(parse({"cpu_time": 60}))
        with task(work, usage) as said:
            missing = 3
            while missing:
                missing -= len(os.read(said, missing))
            wait_for(usage.measure, "a look at the task")
            one = usage.cpu_time_s
            wait_for(usage.measure, "another look at it")
            assert usage.cpu_time_s - one < 0.3
            return usage.cpu_time_s

    assert 1.95 < float(result_of(run)) < 2.6


def test_cpu_time_of_a_task_that_has_ended_and_was_waited_for_still_counts() -> None:
    def run() -> float:
        usage = Usage(parse({"cpu_time": 60}))
        usage.begin()
        pid = os.fork()
        if not pid:
            burn(0.5)
            os._exit(0)
        os.waitpid(pid, 0)
        assert usage.measure()
        return usage.cpu_time_s

    assert 0.5 <= float(result_of(run)) < 0.95


def test_without_a_limit_nothing_is_looked_at() -> None:
    usage = Usage(parse({"timeout": 5}))
    usage.begin()
    assert usage.due_s() is None
    assert not usage.measure()
    assert (usage.peak_bytes, usage.cpu_time_s) == (0, 0.0)
