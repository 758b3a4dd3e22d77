"""The processes of a run: told from all others, and ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from air_executor.machine import children, processes, system
from air_executor.machine.leftovers import Leftovers
from tests.support.machine import needs_root
from tests.support.waiting import wait_for
from tests.unit.processes import is_alive, reap, result_of

#: From <linux/sched.h>.
CLONE_NEWNS = 0x00020000

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def killed_children() -> int:
    left = Leftovers()
    left.end()
    return len(left.killed)


# Children


def daemonize(note: Path) -> None:
    """Leave a process behind as a daemon does: its own session, its parent dead, deaf to SIGTERM and SIGHUP."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with note.open("a") as file:
        file.write(f"{os.getpid()}\n")
    while True:
        signal.pause()


def test_everything_below_is_killed_daemons_too(tmp_path: Path) -> None:
    note = tmp_path / "pids"

    def leave_things_behind() -> int:
        system.adopt_orphans()
        daemonize(note)
        daemonize(note)
        subprocess.Popen(SLEEPER, start_new_session=True)
        if not os.fork():  # a child with a child
            daemonize(note)
            with note.open("a") as file:  # only now is the process between it and its daemon gone for certain
                file.write(f"{os.getpid()}\n")
            while True:
                signal.pause()
        wait_for(lambda: note.exists() and len(note.read_text().splitlines()) == 4, "the daemons and the child")
        left = Leftovers()
        left.end()
        killed = len(left.killed)
        left.end()
        assert len(left.killed) == killed
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        return killed

    assert result_of(leave_things_behind) == 5
    for pid in note.read_text().split():
        assert not is_alive(int(pid))


def test_children_that_have_ended_are_reaped_and_not_counted() -> None:
    def leave_zombies() -> int:
        pids = []
        for _ in range(3):
            pid = os.fork()
            if not pid:
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return killed_children()

    assert result_of(leave_zombies) == 0


def test_without_children_there_is_nothing_to_kill() -> None:
    assert result_of(killed_children) == 0


def test_a_child_that_stops_itself_is_killed(tmp_path: Path) -> None:
    def leave_a_stopped_one() -> int:
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        return killed_children()

    assert result_of(leave_a_stopped_one) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make processes of two users")
def test_a_child_of_another_user_neither_stops_nor_fails_the_killing_of_the_others() -> None:
    def leave_one_that_may_not_be_killed() -> list[int]:
        if not (foreign := os.fork()):
            while True:
                signal.pause()
        own = os.fork()
        if not own:
            os.setresuid(12345, 12345, 12345)
            while True:
                signal.pause()
        wait_for(lambda: os.stat(f"/proc/{own}").st_uid == 12345, "the child to be somebody else")
        os.setresuid(12345, 12345, 0)
        try:
            signal.alarm(20)  # its default ends a process that waits for the child it can not kill
            left = Leftovers()
            left.end()
            signal.alarm(0)
            return [is_alive(foreign), is_alive(own)]
        finally:
            os.setresuid(0, 0, 0)
            reap(foreign)
            reap(own)

    assert result_of(leave_one_that_may_not_be_killed) == [True, False]


# Where /proc hides processes


def hide_processes_as_somebody() -> None:
    """Become a user to whom a /proc of its own shows no process that keeps its memory private."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "proc", "-o", "hidepid=invisible", "proc", "/proc"], check=True)
    os.setgroups([])
    os.setresgid(12345, 12345, 12345)
    os.setresuid(12345, 12345, 12345)
    system.keep_memory_private()
    children.hides_processes.cache_clear()


@needs_root
def test_children_are_killed_where_they_can_not_be_seen() -> None:
    def leave_hidden_ones() -> list[int]:
        hide_processes_as_somebody()
        system.adopt_orphans()
        receiver, sender = os.pipe()
        daemons = []
        for _ in range(2):
            middle = os.fork()
            if not middle:
                os.setsid()
                if not os.fork():
                    os.write(sender, b"%d\n" % os.getpid())
                    while True:
                        signal.pause()
                os._exit(0)
            os.waitpid(middle, 0)
            daemons.append(int(os.read(receiver, 20)))
        assert children.hides_processes()
        seen = [pid for pid in daemons if processes.look(pid) is not None]
        left = Leftovers()
        left.end()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        return [len(seen), len(left.killed)]

    assert result_of(leave_hidden_ones) == [0, 2]


def test_pids_that_began_anew_are_candidates_too(monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getpid()
    files = {"/proc/loadavg": f"0.1 0.1 0.1 1/100 {me - 3}\n", "/proc/sys/kernel/pid_max": f"{me + 5}\n"}
    monkeypatch.setattr(children, "read_proc", lambda path: files[path].encode())
    assert list(children._candidates()) == [*range(me + 1, me + 6), *range(2, me - 2)]
