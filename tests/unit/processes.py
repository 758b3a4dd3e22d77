"""Real processes for the unit tests: forked children that hold things, and what is left of them at the end."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import psutil

from air_executor.machine import system
from tests.support.waiting import wait_for


def reap(pid: int) -> None:
    """Kill a child and take it off the process table. One that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def forked(work: Callable[[], Any]) -> Iterator[int]:
    """A forked child that has done ``work`` and then does nothing until it is killed."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(receiver)
            held = work()  # kept, as it may hold a lock
            os.write(sender, b"+")
            while True:
                signal.pause()
                del held
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(sender)
    try:
        assert select.select([receiver], [], [], 300)[0], "the child does not get its work done"
        assert os.read(receiver, 1) == b"+", "the child failed at its work"
        yield pid
    finally:
        os.close(receiver)
        reap(pid)


def result_of(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a forked child, as plain data. The child is gone then."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(receiver)
            os.set_inheritable(sender, False)
            os.write(sender, orjson.dumps({"result": work()}) + b"\n")
        except BaseException:
            os.write(sender, orjson.dumps({"error": traceback.format_exc()[-3000:]}) + b"\n")
        finally:
            os._exit(0)
    os.close(sender)
    answer = b""
    try:
        while not answer.endswith(b"\n"):
            assert select.select([receiver], [], [], 300)[0], "the child does not come to an end"
            piece = os.read(receiver, 1 << 16)
            assert piece, "the child died"
            answer += piece
    finally:
        os.close(receiver)
        reap(pid)
    document = orjson.loads(answer)
    assert "error" not in document, document["error"]
    return document["result"]


def changed_descriptors(work: Callable[[], object]) -> list[str]:
    """Return what ``work`` leaves open that was not, or closes that was open: in a child, where nothing else does."""

    def compare() -> list[str]:
        gc.collect()  # what others have dropped is not closed later
        before = descriptors()
        work()
        return sorted(f"{fd}: {what}" for fd, what in before ^ descriptors())

    return list(result_of(compare))


def descriptors() -> set[tuple[int, str]]:
    """Return the open descriptors of this process, and what they are of."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that is dead but not waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_death(pid: int) -> None:
    wait_for(lambda: not is_alive(pid), f"process {pid} to end")


def descendants() -> list[psutil.Process]:
    """Return everything that this process, or its children, started and that still runs."""
    return [process for process in psutil.Process().children(recursive=True) if is_alive(process.pid)]


@contextlib.contextmanager
def family() -> Iterator[None]:
    """Keep hold of all processes that are started inside, whatever becomes of their parents, and end them all."""
    before = {process.pid for process in descendants()}
    system.adopt_orphans()
    try:
        yield
    finally:
        while left := [process for process in descendants() if process.pid not in before]:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.wait(120)
        libc = system._libc()
        if libc is not None:
            libc.prctl(36, 0, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: off again, for the tests that follow
