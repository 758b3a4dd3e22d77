"""What a launcher has imported ahead, kept out of sight until a task imports it.

A module that is imported ahead is not in ``sys.modules``: a task that does not import it has none of it. When a task
does, it gets the module as it is, together with what that has imported, provided that an import would do the same now
as it has done then. Otherwise it is imported in the ordinary way.

Modules lie in layers: what one import adds to those that were there. A layer needs the layers that its import has
asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import logging
import mmap
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from air_executor.machine import system

#: Variables that Airflow sets for each task, and that no package reads when it is imported.
_OF_TASKS = ("AIRFLOW_CTX_", "_AIRFLOW_", "__AIRFLOW_", "KRB5CCNAME")


@dataclass
class Layer:
    """What one import has added."""

    root: str
    """The module that was imported."""
    modules: dict[str, types.ModuleType]
    attributes: list[tuple[str, str, types.ModuleType]]
    """Which of ``modules`` are attributes of packages that are not, as (package, attribute, module)."""
    needs: list[str]
    """Roots of the layers that it needs, in the order in which they have to be there."""
    variables: frozenset[str]
    """The environment variables that were read."""
    filters: tuple[list[Any], list[Any]]
    """Filters of warnings that were put before and behind those that were there."""
    loggers: list[logging.Logger]
    finders: list[Any]
    """Finders of modules that it has put behind the others."""
    files: dict[str, object]
    """Files outside of what is installed that were read or looked for, with what tells when they change."""
    added: dict[str, str]
    """Environment variables that it has added."""
    additions: list[tuple[str, str, str, Any]]
    """What it has added to dictionaries of other modules, as (module, attribute, key, value)."""
    libraries: list[str]
    """Files of shared libraries that it has loaded. They read the environment unseen."""
    is_lasting: bool
    """It can't be imported twice in a process, so a task gets it as it is in any case."""
    tops: frozenset[str]


class Stash:
    """Layers of modules, and the finder through which tasks get them."""

    def __init__(self) -> None:
        self._layers: dict[str, Layer] = {}
        self._owner: dict[str, Layer] = {}
        self._active: list[str] = []
        self._path: list[str] = []
        self._environment: dict[str, str] = {}
        self._pid = 0
        self.is_blocked = False
        """Whether nothing is given out."""

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def __len__(self) -> int:
        return len(self._layers)

    # In the launcher

    def load(
        self, root: str, *, is_lasting: bool = False, files: Iterable[str] = (), additions: Iterable[Sequence[str]] = ()
    ) -> None:
        """Import the module ``root``, and put away what came with it.

        :param is_lasting: it can't be imported twice in a process.
        :param files: what it reads outside of what is installed.
        :param additions: keys that it may add to dictionaries of other modules, as (module, attribute, key).
        :raises Exception: whatever its import raises; nothing is kept then, as far as Python can undo an import.
        """
        if root in self._owner or root in sys.modules:
            return
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        modules, filters, loggers = set(sys.modules), list(warnings.filters), set(_loggers())
        libraries, finders, stamps = _libraries(), list(sys.meta_path), {path: _stamp(path) for path in files}
        self._pid, self._path, self._environment = os.getpid(), list(sys.path), _environment()
        self._active = []
        absent = [each for each in additions if each[2] not in _dictionary(*each[:2])]
        environment, added = dict(os.environ), _Filters(filters)
        try:
            with _Reads() as reads, self._forks_heard_if_active(root):
                importlib.import_module(root)
            needs, filters_added = list(self._active), added.by_others([self._layers[n].filters for n in self._active])
            new_loggers = [each for name, each in _loggers().items() if name not in loggers]
            new_finders = [each for each in sys.meta_path if each not in finders]
        finally:
            new, attributes = self._put_away(modules)
            warnings.filters[:] = filters  # type: ignore[index]
            _filters_have_changed()
            sys.meta_path[:] = finders
            taken = [
                (module, attribute, key, value)
                for module, attribute, key in absent
                if (value := _dictionary(module, attribute).pop(key, None)) is not None
            ]
            variables = {name: value for name, value in os.environ.items() if name not in environment}
            for name in variables:
                del os.environ[name]
            self._active = []
        layer = Layer(
            root=root,
            modules=new,
            attributes=attributes,
            needs=needs,
            variables=frozenset(reads.names),
            filters=filters_added,
            loggers=new_loggers,
            finders=[each for each in new_finders if not any(each in self._layers[n].finders for n in needs)],
            files=stamps,
            additions=[each for each in taken if not any(each in self._layers[n].additions for n in needs)],
            added={n: v for n, v in variables.items() if not any(n in self._layers[each].added for each in needs)},
            libraries=[path for path in _libraries() if path not in libraries],
            is_lasting=is_lasting,
            tops=frozenset(name.partition(".")[0] for name in new),
        )
        self._layers[root] = layer
        self._owner.update(dict.fromkeys(new, layer))

    def drop(self, roots: Iterable[str]) -> None:
        """Keep what importing ``roots`` has added, and what needs it, from all tasks."""
        roots = set(roots)
        for root, layer in list(self._layers.items()):
            if roots & {root, *layer.needs}:
                del self._layers[root]
                for name in layer.modules:
                    del self._owner[name]

    @contextlib.contextmanager
    def _forks_heard_if_active(self, root: str) -> Iterator[None]:
        """Let what modules want to be done at forks be done in processes only that have imported them."""
        real = os.register_at_fork

        def register(**hooks: Callable[[], object]) -> None:
            def guarded(hook: Callable[[], object]) -> Callable[[], object]:
                return lambda: hook() if root in self._active else None

            real(**{when: guarded(hook) for when, hook in hooks.items()})

        os.register_at_fork = register  # type: ignore[assignment]
        try:
            yield
        finally:
            os.register_at_fork = real

    def _put_away(self, known: set[str]) -> tuple[dict[str, types.ModuleType], list[tuple[str, str, types.ModuleType]]]:
        """Take all modules but the ``known`` ones away, and return those that are in no layer yet.

        The second is where they were attributes of packages of others, as (package, attribute, module).
        """
        new, attributes = {}, []
        for name in [name for name in sys.modules if name not in known]:
            if "." not in name and getattr(sys.modules[name], "__spec__", None) is None:
                continue  # modules without a file, as Cython's, belong to nobody: they stay
            module = sys.modules.pop(name)
            if name not in self._owner:
                new[name] = module
            parent, _, attribute = name.rpartition(".")
            holder = sys.modules.get(parent) or (self._owner[parent].modules[parent] if parent in self._owner else None)
            if holder is not None and vars(holder).get(attribute) is module:
                if name in self._owner and self._owner.get(parent) is self._owner[name]:
                    continue
                delattr(holder, attribute)
                if name in new:
                    attributes.append((parent, attribute, module))
        return new, attributes

    def modules_of(self, root: str) -> dict[str, types.ModuleType]:
        """Return what importing the module ``root`` has added."""
        return self._layers[root].modules if root in self._layers else {}

    # In a task

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Offer a module that was put away, to who imports it."""
        layer = self._owner.get(name)
        if layer is None or self.is_blocked or not _is_import() or not self._fits(layer):
            return None
        real: ModuleSpec = layer.modules[name].__spec__  # type: ignore[assignment]
        spec = ModuleSpec(name, _Loader(self, layer, real), origin=real.origin if real else None)
        spec.submodule_search_locations = real.submodule_search_locations if real else None
        return spec

    def _fits(self, layer: Layer) -> bool:
        """Tell whether importing it now would do what it did."""
        if os.getpid() == self._pid:
            return True
        if self._shadow(layer):
            return False
        if layer.is_lasting:
            return True
        now = _environment()
        for name in (name for root in self._active for name in self._layers[root].added):
            now.pop(name, None)
        changed = _changed(self._environment, now)
        needed = [self._layers[root] for root in layer.needs if root not in self._active]
        return all(self._does_fit(each, changed) for each in (*needed, layer) if not each.is_lasting)

    def _does_fit(self, layer: Layer, changed: list[str]) -> bool:
        return (
            not any(variable in layer.variables for variable in changed)
            and all(_stamp(path) == stamp for path, stamp in layer.files.items())
            and all(sys.modules.get(name, module) is module for name, module in layer.modules.items())
            and not (changed and _mentioned(changed, layer.libraries))
            and not self._shadow(layer)
        )

    def _shadow(self, layer: Layer) -> str | None:
        """Say where in ``sys.path`` there is now more of what is called like this layer's packages."""
        if sys.path == self._path:
            return None
        there = iter(sys.path)
        if not all(folder in there for folder in self._path):
            return "sys.path was rearranged"
        known = set(self._path)
        for folder in sys.path:
            if folder in known:
                continue
            finder = _finder(folder)
            for top in layer.tops:
                if finder is not None and finder.find_spec(top) is not None:
                    return f"{top} is in {folder} too"
        return None

    def activate(self, layer: Layer) -> None:
        """Put the layer, and those it needs, where an import would have put them."""
        for root in (*layer.needs, layer.root):
            if root not in self._active:
                self._active.append(root)
                self._put_back(self._layers[root])

    def activate_all(self) -> None:
        """Put everything where an import would have put it."""
        for layer in self._layers.values():
            self.activate(layer)

    def _put_back(self, layer: Layer) -> None:
        for name, module in layer.modules.items():
            sys.modules.setdefault(name, module)
        for parent, attribute, module in layer.attributes:
            if (holder := sys.modules.get(parent)) is not None:
                setattr(holder, attribute, module)
        os.environ.update(layer.added)
        for module_name, attribute, key, value in layer.additions:
            _dictionary(module_name, attribute).setdefault(key, value)
        front, back = layer.filters
        if front or back:
            filters = [each for each in warnings.filters if each not in front]
            warnings.filters[:] = [*front, *filters, *(each for each in back if each not in filters)]  # type: ignore[index]
            _filters_have_changed()
        sys.meta_path += [each for each in layer.finders if each not in sys.meta_path]
        for logger in layer.loggers:
            logger.disabled = False  # one that is made only now would not be, whatever was configured before
        if os.getpid() != self._pid and "numpy.random" in layer.modules:
            system.renew_random_state()


class _Loader(Loader):
    """Loads a module that was put away."""

    def __init__(self, stash: Stash, layer: Layer, spec: ModuleSpec | None) -> None:
        self._stash = stash
        self._layer = layer
        self._spec = spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        self._stash.activate(self._layer)
        return self._layer.modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec


def _loggers() -> dict[str, logging.Logger]:
    known = logging.root.manager.loggerDict
    return {name: each for name, each in list(known.items()) if isinstance(each, logging.Logger)}


class _Filters:
    def __init__(self, before: list[Any]) -> None:
        self._before = before

    def by_others(self, known: list[tuple[list[Any], list[Any]]]) -> tuple[list[Any], list[Any]]:
        """Return which filters were put before and behind the former ones, but by others than ``known``."""
        taken = [each for front, back in known for each in (*front, *back)]
        now = [each for each in warnings.filters if each not in taken]
        kept = [each for each in self._before if each in now]
        if not kept:
            return now, []
        first = now.index(kept[0])
        while now[first : first + len(kept)] != kept and len(kept) > 1:
            kept = kept[1:]  # what was put in front again
            first = now.index(kept[0])
        return now[:first], now[first + len(kept) :]


class _Reads:
    """Notes which variables of the environment are read."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __enter__(self) -> _Reads:
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


def _stamp(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode


def _dictionary(module: str, attribute: str) -> dict[str, Any]:
    found = getattr(sys.modules.get(module), attribute, None)
    return found if isinstance(found, dict) else {}


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_TASKS)}


def _changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return [] if before == now else [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _mentioned(variables: Iterable[str], libraries: Iterable[str]) -> str | None:
    """Return which of ``variables`` one of the libraries knows by name."""
    names = [name for name in variables if len(name) > 1]
    for path in libraries:
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for name in names:
                    if content.find(b"\0" + os.fsencode(name) + b"\0") >= 0:
                        return name
        except (OSError, ValueError):
            return names[0] if names else None  # it is gone, and can't be asked
    return None


def _libraries() -> dict[str, None]:
    """Return the shared libraries that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return {}
    paths = (line.split(maxsplit=5)[-1] for line in lines if line.endswith(".so") or ".so." in line)
    return dict.fromkeys(path for path in paths if path.startswith("/"))


def _filters_have_changed() -> None:
    for name in ("_filters_mutated", "_filters_mutated_lock_held"):
        if (tell := getattr(warnings, name, None)) is not None:
            tell()
            return


def _is_import() -> bool:
    """Tell whether a module is imported, and not only looked for or loaded again."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "_find_spec":
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_find_and_load_unlocked"


def _finder(folder: str) -> Any:
    return importlib.machinery.PathFinder._path_importer_cache(folder)  # type: ignore[attr-defined]


#: What this process's launcher has imported ahead.
stash = Stash()


def names() -> Iterator[str]:
    """Return the names of all modules that were imported ahead."""
    return iter(stash._owner)
