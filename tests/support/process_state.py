"""What of a process a later fork of it could tell, by name: for finding what was left behind in it."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import functools
import gc
import locale
import logging
import os
import resource
import signal
import socket
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import structlog
from structlog._base import BoundLoggerBase
from structlog._config import BoundLoggerLazyProxy

#: How many levels below a module's globals containers, classes and objects are looked into.
_DEPTH = 3

#: Modules that hold the snapshot itself.
_NOT_LOOKED_INTO = (__name__, "__main__", "__mp_main__")

#: Values that are equal when they look the same.
_PLAIN = (int, float, complex, bool, str, bytes, type(None))


class Snapshot:
    """What there is now, by name."""

    def __init__(self, *, modules: bool = True) -> None:
        """Take it.

        :param modules: also of what can be reached from the modules that are imported now.
        """
        gc.collect()
        #: Objects that were found, kept alive so that an id stands for one of them.
        self._kept: list[Any] = []
        self._modules = set(sys.modules)
        self._places = list(_places()) if modules else []
        self._values = dict(self._look())

    def differences(self) -> dict[str, str]:
        """Return what is not the same any more, by name, as "before -> after"."""
        gc.collect()
        now = dict(self._look())
        return {
            name: f"{self._values.get(name, 'nothing')} -> {now.get(name, 'nothing')}"
            for name in {**self._values, **now}
            if self._values.get(name, "nothing") != now.get(name, "nothing")
        }

    def _look(self) -> Iterator[tuple[str, Any]]:
        yield from _process()
        yield from _interpreter()
        yield from _logging()
        yield from self._structlog()
        yield from _warnings()
        yield from _masker()
        for variable, value in contextvars.copy_context().items():
            yield f"context variable {variable.name}", repr(value)
        if self._places:
            yield from self._inside()

    def _structlog(self) -> Iterator[tuple[str, Any]]:
        for name, value in structlog.get_config().items():
            yield f"structlog {name}", self._identity(value)
        for found in gc.get_objects():
            kind = type(found)
            if kind is BoundLoggerLazyProxy and "bind" in vars(found):
                yield f"structlog cached {found._logger_factory_args} {found._initial_values}", True
            elif issubclass(kind, BoundLoggerBase):
                yield f"structlog bound {found._logger!r} {getattr(found._logger, 'name', '')} {found._context}", True

    def _inside(self) -> Iterator[tuple[str, Any]]:
        for name in sys.modules.keys() - self._modules:
            yield f"module {name}", "imported"
        for found in gc.get_objects():
            if type(found) is functools._lru_cache_wrapper:
                name = getattr(found, "__qualname__", "of no name")
                yield f"cache {getattr(found, '__module__', '')}.{name}", found.cache_info().currsize
        for path, place in self._places:
            for name, value in _content(path, place):
                yield name, self._identity(value)

    def _identity(self, value: Any) -> str:
        if type(value) in _PLAIN:
            return repr(value)
        self._kept.append(value)
        return f"{type(value).__qualname__} {id(value):x}"


def _places() -> Iterator[tuple[str, Any]]:
    """Find what holds other objects, from all modules on, the nearest first."""
    seen: set[int] = set()
    here = [(name, module) for name, module in sys.modules.items() if name not in _NOT_LOOKED_INTO]
    for _ in range(_DEPTH + 1):
        next_ones = []
        for path, place in here:
            if id(place) not in seen:
                seen.add(id(place))
                yield path, place
                next_ones += [
                    each for each in _content(path, place) if not issubclass(type(each[1]), (*_PLAIN, types.ModuleType))
                ]
        here = next_ones


def _content(path: str, place: Any) -> list[tuple[str, Any]]:
    # By its type only: to ask a proxy what it is makes it ask what it stands for.
    kind = type(place)
    if issubclass(kind, dict):
        named = {
            key if type(key) is str else f"[{key if type(key) in _PLAIN else id(key)}]": place[key] for key in [*place]
        }
    elif issubclass(kind, (list, tuple)):
        named = {f"[{number}]": each for number, each in enumerate(place)}
    elif issubclass(kind, (set, frozenset)):
        return [(f"{path} has", len(place))]
    elif kind is types.FunctionType:
        return [(f"{path} defaults", place.__defaults__)]
    else:
        named = _attributes(place)
    return [(f"{path}.{name}", value) for name, value in named.items() if name[:2] != "__" or name == "__path__"]


def _attributes(value: Any) -> dict[str, Any]:
    kind = type(value)
    found = {}
    if not issubclass(kind, type):
        for base in kind.__mro__:
            for name, member in vars(base).items():
                if type(member) is types.MemberDescriptorType:
                    with contextlib.suppress(AttributeError):
                        found[name] = member.__get__(value)
    with contextlib.suppress(AttributeError):
        found.update(object.__getattribute__(value, "__dict__"))
    return found


def _process() -> Iterator[tuple[str, Any]]:
    for name, value in os.environ.items():
        yield f"environment {name}", value
    yield "directory", str(Path.cwd())
    umask = os.umask(0o077)
    os.umask(umask)
    yield "umask", umask
    yield "niceness", os.getpriority(os.PRIO_PROCESS, 0)
    for fd in os.listdir("/proc/self/fd"):
        if Path(f"/proc/self/fd/{fd}").is_symlink():
            yield f"descriptor {fd}", str(Path(f"/proc/self/fd/{fd}").readlink())
    yield "threads", [thread.name for thread in threading.enumerate()]
    yield "children", len(psutil.Process().children())
    for name in dir(resource):
        if name.startswith("RLIMIT_"):
            yield name, resource.getrlimit(getattr(resource, name))
    yield "locale", locale.setlocale(locale.LC_ALL)
    yield "socket timeout", socket.getdefaulttimeout()


def _interpreter() -> Iterator[tuple[str, Any]]:
    for signum in signal.valid_signals():
        yield f"handler of {signum!r}", str(signal.getsignal(signum))
    yield "blocked signals", sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    yield "timer", signal.getitimer(signal.ITIMER_REAL)[0] > 0
    for name in ("excepthook", "unraisablehook", "displayhook", "breakpointhook", "stdin", "stdout", "stderr"):
        yield f"sys.{name}", str(getattr(sys, name))
    yield "threading.excepthook", str(threading.excepthook)
    yield "trace", (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile())
    for name in ("path", "argv", "meta_path", "path_hooks", "warnoptions"):
        yield f"sys.{name}", str(getattr(sys, name))
    yield "recursion limit", sys.getrecursionlimit()
    yield "switch interval", sys.getswitchinterval()
    yield "exit functions", atexit._ncallbacks()
    yield "collector", (gc.isenabled(), gc.get_threshold(), gc.get_debug())


def _logging() -> Iterator[tuple[str, Any]]:
    yield "logging disabled", logging.root.manager.disable
    yield "logging record factory", str(logging.getLogRecordFactory())
    yield "logging class", str(logging.getLoggerClass())
    yield "logging handlers", [str(handler()) for handler in logging._handlerList]
    loggers = {"root": logging.root, **logging.root.manager.loggerDict}
    for name, logger in loggers.items():
        if isinstance(logger, logging.Logger):
            yield (
                f"logger {name}",
                (
                    logger.level,
                    logger.propagate,
                    logger.disabled,
                    [f"{handler} {id(handler):x} {id(handler.formatter):x}" for handler in logger.handlers],
                    [str(one) for one in logger.filters],
                    sorted(set(vars(logger)) - {"_cache"}),
                ),
            )


def _warnings() -> Iterator[tuple[str, Any]]:
    yield "warnings filters", str(warnings.filters)
    yield "warnings.showwarning", str(warnings.showwarning)
    yield "warnings once", str(warnings.onceregistry)
    probe: dict[Any, Any] = {}
    warnings.warn_explicit("probe", DeprecationWarning, "nowhere", 1, "nowhere", probe)
    for name, module in sorted(sys.modules.items()):
        registry = getattr(module, "__dict__", {}).get("__warningregistry__", {})
        # What was noted before the filters changed does not count.
        if registry.get("version") == probe["version"]:
            for key in registry:
                if key != "version":
                    yield f"warned of in {name}: {key}", True


def _masker() -> Iterator[tuple[str, Any]]:
    for name in (
        "airflow.sdk._shared.secrets_masker",
        "airflow._shared.secrets_masker",
        "airflow.sdk.execution_time.secrets_masker",
    ):
        module = sys.modules.get(name)
        get = getattr(module, "_secrets_masker", None)
        if get is not None:
            yield f"secrets of {name}", (sorted(get().patterns), str(get().replacer))
