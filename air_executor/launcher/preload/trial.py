"""Trials, which find out whether a task could tell that a package was imported ahead.

A trial imports the package twice, in processes that are thrown away: first in the ordinary way, then as a launcher does
it, with another clock, in another folder, and with other random numbers. It observes what the imports do and leave
behind, and compares the modules of the two. What differs depends on something outside of the package.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from air_executor.launcher.preload.module_guard import ModuleGuard
from air_executor.launcher.preload.module_state import NUMPY_GENERATOR, contents
from air_executor.launcher.preload.observed import Observer, stray_module, stray_package
from air_executor.launcher.preload.process_state import ProcessState, thread_objection
from air_executor.machine import system
from air_executor.machine.leftovers import Leftovers
from air_executor.runner.stash import Stash

#: A trial that takes longer than this many seconds has failed.
PATIENCE_S = 120

#: How far the second process's clock is ahead, in seconds: year, month, day, weekday, hour and minute differ.
_SHIFT_S = 400 * 86400.0 + 47_471.0

#: At most this much is read of a process's findings, in bytes, and kept of a reason, in characters.
_FOUND_BYTES = 64 << 20
_REASON_CHARS = 300

#: A package that imports more than this many others is left to the tasks.
_ROOTS = 500


@dataclass
class Findings:
    """The result of one import, or of the whole trial."""

    seconds: float = 0.0
    """The processor time that the import takes."""
    refused: str | None = None
    """Why the package is left to the tasks; ``None`` if it can be imported ahead."""
    roots: list[str] = field(default_factory=list)
    """What to import, in this order, so that each import brings as little as possible besides itself."""
    lasting: list[str] = field(default_factory=list)
    """Which of them can't be imported a second time in a process."""
    files: dict[str, list[str]] = field(default_factory=dict)
    """The files outside of installed packages that are read, by root."""
    additions: list[tuple[str, str, str]] = field(default_factory=list)
    """Keys that are added to dictionaries of other modules, as (module, attribute, key)."""
    contents: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return orjson.dumps(asdict(self))


def hold(modules: Sequence[str]) -> Findings:
    """Try the import of ``modules``, in this process's children. Takes up to :data:`PATIENCE_S` seconds."""
    system.adopt_orphans()
    with contextlib.suppress(OSError):
        os.nice(5)  # tasks come first
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(PATIENCE_S)
    observer = Observer()
    try:
        first = _in_child(lambda: _import(observer, modules))
        if first.refused is not None:
            return first
        with tempfile.TemporaryDirectory(prefix="air-executor-") as elsewhere:
            second = _in_child(lambda: _import(observer, first.roots, elsewhere, additions=first.additions))
    except TimeoutError:
        return Findings(refused=f"its import ends or blocks the process: it takes more than {PATIENCE_S} s")
    finally:
        signal.alarm(0)
        Leftovers().end()
    refused = second.refused or _difference(first.contents, second.contents)
    for root in second.lasting:
        if refused is None and root in second.files:
            refused = f"reads {second.files[root][0]}, and can't be imported again if that changes"
    return Findings(first.seconds, refused, first.roots, second.lasting, second.files, first.additions)


def _give_up(*_: object) -> None:
    raise TimeoutError


def _in_child(work: Callable[[], Findings]) -> Findings:
    parent = os.getpid()
    with tempfile.TemporaryFile() as file:
        pid = os.fork()
        if not pid:
            try:
                system.die_with_parent(parent)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                gc.callbacks.clear()  # what others do with each collection is nothing of the package
                try:
                    data = work().to_json()
                except Exception as error:
                    data = Findings(
                        refused=f"can't be tried: {type(error).__name__}: {error}"[:_REASON_CHARS]
                    ).to_json()
                os.pwrite(file.fileno(), data, 0)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        Leftovers().end()
        data = os.pread(file.fileno(), _FOUND_BYTES, 0)
    if not data:
        code = os.waitstatus_to_exitcode(status)
        how = system.signal_name(-code) if code < 0 else f"exit code {code}"
        return Findings(refused=f"its import ends or blocks the process: {how}")
    return Findings(**orjson.loads(data))


def _import(
    observer: Observer,
    names: Sequence[str],
    elsewhere: str | None = None,
    *,
    additions: Sequence[tuple[str, str, str]] = (),
) -> Findings:
    """Import modules in this process, which is thrown away, under observation.

    :param elsewhere: import as a launcher does, with this working directory.
    """
    as_launcher = elsewhere is not None
    stash = Stash()
    for name in names:
        if "." not in name and name not in sys.modules:
            try:
                stray = None if as_launcher else stray_package(name)
            except Exception as error:
                return Findings(refused=f"cannot be imported: {type(error).__name__}: {error}")
            if stray is not None:
                return Findings(refused=f"is not of an installed package: {stray}")
    random.seed()
    system.renew_random_state()
    observer.prepare(_SHIFT_S if as_launcher else 0.0)
    if elsewhere is not None:
        os.chdir(elsewhere)
        sys.meta_path.insert(0, stash)
    guard, state = ModuleGuard(), ProcessState()
    guards = [guard]
    known, files = set(sys.modules), {}
    began_s = time.process_time()  # however busy the machine is
    with observer:
        try:
            for name in names:
                if as_launcher:
                    observer.files.clear()
                    stash.load(name, additions=additions)
                    if observer.files:
                        files[name] = list(observer.files)
                    guards.append(ModuleGuard(stash.modules_of(name)))
                else:
                    importlib.import_module(name)
        except BaseException as error:
            return Findings(
                time.process_time() - began_s, f"cannot be imported: {type(error).__name__}: {error}"[:_REASON_CHARS]
            )
    seconds = time.process_time() - began_s
    if as_launcher:
        stash.activate_all()
    new = {name: module for name, module in list(sys.modules.items()) if name not in known}
    refused = next(_objections(observer, guards, state, new), None)
    found = Findings(round(seconds, 3), refused and refused[:_REASON_CHARS], observer.order.roots, files=files)
    found.additions = guard.additions
    if refused is None:
        modules = {name: module for name, module in new.items() if isinstance(module, types.ModuleType)}
        found.contents = contents(modules, guard.known)
        if as_launcher:
            found.lasting = [name for name in names if not _can_repeat(name, stash.modules_of(name))]
        elif len(found.roots) > _ROOTS:
            found.refused = f"brings {len(found.roots)} others"
    return found


def _objections(
    observer: Observer, guards: Sequence[ModuleGuard], state: ProcessState, new: dict[str, Any]
) -> Iterator[str]:
    yield from state.objections(new)
    yield from observer.objections  # what it did explains more than what that has changed
    for guard in guards:
        yield from guard.objections(new.keys())
    for name in new:
        if (place := stray_module(name)) is not None:
            yield f"imports {name} of {place}, which is not an installed package's"
    if (words := thread_objection()) is not None:
        yield words


def _can_repeat(root: str, modules: Mapping[str, types.ModuleType]) -> bool:
    """Tell whether a module can be imported once more so that everything that comes with it is new.

    Tried in a fork of this process. Some modules that are written in C exist once per process, and keep their state.
    """
    pid = os.fork()
    if not pid:
        code = 1
        try:
            for name in modules:
                sys.modules.pop(name, None)
            for finder in [each for each in sys.meta_path if isinstance(each, Stash)]:
                finder.is_blocked = True
            importlib.import_module(root)
            code = int(any(sys.modules.get(name) is module for name, module in modules.items()))
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _difference(first: dict[str, int], second: dict[str, int]) -> str | None:
    """Say which attributes of modules are not the same twice."""
    if NUMPY_GENERATOR in first and first.pop(NUMPY_GENERATOR) == second.pop(NUMPY_GENERATOR, None):
        return "seeds NumPy's random generator"
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    if not names:
        return None
    return f"is not the same twice: {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"[:_REASON_CHARS]
