"""Side effects of imports, and what imports depend on: warnings, loggers, variables, files, libraries."""

from __future__ import annotations

import logging
import mmap
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Variables that Airflow sets for each task, and that no package reads when it is imported.
_OF_TASKS = ("AIRFLOW_CTX_", "_AIRFLOW_", "__AIRFLOW_", "KRB5CCNAME")


def loggers() -> dict[str, logging.Logger]:
    """Return all loggers by their names."""
    known = logging.root.manager.loggerDict
    return {name: each for name, each in list(known.items()) if isinstance(each, logging.Logger)}


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

        self._kind = kind
        os.environ.__class__ = Noting
        return self

    def __exit__(self, *_: object) -> None:
        os.environ.__class__ = self._kind


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
