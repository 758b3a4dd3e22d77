"""Side effects of imports, and what imports depend on: warnings, loggers, variables, files, libraries."""

from __future__ import annotations

import atexit
import logging
import mmap
import os
import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Variables that Airflow sets for each task, and that no package reads when it is imported.
_OF_TASKS = ("AIRFLOW_CTX_", "_AIRFLOW_", "__AIRFLOW_", "KRB5CCNAME")


def loggers() -> dict[str, logging.Logger]:
    """Return all loggers by their names."""
    known = logging.root.manager.loggerDict
    return {name: each for name, each in list(known.items()) if isinstance(each, logging.Logger)}


@dataclass(frozen=True)
class LoggerState:
    """How a logger is set up."""

    level: int = logging.NOTSET
    handlers: tuple[logging.Handler, ...] = ()
    filters: tuple[Any, ...] = ()
    propagates: bool = True
    is_disabled: bool = False

    @classmethod
    def of(cls, logger: logging.Logger) -> LoggerState:
        """Look at a logger."""
        return cls(logger.level, tuple(logger.handlers), tuple(logger.filters), logger.propagate, logger.disabled)

    def restore(self, logger: logging.Logger) -> None:
        """Set the logger up in this way."""
        if logger.level != self.level:
            logger.setLevel(self.level)
        logger.handlers[:], logger.filters[:] = self.handlers, self.filters
        logger.propagate, logger.disabled = self.propagates, self.is_disabled

    def add_to(self, logger: logging.Logger) -> None:
        """Do what sets up a new logger in this way. The logger may be set up already."""
        if self.level != logging.NOTSET:
            logger.setLevel(self.level)
        for handler in self.handlers:
            logger.addHandler(handler)
        for each in self.filters:
            logger.addFilter(each)
        logger.propagate = logger.propagate and self.propagates
        logger.disabled = self.is_disabled


class FilterChanges:
    """Compares the warning filters with those that were there before."""

    def __init__(self, before: list[Any]) -> None:
        self._before = before

    def by_others(self, known: list[tuple[list[Any], list[Any]]]) -> tuple[list[Any], list[Any]]:
        """Return the filters that were added before and after the earlier ones, without those in ``known``."""
        taken = [each for front, back in known for each in (*front, *back)]
        now = [each for each in warnings.filters if each not in taken]
        kept = [each for each in self._before if each in now]
        if not kept:
            return now, []
        first = now.index(kept[0])
        while now[first : first + len(kept)] != kept and len(kept) > 1:
            kept = kept[1:]  # the first one was moved to the front
            first = now.index(kept[0])
        return now[:first], now[first + len(kept) :]


#: In the names of the variables that are read: all of them are.
ALL_VARIABLES = "*"


class VariableReads:
    """Records in :attr:`names` which environment variables are read within the context."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __enter__(self) -> VariableReads:
        names, kind = self.names, type(os.environ)

        class Noting(kind):  # type: ignore[misc,valid-type]
            def __getitem__(self, key: Any) -> Any:
                names.add(os.fsdecode(key))
                return super().__getitem__(key)

            def __iter__(self) -> Iterator[Any]:
                names.add(ALL_VARIABLES)
                return super().__iter__()  # type: ignore[no-any-return]

            def __len__(self) -> int:
                names.add(ALL_VARIABLES)
                return super().__len__()  # type: ignore[no-any-return]

            def __repr__(self) -> str:
                names.add(ALL_VARIABLES)
                return super().__repr__()  # type: ignore[no-any-return]

        self._kind = kind
        self._set_kind(Noting)
        return self

    def __exit__(self, *_: object) -> None:
        self._set_kind(self._kind)

    def _set_kind(self, kind: Any) -> None:
        os.environ.__class__ = kind
        os.environb.__class__ = kind


def are_read(variables: Collection[str], reads: Collection[str]) -> bool:
    """Tell whether any of ``variables`` is among those that were read."""
    return bool(variables) and (ALL_VARIABLES in reads or any(each in reads for each in variables))


class Ends:
    """Keeps what is registered within the context to be called when the process ends, instead of registering it."""

    def __init__(self) -> None:
        self.kept: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = []
        self._is_on = False

    def __enter__(self) -> Ends:
        self._is_on = True
        self._real = atexit.register, atexit.unregister
        atexit.register, atexit.unregister = self._register, self._unregister  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = False
        atexit.register, atexit.unregister = self._real

    def _register(self, function: Callable[..., object], /, *args: Any, **kwargs: Any) -> Callable[..., object]:
        if self._is_on:
            self.kept.append((function, args, kwargs))
        else:
            self._real[0](function, *args, **kwargs)
        return function

    def _unregister(self, function: Callable[..., object], /) -> None:
        if self._is_on:
            self.kept[:] = [each for each in self.kept if each[0] != function]
        self._real[1](function)

    def leave(self, modules: Iterable[types.ModuleType]) -> None:
        """Replace this object's functions in ``modules`` that have imported them."""
        real: dict[object, object] = dict(zip((self._register, self._unregister), self._real, strict=True))
        for module in modules:
            for name, value in list(vars(module).items()):
                if type(value) is types.MethodType and value in real:
                    setattr(module, name, real[value])


def stamp(path: str) -> object:
    """Return a value that changes when the file at ``path`` changes or disappears."""
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode


def dictionary(module: str, attribute: str) -> dict[str, Any]:
    """Return the dictionary that an imported module has under this name; an empty one when there is none."""
    found = getattr(sys.modules.get(module), attribute, None)
    return found if isinstance(found, dict) else {}


def environment() -> dict[str, str]:
    """Return the environment variables that imports may depend on."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_TASKS)}


def changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the names of the variables that differ."""
    return [] if before == now else [name for name in {**before, **now} if before.get(name) != now.get(name)]


def mentioned(variables: Iterable[str], libraries: Iterable[str]) -> str | None:
    """Return one of ``variables`` whose name is in one of the files ``libraries``; ``None``: there is none."""
    names = [name for name in variables if len(name) > 1]
    for path in libraries:
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for name in names:
                    if content.find(b"\0" + os.fsencode(name) + b"\0") >= 0:
                        return name
        except (OSError, ValueError):
            return names[0] if names else None  # the file is gone: assume that it reads them
    return None


def libraries() -> dict[str, None]:
    """Return the shared libraries that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return {}
    paths = (line.split(maxsplit=5)[-1] for line in lines if line.endswith(".so") or ".so." in line)
    return dict.fromkeys(path for path in paths if path.startswith("/"))


def filters_have_changed() -> None:
    """Make Python notice that ``warnings.filters`` was changed in place."""
    for name in ("_filters_mutated", "_filters_mutated_lock_held"):
        if (tell := getattr(warnings, name, None)) is not None:
            tell()
            return
