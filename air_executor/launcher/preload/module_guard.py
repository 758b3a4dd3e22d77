"""What modules hold, before and after others are imported: what an import replaces in them, or adds to them."""

from __future__ import annotations

import contextlib
import logging
import sys
import types
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

#: Attributes that are left out, by module: caches that imports fill, and what is compared in other ways.
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
    "air_executor.runner.stash": ("stash",),
}


class ModuleGuard:
    """The contents of the present modules, a few levels deep, to find what an import replaces in them."""

    #: How many levels of modules, classes, instances and containers are compared.
    _DEPTH = 3

    #: Containers of more entries than this are caches, and too large to compare.
    _LARGE = 20_000

    def __init__(self, modules: Mapping[str, Any] | None = None) -> None:
        """Look at ``modules``, or at all that are imported."""
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
        """Keys that were added to dictionaries of modules: (module, attribute, key). They can be removed again."""
        # Modules without a spec, such as Cython's, are shared by their users on purpose.
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
        """The ids of the objects that were looked at."""
        return self._held.keys()

    def _hold(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Remember what a value holds, and yield that, with names."""
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
        """Say what was replaced, and what was added, except by the modules ``new`` to their own."""
        tops = {name.partition(".")[0] for name in new} - {name.partition(".")[0] for name in self._modules}
        # Finders that are added behind the others are removed with the modules.
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
                if not _is_cache(name):  # weak caches lose entries at any time
                    yield f"takes away {name}.{_short(key)}"
            elif _is_a(now[key], types.ModuleType) and not _is_a(each, types.ModuleType):
                continue  # a lazy import that was resolved
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


#: Attributes of loggers that are compared in other ways, and a cache that each change of any logger's level empties.
_OF_LOGGERS = frozenset("level handlers filters propagate disabled _cache".split())

#: Attributes that Python sets when they are needed.
_LATE = frozenset("__warningregistry__ __annotations__ __abstractmethods__ _abc_impl __doc__".split())


def _is_a(value: Any, kind: Any) -> bool:
    """Tell whether ``value`` is really of this type. Unlike isinstance(), this never calls the value's own code."""
    return issubclass(type(value), kind)


def _copy(value: Any) -> Any:
    """Return the parts of a value that can be replaced, in a new container; ``None`` if it is not compared."""
    kind = type(value)
    if _is_a(value, types.ModuleType):
        return dict(vars(value))
    if _is_a(value, type):
        # An enumeration fills this map as its values are looked up.
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
    if type(attributes) is not dict:
        return None
    left_out = _OF_LOGGERS if _is_a(value, logging.Logger) else ()
    return {name: each for name, each in attributes.items() if name not in left_out}


def _is_cache(name: str) -> bool:
    """Tell whether a container is private to an installed package."""
    top, *parts = name.split(".")
    return top not in sys.stdlib_module_names and any(part.startswith("_") for part in parts)


def _are_alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(a is b or _are_alike(a, b) for a, b in zip(one, other, strict=True))
    return isinstance(one, (int, float, str, bytes, bool)) and one == other


def _is_own(value: Any, new: Collection[str], tops: Collection[str]) -> bool:
    """Tell whether a value belongs to modules that are new."""
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
