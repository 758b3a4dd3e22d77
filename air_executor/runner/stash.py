"""What a launcher has imported ahead, hidden until a task imports it.

A module that is imported ahead is not in ``sys.modules``, so a task that does not import it sees nothing of it. A task
that does import it gets the module, with all that it has imported, if an import would still do the same. Otherwise
Python imports it in the ordinary way.

Modules lie in layers. A layer is what one import has added, and it needs the layers that this import has used.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.machinery
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from typing import Any

from air_executor.machine import system
from air_executor.runner import effects


@dataclass
class Layer:
    """What one import has added."""

    root: str
    """The module that was imported."""
    modules: dict[str, types.ModuleType]
    attributes: list[tuple[str, str, types.ModuleType]]
    """Which of ``modules`` are attributes of packages that are not, as (package, attribute, module)."""
    needs: list[str]
    """Roots of the layers that it needs, in the order in which they have to be activated."""
    variables: frozenset[str]
    """The environment variables that were read, see :class:`effects.VariableReads`."""
    filters: tuple[list[Any], list[Any]]
    """Warning filters that it has added before and after the existing ones."""
    loggers: list[tuple[logging.Logger, effects.LoggerState]]
    """Loggers that it has created or set up, as it has left them."""
    ends: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]]
    """What it has registered to be called when the process ends."""
    finders: list[Any]
    """Module finders that it has added."""
    files: dict[str, object]
    """Files outside of packages that were read or looked for, each with its stamp, see :func:`effects.stamp`."""
    added: dict[str, str]
    """Environment variables that it has added."""
    additions: list[tuple[str, str, str, Any]]
    """What it has added to dictionaries of other modules, as (module, attribute, key, value)."""
    libraries: list[str]
    """Files of shared libraries that it has loaded. What they read of the environment can't be recorded."""
    is_lasting: bool
    """It can't be imported twice in a process, so a task always gets this one."""
    tops: frozenset[str]


class Stash:
    """Layers of modules, and the finder through which tasks get them."""

    def __init__(self) -> None:
        self._layers: dict[str, Layer] = {}
        self._owner: dict[str, Layer] = {}
        self._active: list[str] = []
        self._given: set[str] = set()
        """Roots of the active layers of which all is in place."""
        self._path: list[str] = []
        self._environment: dict[str, str] = {}
        self._pid = 0
        self.is_blocked = False
        """Whether tasks get nothing from here."""

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def __len__(self) -> int:
        return len(self._layers)

    # In the launcher

    def load(
        self, root: str, *, is_lasting: bool = False, files: Iterable[str] = (), additions: Iterable[Sequence[str]] = ()
    ) -> None:
        """Import the module ``root``, and hide what was imported with it.

        :param is_lasting: it can't be imported twice in a process.
        :param files: files outside of packages that it reads.
        :param additions: keys that it may add to dictionaries of other modules, as (module, attribute, key).
        :raises Exception: whatever its import raises. Nothing is kept then, as far as an import can be undone.
        """
        if root in self._owner or root in sys.modules:
            return
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        modules, filters = set(sys.modules), list(warnings.filters)
        loggers = {each: effects.LoggerState.of(each) for each in effects.loggers().values()}
        libraries, finders = effects.libraries(), list(sys.meta_path)
        stamps = {path: effects.stamp(path) for path in files}
        self._pid, self._path, self._environment = os.getpid(), list(sys.path), effects.environment()
        self._active, self._given = [], set()
        absent = [each for each in additions if each[2] not in effects.dictionary(*each[:2])]
        environment, added = dict(os.environ), effects.FilterChanges(filters)
        try:
            with effects.VariableReads() as reads, self._forks_heard_if_active(root), effects.Ends() as ends:
                importlib.import_module(root)
            needs, filters_added = list(self._active), added.by_others([self._layers[n].filters for n in self._active])
            new_finders = [each for each in sys.meta_path if each not in finders]
        finally:
            set_up = _put_away_loggers(loggers)
            new, attributes = self._put_away(modules)
            ends.leave(new.values())
            warnings.filters[:] = filters  # type: ignore[index]
            effects.filters_have_changed()
            sys.meta_path[:] = finders
            taken = [
                (module, attribute, key, value)
                for module, attribute, key in absent
                if (value := effects.dictionary(module, attribute).pop(key, None)) is not None
            ]
            variables = {name: value for name, value in os.environ.items() if name not in environment}
            for name in variables:
                del os.environ[name]
            self._active, self._given = [], set()
        layer = Layer(
            root=root,
            modules=new,
            attributes=attributes,
            needs=needs,
            variables=frozenset(reads.names),
            filters=filters_added,
            loggers=[each for each in set_up if not any(each in self._layers[n].loggers for n in needs)],
            ends=ends.kept,
            finders=[each for each in new_finders if not any(each in self._layers[n].finders for n in needs)],
            files=stamps,
            additions=[each for each in taken if not any(each in self._layers[n].additions for n in needs)],
            added={n: v for n, v in variables.items() if not any(n in self._layers[each].added for each in needs)},
            libraries=[path for path in effects.libraries() if path not in libraries],
            is_lasting=is_lasting,
            tops=frozenset(name.partition(".")[0] for name in new),
        )
        self._layers[root] = layer
        self._owner.update(dict.fromkeys(new, layer))

    def drop(self, roots: Iterable[str]) -> None:
        """Forget what importing ``roots`` has added, and the layers that need it."""
        roots = set(roots)
        for root, layer in list(self._layers.items()):
            if roots & {root, *layer.needs}:
                del self._layers[root]
                for name in layer.modules:
                    del self._owner[name]

    @contextlib.contextmanager
    def _forks_heard_if_active(self, root: str) -> Iterator[None]:
        """Make fork hooks that modules register run only in processes in which ``root`` is active."""
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
        """Remove all modules but the ``known`` ones, and return those that are in no layer yet.

        The second value says of which other packages they were attributes, as (package, attribute, module).
        """
        new, attributes = {}, []
        for name in [name for name in sys.modules if name not in known]:
            if "." not in name and getattr(sys.modules[name], "__spec__", None) is None:
                continue  # modules without a spec, as Cython's, belong to no import: they stay
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

    def modules(self) -> list[types.ModuleType]:
        """Return all modules that are hidden."""
        return [module for layer in self._layers.values() for module in layer.modules.values()]

    def loggers(self) -> set[str]:
        """Return the names of the loggers that what is hidden has created or set up."""
        return {logger.name for layer in self._layers.values() for logger, _ in layer.loggers}

    # In a task

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Offer a hidden module to code that imports it."""
        layer = self._owner.get(name)
        if layer is None or self.is_blocked or not _is_import():
            return None
        if self._was_taken_out(layer, name) or not self._fits(layer):
            return None
        real: ModuleSpec = layer.modules[name].__spec__  # type: ignore[assignment]
        spec = ModuleSpec(name, _Loader(self, layer, real), origin=real.origin if real else None)
        spec.submodule_search_locations = real.submodule_search_locations if real else None
        return spec

    def _was_taken_out(self, layer: Layer, name: str) -> bool:
        """Tell whether code has removed the module from ``sys.modules`` to have it imported anew."""
        return layer.root in self._given and name not in sys.modules and not layer.is_lasting

    def _fits(self, layer: Layer) -> bool:
        """Tell whether importing the layer now would do the same as it did in the launcher."""
        if os.getpid() == self._pid:
            return True
        if self._shadow(layer):
            return False
        if layer.is_lasting:
            return True
        now = effects.environment()
        for name in (name for root in self._active for name in self._layers[root].added):
            now.pop(name, None)
        changed = effects.changed(self._environment, now)
        needed = [self._layers[root] for root in layer.needs]
        return all(
            _is_in_place(each) if each.root in self._given else self._does_fit(each, changed)
            for each in (*needed, layer)
            if not each.is_lasting
        )

    def _does_fit(self, layer: Layer, changed: list[str]) -> bool:
        return (
            not effects.are_read(changed, layer.variables)
            and all(effects.stamp(path) == stamp for path, stamp in layer.files.items())
            and all(sys.modules.get(name, module) is module for name, module in layer.modules.items())
            and not (changed and effects.mentioned(changed, layer.libraries))
            and not self._shadow(layer)
        )

    def _shadow(self, layer: Layer) -> str | None:
        """Return where ``sys.path`` now has another package with a name of this layer, as text; ``None``: nowhere."""
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
                self._given.add(root)

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
            effects.dictionary(module_name, attribute).setdefault(key, value)
        front, back = layer.filters
        if front or back:
            filters = [each for each in warnings.filters if each not in front]
            warnings.filters[:] = [*front, *filters, *(each for each in back if each not in filters)]  # type: ignore[index]
            effects.filters_have_changed()
        sys.meta_path += [each for each in layer.finders if each not in sys.meta_path]
        for logger, state in layer.loggers:
            state.add_to(logger)
        if os.getpid() == self._pid:
            return
        for function, args, kwargs in layer.ends:
            atexit.register(function, *args, **kwargs)
        if "numpy.random" in layer.modules:
            system.renew_random_state()


class _Loader(Loader):
    """Loads a hidden module."""

    def __init__(self, stash: Stash, layer: Layer, spec: ModuleSpec | None) -> None:
        self._stash = stash
        self._layer = layer
        self._spec = spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        self._stash.activate(self._layer)
        return self._layer.modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec


def _put_away_loggers(
    before: dict[logging.Logger, effects.LoggerState],
) -> list[tuple[logging.Logger, effects.LoggerState]]:
    """Set all loggers up as ``before``, and return those that are new or were set up, as they were now."""
    found = []
    for logger in effects.loggers().values():
        now = effects.LoggerState.of(logger)
        if now != before.get(logger):
            found.append((logger, now))
            before.get(logger, effects.LoggerState()).restore(logger)
    return found


def _is_in_place(layer: Layer) -> bool:
    return all(sys.modules.get(name) is module for name, module in layer.modules.items())


def _is_import() -> bool:
    """Tell whether the caller imports a module, and does not only look for it or reload it."""
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
