"""Practice in a process that tasks are forked from: doing something for its effects on speed, and undoing the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NoReturn

from air_executor.errors import AirExecutorError
from air_executor.launcher import traces
from air_executor.machine.leftovers import Leftovers

#: How often something is practised: more than about four times changes nothing that can be measured.
TIMES = 5

#: A rehearsal that takes longer than this many seconds is given up.
PATIENCE_S = 60


def attempt(*steps: Callable[[], None], complaint: str = "does not work") -> None:
    """Take each step. One that fails is reported, and tasks do without it."""
    for step in steps:
        try:
            step()
        except Exception:
            print(f"{step.__name__} {complaint} here; tasks are only slower for it", flush=True)
            traceback.print_exc()


@contextlib.contextmanager
def imports_undone() -> Iterator[None]:
    """Undo the imports of DAG files afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name.startswith("unusual_prefix_"):
                del sys.modules[name]


@contextlib.contextmanager
def everything_restored() -> Iterator[None]:
    """Undo what runners and task processes change in their process, and interrupt what takes too long.

    Signals that ask this process to end wait meanwhile.
    """

    def give_up(*_: object) -> NoReturn:
        raise AirExecutorError(f"the rehearsal took longer than {PATIENCE_S} s")

    requests_to_end = (signal.SIGTERM, signal.SIGINT)
    environment, stdin, directory = dict(os.environ), os.dup(0), Path.cwd()
    signal.pthread_sigmask(signal.SIG_BLOCK, requests_to_end)
    try:
        with traces.erased(), imports_undone():
            signal.signal(signal.SIGALRM, give_up)
            signal.alarm(PATIENCE_S)
            try:
                yield
            finally:
                signal.alarm(0)
    finally:
        Leftovers().end()
        os.dup2(stdin, 0)
        os.close(stdin)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, requests_to_end)


@contextlib.contextmanager
def silence(path: Path) -> Iterator[None]:
    """Redirect what this process prints to a file, and print that when something fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    failed = True
    try:
        yield
        failed = False
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.close(file)
        for fd, saved in zip((1, 2), before, strict=True):
            os.dup2(saved, fd)
            os.close(saved)
        if failed:
            print(path.read_text(errors="replace"), flush=True)


@contextlib.contextmanager
def noting(used: dict[int, CodeType]) -> Iterator[None]:
    """Collect the code of all functions that this thread calls, by its id."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            used[id(frame.f_code)] = frame.f_code

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
