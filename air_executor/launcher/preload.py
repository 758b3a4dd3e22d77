"""Which installed packages a launcher imports ahead, so that tasks find them imported: learned from the tasks.

A task process notes which modules of installed packages it had to import (``runner/imports.py``). What two tasks have
imported is tried in a process that is thrown away: what cannot be imported, costs little, or leaves something behind
that does not survive a fork is left to the tasks. The rest the launcher imports, and remembers for the next one.

Modules of dag folders, plugins and editable installations are never imported ahead: they change under the launcher.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import orjson

from air_executor.errors import AirExecutorError
from air_executor.launcher.fingerprint import packages_stamp
from air_executor.launcher.memory import freeze
from air_executor.runs.store import RunStore

#: A package is tried when so many tasks have imported it.
_SEEN = 2

#: What costs less than so many seconds to import is left to the tasks.
_PAYS_S = 0.002

_CHEAP = "takes no time"

#: A trial that takes longer than so many seconds has failed.
_TRIAL_S = 60

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

#: What a process may have open, besides plain files, and still be forked.
_HARMLESS = ("/dev/null", "/dev/urandom", "/dev/random", "/proc/", "/sys/")


@dataclass(frozen=True)
class Verdict:
    """What became of a package's trial."""

    package: str
    modules: list[str]
    """What of it has to be imported so that all is there that tasks have imported."""
    seconds: float
    refused: str | None
    """Why it is left to the tasks; ``None`` when it is imported ahead."""
    packages: str
    """The installed packages at that time, see :func:`packages_stamp`. With others it has to be tried again."""

    @property
    def is_cheap(self) -> bool:
        """Whether it was left to the tasks because there is nothing to be gained."""
        return self.refused is not None and self.refused.startswith(_CHEAP)


class Preloader:
    """Decides what a launcher imports ahead."""

    def __init__(
        self, store: RunStore, excluded: Iterable[str] = (), rehearse: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare for learning.

        :param excluded: packages and modules that are always left to the tasks.
        :param rehearse: what is to be done after an import, for tasks to find done.
        """
        self._store = store
        self._rehearse = rehearse
        self._excluded = tuple(excluded)
        self._packages = packages_stamp()
        self._verdicts = {each.package: each for each in read_verdicts(store) if each.packages == self._packages}
        self.has_imported = False
        """Whether tasks find something imported that they might have imported in other circumstances."""
        self._seen: Counter[str] = Counter()
        self._modules: dict[str, list[str]] = {}

    def import_remembered(self) -> None:
        """Import what earlier launchers found worth it."""
        for verdict in self._verdicts.values():
            if verdict.refused is None and not self._is_excluded(verdict.package):
                self.has_imported |= _import_all(verdict.modules) is not None

    def take_note(self, run_id: str) -> None:
        """Take in what the task of a run that has ended has imported."""
        names = [name for name in self._store.imports(run_id) if _NAME.fullmatch(name)]
        groups: dict[str, list[str]] = {}
        for name in names:
            if name not in sys.modules and not self._is_excluded(name):
                groups.setdefault(_outermost_new(name), []).append(name)
        for package, modules in groups.items():
            self._seen[package] += 1
            known = self._modules.setdefault(package, [])
            known += [name for name in modules if name not in known]

    def candidate(self) -> str | None:
        """Return a package that should be tried."""
        for package, seen in self._seen.items():
            if seen >= _SEEN and package not in self._verdicts and not self._is_there(package):
                return package
        return None

    def _is_there(self, package: str) -> bool:
        return all(name in sys.modules for name in self._modules.get(package, ()))

    def try_here(self, package: str, answer: socket.socket) -> NoReturn:
        """Import a package in this process, which is thrown away, and send the verdict as JSON to ``answer``."""
        signal.alarm(_TRIAL_S)
        before = _open_files()
        began_s = time.monotonic()
        try:
            _import_all(self._modules[package], careful=True)
            seconds = time.monotonic() - began_s
            refused = _objection(before) or (f"{_CHEAP}: {seconds:.3f} s" if seconds < _PAYS_S else None)
        except BaseException as error:
            seconds, refused = time.monotonic() - began_s, f"cannot be imported: {type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            answer.sendall(orjson.dumps({"seconds": round(seconds, 3), "refused": refused}))
        os._exit(0)

    def judge(self, package: str, answer: bytes) -> None:
        """Take the verdict of a trial in, and import what has passed. An empty answer is that of a trial that died."""
        modules = self._modules.pop(package)
        del self._seen[package]
        found: dict[str, Any] = {"seconds": 0.0, "refused": "its import ends or blocks the process"}
        if answer:
            found = orjson.loads(answer)
        verdict = Verdict(package, modules, packages=self._packages, **found)
        if verdict.refused is None:
            needed = _import_all(modules)
            self.has_imported |= needed is not None
            # The others come with these.
            verdict = replace(verdict, modules=needed or [], refused=None if needed else "cannot be imported after all")
        self._verdicts[package] = verdict
        print(f"preload: {package}: {verdict.refused or f'imported ahead, saves {verdict.seconds:.2f} s'}", flush=True)
        self._rehearse()
        freeze()
        try:
            self._store.write_preload([asdict(each) for each in self._verdicts.values()])
        except AirExecutorError as error:
            print(f"preload: not remembered: {error}", flush=True)

    def _is_excluded(self, name: str) -> bool:
        return any(name == each or name.startswith(f"{each}.") for each in self._excluded)


def read_verdicts(store: RunStore) -> list[Verdict]:
    """Return what launchers have learned about packages."""
    verdicts = []
    for each in store.preload():
        with contextlib.suppress(TypeError):
            verdicts.append(Verdict(**each))
    return verdicts


def _import_all(names: Iterable[str], *, careful: bool = False) -> list[str] | None:
    """Import modules, outer packages first.

    :param careful: an error is raised; otherwise it is printed.
    :return: those that were not imported yet when it was their turn; ``None`` when one can't be imported.
    """
    needed = []
    for name in sorted(names, key=lambda name: name.count(".")):
        if name in sys.modules:
            continue
        try:
            importlib.import_module(name)
        except Exception:
            if careful:
                raise
            print(f"preload: {name} cannot be imported; tasks will try themselves", flush=True)
            traceback.print_exc()
            return None
        needed.append(name)
    return needed


def _outermost_new(name: str) -> str:
    """Return the outermost package of a module that is not imported yet."""
    parts = name.split(".")
    return next(package for n in range(1, len(parts) + 1) if (package := ".".join(parts[:n])) not in sys.modules)


def _open_files() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def _objection(before: set[str]) -> str | None:
    """Return why what this process has imported should not be there before a fork."""
    for name in sorted(_open_files() - before):
        if not os.path.isfile(name) and not name.startswith(_HARMLESS):
            return f"opens {name}"
    # Libraries that know about forks, as numpy's, end their threads before one.
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    if Path("/proc/self/task").is_dir() and len(os.listdir("/proc/self/task")) > 1:
        return "starts threads, which do not survive a fork"
    return None
