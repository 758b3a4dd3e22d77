"""What a process has besides its modules, and what modules held before others were imported: what an import may change.

Taken before and after, it tells what an import has left that every task would find.
"""

from __future__ import annotations

import contextlib
import decimal
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import threading
import types
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from air_executor.machine import system

#: What a process may have open, besides plain files, and still be forked.
_HARMLESS = ("/dev/null", "/dev/urandom", "/dev/random", "/proc/", "/sys/")

#: Lines of /proc/self/status that tell what C libraries have changed, too.
_STATUS = ("Umask", "SigBlk", "SigIgn", "SigCgt", "Uid", "Gid", "Groups", "CapEff", "NoNewPrivs", "Seccomp")


def _status() -> object:
    with contextlib.suppress(OSError):
        lines = (line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        found = {name: value.strip() for name, value in lines if name in _STATUS}
        for name in ("SigCgt", "SigIgn"):
            found[name] = str(int(found[name], 16) & ~_OF_THREADS)
        return found
    return None


#: Signals 32 and 33, which the C library handles once it has started a thread, and ignores in what it spawns.
_OF_THREADS = 0b11 << 31


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _limits() -> list[object]:
    numbers = (getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
    return [resource.getrlimit(number) for number in numbers]


def _interpreter() -> list[object]:
    return [
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        sys.gettrace(),
        sys.getprofile(),
        getattr(sys, "get_int_max_str_digits", lambda: 0)(),
        tuple(sys.get_asyncgen_hooks()),
        sys.get_coroutine_origin_tracking_depth(),
        gc.isenabled(),
        gc.get_threshold(),
        gc.get_debug(),
        faulthandler.is_enabled(),
    ]


def _logger(logger: logging.Logger) -> object:
    return logger.level, list(logger.handlers), list(logger.filters), logger.propagate, logger.disabled


def _loggers() -> dict[str, object]:
    known = logging.root.manager.loggerDict
    found = {name: _logger(each) for name, each in list(known.items()) if isinstance(each, logging.Logger)}
    return {"root": (_logger(logging.root), logging.root.manager.disable), **found}


def _numpy_random() -> object:
    return repr(sys.modules["numpy.random"].get_state()) if "numpy.random" in sys.modules else None


def _children() -> list[int]:
    return [child.pid for child in psutil.Process().children()]


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in system.descriptors():
        with contextlib.suppress(OSError):
            found[str(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found


#: What is said of an import that changes it, and how to look at it. The first one that fits is told.
_ASPECTS: tuple[tuple[str, Callable[[], object]], ...] = (
    ("changes signal handlers", lambda: {each: signal.getsignal(each) for each in signal.valid_signals()}),
    ("blocks signals", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    ("starts a timer", lambda: [signal.getitimer(each)[0] > 0 for each in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL)]),
    ("changes the umask", _umask),
    ("changes the working directory", os.getcwd),
    ("changes the locale", lambda: locale.setlocale(locale.LC_ALL)),
    ("changes limits of the process", _limits),
    ("changes priorities", lambda: (os.getpriority(os.PRIO_PROCESS, 0), _affinity())),
    ("changes the default timeout of sockets", socket.getdefaulttimeout),
    ("changes settings of the interpreter", _interpreter),
    ("changes sys.path", lambda: list(sys.path)),
    ("changes the context of decimal", lambda: repr((decimal.getcontext(), decimal.DefaultContext))),
    ("draws from or seeds the random generator", random.getstate),
    ("draws from or seeds NumPy's random generator", _numpy_random),
    ("sets how multiprocessing starts processes", lambda: multiprocessing.get_start_method(allow_none=True)),
    ("leaves a child process", _children),
    ("changes signals, users or capabilities of the process", _status),
)


def _affinity() -> object:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


class ProcessState:
    """What a process has besides its modules, at one moment."""

    def __init__(self, *, has_children: bool = False) -> None:
        """Look at all of it.

        :param has_children: this process has children of its own, which come and go; they are left out.
        """
        self._looks = [each for each in _ASPECTS if not has_children or each[1] is not _children]
        self._descriptors = _descriptors()
        self._loggers = _loggers()
        self._environment = dict(os.environ)
        self._filters = list(warnings.filters)
        self._aspects = [look() for _, look in self._looks]

    def objections(self, new: Collection[str] = ()) -> Iterator[str]:
        """Say what is different now that no import ahead may change. Loggers of the modules ``new`` are theirs."""
        for (change, look), before in zip(self._looks, self._aspects, strict=True):
            if look is _numpy_random and before is None:
                continue  # loaded only now, it is seeded for each task
            if (now := look()) != before:
                yield f"{change}{_which(before, now)}"
        # Variables that it adds are taken away with its modules.
        if changed := [name for name, value in self._environment.items() if os.environ.get(name) != value]:
            yield f"changes the environment: {', '.join(changed)}"
        yield from self._about_files()
        loggers = _loggers()
        for name, before in self._loggers.items():
            if loggers.get(name) != before and name not in new:
                yield f"changes the logger {name}"
        if any(each not in warnings.filters for each in self._filters):
            yield "takes warning filters away"

    def _about_files(self) -> Iterator[str]:
        before = self._descriptors
        for fd, name in sorted(_descriptors().items()):
            if before.get(fd) == name:
                continue
            if fd in before and int(fd) <= 2:
                yield f"replaces the descriptor {fd}"
            elif not os.path.isfile(name) and not name.startswith(_HARMLESS):
                yield f"opens {name}"


def thread_objection() -> str | None:
    """Say whether this process has threads that do not end at a fork. To be asked in a process that may fork."""
    # Libraries that know about forks, as numpy's, end their threads before one.
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    threads = []
    if Path("/proc/self/task").is_dir():
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):
                threads.append(Path(f"/proc/self/task/{thread}/comm").read_text().strip())
    else:
        threads = [each.name for each in threading.enumerate()]
    many = len([each for each in threads if each not in _FORKABLE]) > 1
    return "starts threads, which do not survive a fork" if many else None


#: Threads of libraries that see to themselves at a fork: jemalloc's, which only tidies up.
_FORKABLE = frozenset({"jemalloc_bg_thd"})


def _which(before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [str(name) for name in {**before, **now} if before.get(name) != now.get(name)]
        return f": {', '.join(sorted(names)[:3])}"
    return ""


#: Caches that imports fill, and what is looked at in other ways, by module.
_CACHES = {
    "re": ("_cache", "_cache2"),
    "linecache": ("cache",),
    "sys": ("modules", "path_importer_cache", "path", "meta_path"),
    "warnings": ("filters", "onceregistry"),
    "os": ("environ", "environb"),
    "posix": ("environ",),
    "encodings": ("_cache",),
    "_frozen_importlib": ("_module_locks", "_blocking_on"),
    "logging": ("_handlers", "_handlerList", "_at_fork_reinit_lock_weakset", "root"),
    "threading": ("_active", "_limbo", "_dangling", "_threading_atexits"),
    "ctypes": ("_c_functype_cache", "_pointer_type_cache"),
    "random": ("_inst",),
    "struct": ("_cache",),
}


class ModuleGuard:
    """What the modules that are there hold, two or three steps deep, to find what an import replaces in them."""

    #: Modules, classes, instances and containers are looked into so many steps deep.
    _DEPTH = 3

    #: Larger containers are caches, and too much to look at.
    _LARGE = 20_000

    def __init__(self, modules: Mapping[str, Any] | None = None) -> None:
        """Look at modules: at all that are there, if none are given."""
        self._held: dict[int, tuple[str, Any, Any]] = {}
        self._modules = dict(sys.modules if modules is None else modules)
        self._passed_over = {
            id(getattr(sys.modules[module], name, None))
            for module, names in _CACHES.items()
            if module in sys.modules
            for name in names
        }
        self._passed_over.add(id(logging.root.manager.loggerDict))
        self._finders = list(sys.meta_path)
        self.additions: list[tuple[str, str, str]] = []
        """Keys that were added to dictionaries of modules: (module, attribute, key). They can be taken away again."""
        # Modules without a file, as Cython's, are there for all who use them.
        looked_at = [
            each
            for name, each in self._modules.items()
            if _is_a(each, types.ModuleType) and (name == "__main__" or getattr(each, "__spec__", None) is not None)
        ]
        found: list[tuple[str, Any]] = [(each.__name__, each) for each in looked_at]
        for _ in range(self._DEPTH + 1):  # what is near before what is far
            found = [inner for name, value in found for inner in self._hold(name, value)]

    @property
    def known(self) -> Collection[int]:
        """The ids of what was looked at."""
        return self._held.keys()

    def _hold(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Remember what a value holds, and return that, with names."""
        if id(value) in self._held or id(value) in self._passed_over:
            return
        copy = _copy(value)
        if copy is None or len(copy) > self._LARGE:
            return
        self._held[id(value)] = name, value, copy
        if isinstance(copy, dict):
            for key, each in copy.items():
                if not _is_a(each, types.ModuleType) and not (isinstance(key, str) and key[:2] == key[-2:] == "__"):
                    yield f"{name}.{_short(key)}", each

    def objections(self, new: Collection[str]) -> Iterator[str]:
        """Say what was replaced, or added to by others than the modules ``new``."""
        tops = {name.partition(".")[0] for name in new} - {name.partition(".")[0] for name in self._modules}
        # What is put behind the others is taken away with the modules.
        if sys.meta_path[: len(self._finders)] != self._finders:
            yield "changes sys.meta_path"
        for name, value, before in self._held.values():
            now = _copy(value)
            if isinstance(before, dict):
                yield from self._changed_keys(name, value, before, now, new, tops)
            elif isinstance(before, list):
                if len(now) < len(before) or any(a is not b for a, b in zip(before, now, strict=False)):
                    yield f"changes {name}"
                elif len(now) > len(before):
                    yield f"adds to {name}: {_short(now[len(before)])}"
            elif isinstance(before, tuple):
                if any(a is not b for a, b in zip(before, now, strict=False)):
                    yield f"replaces the code of {name}"
            elif isinstance(before, (set, frozenset)):
                if before - now:
                    yield f"takes from {name}"
                for each in now - before:
                    if not _is_own(each, new, tops) and not _is_cache(name):
                        yield f"adds to {name}: {_short(each)}"
        for name, module in self._modules.items():
            if sys.modules.get(name) is not module:
                yield f"replaces the module {name}"

    def _attribute(self, name: str) -> object:
        """Return the module's attribute of that name."""
        module, _, attribute = name.rpartition(".")
        return vars(self._modules[module]).get(attribute) if module in self._modules else None

    def _changed_keys(
        self,
        name: str,
        value: Any,
        before: dict[Any, Any],
        now: dict[Any, Any],
        new: Collection[str],
        tops: Collection[str],
    ) -> Iterator[str]:
        for key, each in before.items():
            if key not in now:
                if not _is_cache(name):  # from those, what nothing refers to any more goes at any time
                    yield f"takes away {name}.{_short(key)}"
            elif _is_a(now[key], types.ModuleType) and not _is_a(each, types.ModuleType):
                continue  # what stood for a module until it was used
            elif now[key] is not each and key != "__doc__" and not _are_alike(now[key], each):
                yield f"replaces {name}.{_short(key)}"
        for key in now.keys() - before.keys():
            if _is_a(value, types.ModuleType):
                harmless = (
                    f"{value.__name__}.{key}" in new
                    or getattr(now[key], "__name__", None) == f"{value.__name__}.{key}"
                    or "__getattr__" in before
                    or type(value) is not types.ModuleType
                    or key in _LATE
                )
            elif _is_a(value, type):
                harmless = key in _LATE
            else:
                harmless = (
                    _is_own(key, new, tops)
                    or (not isinstance(key, str) and _is_own(now[key], new, tops))
                    or _is_cache(name)
                )
            if not harmless and isinstance(key, str) and value is self._attribute(name):
                self.additions.append((*name.rpartition(".")[::2], key))  # type: ignore[arg-type]
            elif not harmless:
                yield f"adds {name}.{_short(key)}"


#: Attributes that come into being as they are needed.
_LATE = frozenset("__warningregistry__ __annotations__ __abstractmethods__ _abc_impl __doc__".split())


def _is_a(value: Any, kind: Any) -> bool:
    """Tell whether ``value`` is of the type itself: what only stands for such an object is not even asked."""
    return issubclass(type(value), kind)


def _copy(value: Any) -> Any:
    """Return what of a value can be replaced, as a container of its own; ``None`` for what is not looked at."""
    kind = type(value)
    if _is_a(value, types.ModuleType):
        return dict(vars(value))
    if _is_a(value, type):
        # The values of an enumeration are remembered as they are asked for.
        return {name: each for name, each in vars(value).items() if name != "_value2member_map_"}
    if kind is types.FunctionType:
        return value.__code__, value.__defaults__, value.__kwdefaults__
    if _is_a(value, dict):
        return dict(dict.items(value))
    if _is_a(value, (list, deque)):
        return list(value)
    if _is_a(value, (set, frozenset)):
        return set(value)
    if kind.__module__ in ("builtins", "_thread", "weakref", "_weakref"):
        return None
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except Exception:
        return None
    return dict(attributes) if type(attributes) is dict else None


def _is_cache(name: str) -> bool:
    """Tell whether a container is nobody's business but that of the installed package it belongs to."""
    top, *parts = name.split(".")
    return top not in sys.stdlib_module_names and any(part.startswith("_") for part in parts)


def _are_alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(a is b or _are_alike(a, b) for a, b in zip(one, other, strict=True))
    return isinstance(one, (int, float, str, bytes, bool)) and one == other


def _is_own(value: Any, new: Collection[str], tops: Collection[str]) -> bool:
    """Tell whether something belongs to modules that are new."""
    if _is_a(value, str):
        return value.partition(".")[0] in tops or value in new
    if _is_a(value, (tuple, list)):
        return any(_is_own(each, new, tops) for each in value)
    if _is_a(value, (int, float, bytes, type(None))):
        return False
    for each in (value, type(value)):
        module = None
        with contextlib.suppress(Exception):
            module = getattr(each, "__module__", None)
        if _is_a(module, str) and module in new:
            return True
    return _is_a(value, types.ModuleType) and value.__name__ in new


def _short(value: Any) -> str:
    try:
        return (value if _is_a(value, str) else repr(value))[:80]
    except Exception:
        return type(value).__name__
