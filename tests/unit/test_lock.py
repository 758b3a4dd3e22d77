"""The lock whose holder's death frees it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from air_executor.errors import StateDirError
from air_executor.runs.lock import KernelLock, is_held, renew_held
from tests.support.waiting import wait_for
from tests.unit.processes import changed_descriptors, descriptors, forked, is_alive, reap, result_of, wait_for_death


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def holding(path: Path) -> Callable[[], KernelLock]:
    def hold() -> KernelLock:
        lock = KernelLock(path)
        assert lock.acquire(0)
        return lock

    return hold


def test_a_lock_keeps_another_process_out_and_its_file_is_private(path: Path) -> None:
    with forked(holding(path)):
        assert not KernelLock(path).acquire(0)
        assert not KernelLock(path).acquire(0.1)
        assert is_held(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_lock_keeps_its_own_process_out_too(path: Path) -> None:
    lock = KernelLock(path)
    assert lock.acquire(0)
    assert not KernelLock(path).acquire(0)
    lock.release()


def test_the_kill_of_the_holder_frees_the_lock(path: Path) -> None:
    with forked(holding(path)):
        pass
    assert not is_held(path)
    lock = KernelLock(path)
    assert lock.acquire(0)
    lock.release()


def test_whoever_waits_gets_the_lock_when_its_holder_is_killed(path: Path) -> None:
    with forked(holding(path)) as holder:
        killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.3); os.kill({holder}, 9)"])
        try:
            lock = KernelLock(path)
            assert lock.acquire(60)
            lock.release()
        finally:
            killer.wait()


@pytest.mark.parametrize("way", ["fork", "exec"])
def test_a_child_that_outlives_the_holder_does_not_have_the_lock(path: Path, tmp_path: Path, way: str) -> None:
    note = tmp_path / "pid"

    def hold_and_have_a_child() -> KernelLock:
        lock = holding(path)()
        if way == "exec":
            pid = subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False, start_new_session=True
            ).pid
        else:
            pid = os.fork()
            if not pid:
                while True:
                    os.read(os.pipe()[0], 1)
        note.write_text(str(pid))
        return lock

    with forked(hold_and_have_a_child) as holder:
        child = int(note.read_text())
        try:
            assert is_held(path)
            os.kill(holder, 9)
            wait_for_death(holder)
            wait_for(lambda: not is_held(path), "the lock to be free")
            assert is_alive(child)
            assert KernelLock(path).acquire(0)
        finally:
            os.kill(child, 9)


def test_a_forked_child_that_lets_go_does_not_free_its_parents_lock(path: Path) -> None:
    lock = holding(path)()
    result_of(lock.release)
    assert path.exists()
    assert is_held(path)
    assert not result_of(lambda: KernelLock(path).acquire(0))
    lock.release()


def test_a_forked_child_can_take_a_lock_of_its_own_with_the_same_object(path: Path) -> None:
    lock = holding(path)()
    lock.release()
    assert result_of(lambda: lock.acquire(0))
    assert lock.acquire(0), "the child is gone, and its lock with it"
    lock.release()


def test_releasing_removes_the_file_and_frees_the_lock(path: Path) -> None:
    lock = holding(path)()
    lock.release()
    assert not path.exists()
    assert not is_held(path)
    lock.release()  # twice is once


def test_a_lock_whose_file_is_gone_is_not_taken_by_who_must_not_make_it(path: Path) -> None:
    assert not KernelLock(path).acquire(0, create=False)
    assert not path.exists()
    path.touch()
    lock = KernelLock(path)
    assert lock.acquire(0, create=False)
    lock.release()
    assert not path.exists()


def test_releasing_what_was_never_taken_removes_nothing(path: Path) -> None:
    with forked(holding(path)):
        lock = KernelLock(path)
        assert not lock.acquire(0)
        lock.release()
        assert path.exists()
        assert is_held(path)


def test_looking_does_not_make_a_file(path: Path) -> None:
    assert not is_held(path)
    assert not path.exists()


def test_looking_takes_the_lock_from_nobody(path: Path) -> None:
    with forked(holding(path)):
        for _ in range(50):
            assert is_held(path)
        assert not KernelLock(path).acquire(0)
    for _ in range(50):
        assert not is_held(path)
    assert KernelLock(path).acquire(0)


def test_two_who_look_do_not_take_each_other_for_the_holder(path: Path) -> None:
    path.touch()

    def look_for_ever() -> None:
        parent = os.getpid()
        if not os.fork():
            while os.getppid() == parent:
                is_held(path)
            os._exit(0)

    with forked(look_for_ever):
        assert not any(is_held(path) for _ in range(2000))
        lock = KernelLock(path)
        assert lock.acquire(60), "who looks gives way to who wants the lock"
        lock.release()


def test_a_file_that_its_former_holder_removed_locks_nobody(path: Path) -> None:
    former = holding(path)()

    def hold_next() -> KernelLock:
        lock = KernelLock(path)
        assert lock.acquire(60)
        return lock

    def wait_in_child() -> int:
        pid = os.fork()
        if not pid:
            hold_next()
            (path.parent / "got").touch()
            while True:
                os.read(os.pipe()[0], 1)
        return pid

    waiter = wait_in_child()
    try:
        # It may have the file of the former holder open when that one removes it.
        former.release()
        wait_for((path.parent / "got").exists, "the next holder")
        assert is_held(path)
        assert not KernelLock(path).acquire(0)
    finally:
        reap(waiter)


def test_there_is_never_more_than_one_holder_while_all_remove_the_file(path: Path) -> None:
    inside = path.with_name("inside")

    def take_turns() -> None:
        for _ in range(100):
            lock = KernelLock(path)
            assert lock.acquire(120)
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            inside.unlink()
            lock.release()

    pids = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                take_turns()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert list(path.parent.iterdir()) == []


def test_a_link_in_the_place_of_a_lock_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateDirError, match="cannot open the lock file"):
        KernelLock(path).acquire(0)
    with pytest.raises(StateDirError, match="cannot open the lock file"):
        is_held(path)


def test_a_lock_where_there_is_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateDirError, match="cannot open the lock file"):
        KernelLock(tmp_path / "none" / "lock").acquire(0)


def test_whoever_lets_go_leaves_the_file_of_another_lock_at_its_place_alone(path: Path) -> None:
    former, later = KernelLock(path), KernelLock(path)
    assert former.acquire(0)
    path.unlink()
    assert later.acquire(0)
    former.release()
    assert is_held(path)
    assert not KernelLock(path).acquire(0)
    later.release()
    assert not path.exists()


def test_the_file_of_a_lock_that_is_held_is_made_again_when_somebody_has_deleted_it(path: Path) -> None:
    lock = KernelLock(path)
    assert lock.acquire(0)
    path.unlink()
    assert not is_held(path)
    renew_held()
    assert is_held(path)
    assert [what for _, what in descriptors() if what.startswith(str(path))] == [str(path)]  # not the deleted one
    os.utime(path, (1, 1))
    renew_held()
    assert path.stat().st_mtime > 1, "to who deletes old files it would look unused"
    lock.release()
    renew_held()
    assert not path.exists()


def test_a_lock_that_another_has_taken_meanwhile_is_left_to_it(path: Path) -> None:
    lock = KernelLock(path)
    assert lock.acquire(0)
    path.unlink()
    with forked(holding(path)):
        renew_held()
        lock.release()
        assert is_held(path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error_of_the_state_directory_and_leaks_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    path.touch()

    def ask_both() -> None:
        for ask in (lambda: KernelLock(path).acquire(0), lambda: is_held(path)):
            with pytest.raises(StateDirError, match=f"cannot lock .*: {os.strerror(number)}.*local disk"):
                ask()

    assert changed_descriptors(ask_both) == []
