"""A process with few modules, in which packages are tried: a trial looks at each module, and pytest has thousands."""

from __future__ import annotations

import asyncio
import csv
import decimal
import functools
import json
import mimetypes
import multiprocessing
import os
import socket
import subprocess
import sys
import sysconfig
import tracemalloc
from pathlib import Path

from air_executor.launcher.preload.preloader import Preloader
from air_executor.runner.stash import stash
from air_executor.runs.imported import write_imports
from air_executor.runs.store import RunStore
from tests.support.airflow_env import REPOSITORY
from tests.unit.documents import record
from tests.unit.processes import result_of

#: What the tested packages change, and is there before them.
_CHANGED = (asyncio, csv, decimal, json, mimetypes, multiprocessing, tracemalloc)


class Trials:
    """The process; a context manager."""

    def __enter__(self) -> Trials:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def accept(self, store: RunStore, folder: Path, *packages: str) -> bool:
        """Let a preloader learn of packages in ``folder``, one after another.

        :return: whether the last one is imported ahead. What is said of each is in ``store``.
        """
        assert self._process.stdin and self._process.stdout
        print(json.dumps([str(store.root), str(folder), packages]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the process of the trials has failed; it says why on stderr"
        return bool(json.loads(answer))


def seen_in_a_task(store: RunStore, *names: str) -> str:
    """Return the id of a run whose task has imported ``names``."""
    run = record()
    store.create(run)
    write_imports(store, run.id, list(names))
    return run.id


def learn(preloader: Preloader, store: RunStore, *names: str) -> None:
    """Let two tasks have imported ``names``, and try what is to be tried then."""
    for _ in range(2):
        preloader.take_note(seen_in_a_task(store, *names))
    while (package := preloader.candidate()) is not None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = os.fork()
            if not pid:
                preloader.try_here(package, theirs)
            theirs.close()
            known = set(sys.modules)
            if preloader.judge(package, ours.recv(1 << 16)):
                assert set(sys.modules) == known, "who serves imports nothing"
                preloader.import_remembered()  # as its successor does
            os.waitpid(pid, 0)


def _try(root: str, folder: str, packages: list[str]) -> bool:
    """Try packages in this process, which is thrown away."""
    sys.path.insert(0, folder)
    sysconfig.get_path = lambda _: folder  # type: ignore[assignment]
    store = RunStore(root)
    preloader = Preloader(store)
    for package in packages:
        learn(preloader, store, package)
    return packages[-1] in stash


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(result_of(functools.partial(_try, *json.loads(line)))), file=answers)


if __name__ == "__main__":
    _serve()
