"""Which installed packages a launcher imports ahead, so that tasks find them imported: learned from the tasks.

A task process notes which modules of installed packages it had to import (``runner/imports.py``). What two tasks have
imported is tried in processes that are thrown away (``trial.py``). What no task could tell from an import of its own
the launcher imports, and puts away for the tasks that import it (``runner/stash.py``); the rest is left to the tasks.

Modules of dag folders, plugins and editable installations are never imported ahead: they change under the launcher.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NoReturn

import orjson

from air_executor.errors import AirExecutorError
from air_executor.launcher.fingerprint import packages_stamp
from air_executor.launcher.preload import trial
from air_executor.launcher.preload.importing import ImportNote
from air_executor.launcher.preload.process_state import ProcessState
from air_executor.launcher.preload.trial import Findings
from air_executor.runner.stash import stash
from air_executor.runs import imported
from air_executor.runs.store import RunStore

#: A package is tried when so many tasks have imported it.
_SEEN = 2

#: What costs less than so many seconds to import is left to the tasks.
_PAYS_S = 0.002

_CHEAP = "takes no time"

#: Verdicts by other rules than these are not trusted. To be raised when a trial looks at more.
_RULES = 3

#: An answer of a trial is sent in one piece, and so has at most so many bytes.
_ANSWER_BYTES = 16_384

#: So many modules of one package are tried together.
_MODULES = 500

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Verdict:
    """What became of a package's trial."""

    package: str
    modules: list[str]
    """What to import, in this order, so that all is there that tasks have imported. None when it is refused."""
    seconds: float
    refused: str | None
    """Why it is left to the tasks; ``None`` when it is imported ahead."""
    packages: str
    """The installed packages at that time, see :func:`packages_stamp`. With others it has to be tried again."""
    lasting: list[str] = field(default_factory=list)
    """Which of them can't be imported a second time in a process."""
    files: dict[str, list[str]] = field(default_factory=dict)
    """What ``modules`` read, when they are imported, outside of what is installed."""
    additions: list[tuple[str, str, str]] = field(default_factory=list)
    """Keys that they add to dictionaries of other modules, as (module, attribute, key)."""
    rules: int = 0
    """What the trial looked at."""

    @property
    def is_cheap(self) -> bool:
        """Whether it was left to the tasks because there is nothing to be gained."""
        return self.refused is not None and self.refused.startswith(_CHEAP)


class Preloader:
    """Decides what a launcher imports ahead."""

    def __init__(self, store: RunStore, excluded: Iterable[str] = ()) -> None:
        """Prepare for learning.

        :param excluded: packages and modules that are always left to the tasks.
        """
        self._store = store
        self._excluded = tuple(excluded)
        self._packages = packages_stamp()
        self._verdicts = {
            each.package: each
            for each in read_verdicts(store)
            if each.packages == self._packages and each.rules == _RULES
        }
        self.has_imported = False
        """Whether tasks find something imported that they might have imported in other circumstances."""
        self._seen: Counter[str] = Counter()
        self._modules: dict[str, list[str]] = {}

    def import_remembered(self) -> None:
        """Import what was found worth it, as far as that is not done yet, and put it away for the tasks.

        A package on which an earlier launcher died, or hung until it was killed, is not imported again.
        """
        with ImportNote(self._store.root) as note:
            for package in note.fatal:
                if package in self._verdicts:
                    self._refuse(self._verdicts[package], "its import has ended or blocked a launcher")
            self._import_all(note)
        self.has_imported = len(stash) > 0

    def _import_all(self, note: ImportNote) -> None:
        for verdict in list(self._verdicts.values()):
            if verdict.refused is None and not self._is_excluded(verdict.package):
                note.begin(verdict.package)
                before = ProcessState(has_children=True)
                refused = self._import(verdict)
                # The trial has seen nothing of the kind: it depends on something.
                refused = refused or next(before.objections(verdict.modules), None)
                if refused is not None:
                    stash.drop(verdict.modules)
                    self._refuse(verdict, refused)

    def _refuse(self, verdict: Verdict, refused: str) -> None:
        print(f"preload: {verdict.package}, imported ahead, {refused}; not any more", flush=True)
        self._verdicts[verdict.package] = replace(verdict, modules=[], refused=refused)
        self._remember()

    def _import(self, verdict: Verdict) -> str | None:
        for name in verdict.modules:
            if self._is_excluded(name):
                continue
            try:
                stash.load(
                    name,
                    is_lasting=name in verdict.lasting,
                    files=verdict.files.get(name, ()),
                    additions=verdict.additions,
                )
            except Exception as error:
                traceback.print_exc()
                return f"cannot be imported after all: {type(error).__name__}: {error}"
        return None

    def take_note(self, run_id: str) -> None:
        """Take in what the task of a run that has ended has imported."""
        names = [name for name in imported.read_imports(self._store, run_id) if _NAME.fullmatch(name)]
        groups: dict[str, list[str]] = {}
        for name in names:
            if not _is_there(name) and not self._is_excluded(name):
                groups.setdefault(_outermost_new(name), []).append(name)
        for package, modules in groups.items():
            self._seen[package] += 1
            known = self._modules.setdefault(package, [])
            known += [name for name in modules if name not in known][: _MODULES - len(known)]

    def candidate(self) -> str | None:
        """Return a package that should be tried."""
        for package, seen in self._seen.items():
            if seen >= _SEEN and package not in self._verdicts and not self._has_all_of(package):
                return package
        return None

    def _has_all_of(self, package: str) -> bool:
        return all(_is_there(name) for name in self._modules.get(package, ()))

    def try_here(self, package: str, answer: socket.socket) -> NoReturn:
        """Try a package in children of this process, which is thrown away, and send what was found to ``answer``."""
        try:
            found = trial.hold(sorted(self._modules[package], key=lambda name: name.count(".")))
            if found.refused is None and found.seconds < _PAYS_S:
                found = Findings(found.seconds, f"{_CHEAP}: {found.seconds:.3f} s")
            data = replace(found, contents={}, roots=[] if found.refused else found.roots).to_json()
            if len(data) > _ANSWER_BYTES:
                data = Findings(found.seconds, f"brings {len(found.roots)} others").to_json()
            with contextlib.suppress(OSError):
                answer.sendall(data)
        finally:
            os._exit(0)

    def judge(self, package: str, answer: bytes) -> bool:
        """Take in what a trial has found, and remember it. An empty answer is that of one that died.

        :return: whether there is something new to import. Not here, as this process serves: its successor does.
        """
        del self._modules[package], self._seen[package]
        self._verdicts[package] = verdict = self._verdict(package, answer)
        print(f"preload: {package}: {verdict.refused or f'imported ahead, saves {verdict.seconds:.2f} s'}", flush=True)
        self._remember()
        return verdict.refused is None

    def _verdict(self, package: str, answer: bytes) -> Verdict:
        found = Findings(refused="its import ends or blocks the process")
        if answer:
            try:
                found = Findings(**orjson.loads(answer))
            except (orjson.JSONDecodeError, TypeError) as error:
                found = Findings(refused=f"its trial gave an answer that makes no sense: {error}")
        return Verdict(
            package,
            found.roots,
            found.seconds,
            found.refused,
            self._packages,
            found.lasting,
            found.files,
            found.additions,
            _RULES,
        )

    def _remember(self) -> None:
        try:
            imported.write_preload(self._store, [asdict(each) for each in self._verdicts.values()])
        except AirExecutorError as error:
            print(f"preload: not remembered: {error}", flush=True)

    def _is_excluded(self, name: str) -> bool:
        return any(name == each or name.startswith(f"{each}.") for each in self._excluded)


def read_verdicts(store: RunStore) -> list[Verdict]:
    """Return what launchers have learned about packages."""
    verdicts = []
    known = {each.name for each in fields(Verdict)}
    for document in imported.read_preload(store):
        with contextlib.suppress(TypeError):
            verdict = Verdict(**{name: value for name, value in document.items() if name in known})
            if _makes_sense(verdict):
                verdicts.append(verdict)
    return verdicts


def _makes_sense(verdict: Verdict) -> bool:
    values: Sequence[tuple[Any, Any]] = (
        (verdict.package, str),
        (verdict.modules, list),
        (verdict.seconds, (int, float)),
        (verdict.refused, (str, type(None))),
        (verdict.files, dict),
        (verdict.lasting, list),
    )
    return all(isinstance(value, kind) for value, kind in values) and all(
        isinstance(name, str) and _NAME.fullmatch(name) for name in (verdict.package, *verdict.modules)
    )


def _is_there(name: str) -> bool:
    return name in sys.modules or name in stash


def _outermost_new(name: str) -> str:
    """Return the outermost package of a module that is not imported yet."""
    parts = name.split(".")
    return next(package for n in range(1, len(parts) + 1) if not _is_there(package := ".".join(parts[:n])))
