"""Which installed packages a launcher imports ahead, so that tasks find them imported: learned from the tasks.

A task process notes which modules of installed packages it had to import (``runner/imports.py``). A package that two
tasks have imported is tried in processes that are thrown away (``trial.py``). If no task could tell the difference from
an import of its own, the launcher imports it, and puts it aside for the tasks that import it (``runner/stash.py``).
Tasks import all other packages themselves.

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
from types import ModuleType
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

#: A package is tried when this many tasks have imported it.
_SEEN = 2

#: A package that takes less than this many seconds to import is left to the tasks.
_PAYS_S = 0.002

_CHEAP = "takes no time"

#: Version of the trials' rules. Verdicts by other rules are not trusted; raise it when a trial looks at more.
_RULES = 4

#: A trial sends its answer in one piece of at most this many bytes.
_ANSWER_BYTES = 16_384

#: At most this many modules of one package are tried together.
_MODULES = 500

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Verdict:
    """The result of a package's trial."""

    package: str
    modules: list[str]
    """What to import, in this order, to have all that tasks have imported. Empty when it is refused."""
    seconds: float
    refused: str | None
    """Why it is left to the tasks; ``None`` when launchers import it."""
    packages: str
    """The packages that were installed then, see :func:`packages_stamp`. With others it is tried again."""
    lasting: list[str] = field(default_factory=list)
    """Which of ``modules`` can't be imported a second time in a process."""
    files: dict[str, list[str]] = field(default_factory=dict)
    """The files outside of installed packages that each of ``modules`` reads when it is imported."""
    additions: list[tuple[str, str, str]] = field(default_factory=list)
    """The keys that they add to dictionaries of other modules, as (module, attribute, key)."""
    rules: int = 0
    """The rules of its trial, see :data:`_RULES`."""

    @property
    def is_cheap(self) -> bool:
        """Whether it is left to the tasks because importing it ahead would save nothing."""
        return self.refused is not None and self.refused.startswith(_CHEAP)


class Preloader:
    """Decides what a launcher imports ahead."""

    def __init__(self, store: RunStore, excluded: Iterable[str] = ()) -> None:
        """Read what was learned before.

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
        """Whether this launcher has imported packages for tasks."""
        self._seen: Counter[str] = Counter()
        self._modules: dict[str, list[str]] = {}

    def import_remembered(self) -> None:
        """Import what trials have accepted, and put it aside for the tasks.

        A package whose import killed or blocked an earlier launcher is not imported again.
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
                # The trial has not seen this: it depends on something.
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

    def hidden(self) -> list[ModuleType]:
        """Return the modules that were imported ahead."""
        return stash.modules()

    def take_note(self, run_id: str) -> None:
        """Count what the task of an ended run has imported."""
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
        """Return the next package to try; ``None`` if there is none."""
        for package, seen in self._seen.items():
            if seen >= _SEEN and package not in self._verdicts and not self._has_all_of(package):
                return package
        return None

    def _has_all_of(self, package: str) -> bool:
        return all(_is_there(name) for name in self._modules.get(package, ()))

    def try_here(self, package: str, answer: socket.socket) -> NoReturn:
        """Try a package in this process and its children, send the findings to ``answer``, and exit."""
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
        """Remember what a trial has found. An empty answer means that it died.

        :return: whether the package is to be imported. A launcher that serves imports nothing: its successor does.
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
    """Return what launchers have learned about packages before."""
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
    """Return the outermost package of a module's that is not imported yet."""
    parts = name.split(".")
    return next(package for n in range(1, len(parts) + 1) if not _is_there(package := ".".join(parts[:n])))
