"""The contents of modules as numbers, for comparing two processes that have imported the same modules.

The numbers are Python's hashes, so both processes have to be forks of one: there, equal strings have equal hashes, and
objects from before the fork have equal addresses.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import functools
import gc
import logging
import random
import re
import sys
import types
import uuid
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePath
from typing import Any

#: How many levels of containers and attributes are compared.
_DEPTH = 12

#: After this many objects, only the types of the others are compared.
_OBJECTS = 2_000_000

#: Arrays of more than this many bytes are compared by their type only.
_ARRAY_BYTES = 1 << 20

#: What the import system writes into modules.
_OF_IMPORTS = frozenset(
    "__name__ __doc__ __package__ __loader__ __spec__ __file__ __cached__ __path__ __builtins__ "
    "__warningregistry__ __dict__ __weakref__ __module__ __qualname__ __firstlineno__".split()
)

#: Types whose values are compared as they are.
_PLAIN = (int, str, bytes, bool, type(None), type(Ellipsis), type(NotImplemented), range)

#: Where NumPy keeps the generator behind its functions. Each task gets a new seed.
NUMPY_GENERATOR = "numpy.random.mtrand._rand"


def contents(modules: Mapping[str, types.ModuleType], known: Collection[int]) -> dict[str, int]:
    """Return a number for each attribute of ``modules``, by its full name.

    :param known: ids of objects from before the import; these are compared by identity.
    """
    walk = _Walk(known)
    found = {}
    if "numpy.random.mtrand" in modules:
        generator = modules["numpy.random.mtrand"]._rand
        found[NUMPY_GENERATOR] = hash(repr(generator.get_state()))
        walk.pass_over(generator, generator._bit_generator)
    for name, module in modules.items():
        if name.partition(".")[0] in sys.stdlib_module_names:
            continue
        for attribute, value in list(vars(module).items()):
            if f"{name}.{attribute}" == NUMPY_GENERATOR:
                continue
            if attribute not in _OF_IMPORTS and not issubclass(type(value), types.ModuleType):
                found[f"{name}.{attribute}"] = walk.attribute(name, value)
    return found


class _Walk:
    def __init__(self, known: Collection[int]) -> None:
        self._known = known
        self._numbers: dict[int, int] = {}
        #: Keeps objects alive, so that their ids are not reused.
        self._kept: list[object] = []

    def pass_over(self, *values: object) -> None:
        """Count ``values`` as equal, whatever they hold."""
        self._kept += values
        self._numbers.update({id(value): hash(type(value).__qualname__) for value in values})

    def attribute(self, module: str, value: object) -> int:
        """Return the number of a module's attribute; its own classes are looked into."""
        if issubclass(type(value), type) and value.__module__ == module:
            return self._combine("class", self._class(value), 1)
        return self.number(value, 0)

    def number(self, value: object, depth: int) -> int:
        kind = type(value)
        if kind in _PLAIN:
            return hash((kind.__name__, value))
        if kind in (float, complex):
            return hash(repr(value))
        if id(value) in self._known:
            return hash(("known", id(value)))
        if id(value) in self._numbers:
            return self._numbers[id(value)]
        label = f"{kind.__module__}.{kind.__qualname__}"
        if depth > _DEPTH or len(self._kept) > _OBJECTS:
            return hash(label)
        self._kept.append(value)
        self._numbers[id(value)] = hash(("circle", label))
        try:
            number = self._combine(label, self._inside(value), depth)
        except Exception:  # compared by its type only
            number = hash(label)
        self._numbers[id(value)] = number
        return number

    def _combine(self, label: str, inside: object, depth: int) -> int:
        if isinstance(inside, _PLAIN):
            return hash((label, inside))
        if isinstance(inside, (list, tuple)):
            return hash((label, *(self.number(each, depth + 1) for each in inside)))
        if isinstance(inside, (set, frozenset)):
            return hash((label, *sorted(self.number(each, depth + 1) for each in inside)))
        if isinstance(inside, dict):
            pairs = ((self.number(k, depth + 1), self.number(v, depth + 1)) for k, v in list(inside.items()))
            return hash((label, *sorted(pairs)))
        return hash(label)

    def _class(self, value: Any) -> dict[object, object]:
        return {name: each for name, each in vars(value).items() if name not in _OF_IMPORTS and name != "_abc_impl"}

    def _inside(self, value: Any) -> object:
        """Return of what a value is made: something plain, or a container."""
        for kind, look in _LOOKS:
            if issubclass(type(value), kind):
                return look(value)
        return _NUMPY.get((type(value).__module__, type(value).__name__), _state)(value)


def _state(value: Any) -> object:
    """Return an instance's attributes."""
    found: dict[object, object] = {}
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            slot = kind.__dict__.get(name)
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    found[name] = slot.__get__(value)
                except AttributeError:
                    continue
    with contextlib.suppress(AttributeError, TypeError):
        found.update(object.__getattribute__(value, "__dict__"))
    return found


def _function(value: types.FunctionType) -> object:
    cells = []
    for cell in value.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # empty
            continue
    return [value.__module__, value.__qualname__, value.__defaults__, value.__kwdefaults__, cells, vars(value)]


def _random(value: random.Random) -> object:
    return None if isinstance(value, random.SystemRandom) else repr(value.getstate())


def _array(value: Any) -> object:
    if value.dtype.hasobject or value.nbytes > _ARRAY_BYTES:
        return None
    if value.dtype.char in "gG" or value.dtype.names:
        # Long doubles and records have bytes that belong to no value, and may hold anything.
        return [str(value.dtype), value.shape, repr(value.tolist())]
    return [str(value.dtype), value.tobytes()]


def _lru_cache(value: Any) -> object:
    return [each for each in gc.get_referents(value) if not isinstance(each, type)]


#: How to look into values, by their type; the first that fits.
_LOOKS: tuple[tuple[Any, Callable[[Any], object]], ...] = (
    (types.ModuleType, lambda value: value.__name__),
    (type, lambda value: f"{value.__module__}.{value.__qualname__}"),
    (logging.Logger, lambda value: value.name),
    ((datetime.date, datetime.time, datetime.timedelta, decimal.Decimal), repr),
    ((uuid.UUID, PurePath), str),
    (int, lambda value: [int.__int__(value), _state(value)]),
    (str, lambda value: [str.__str__(value), _state(value)]),
    (bytes, lambda value: [bytes.__bytes__(value) if hasattr(bytes, "__bytes__") else b"".join([value])]),
    ((float, complex), lambda value: repr(value.real) + repr(value.imag)),
    (types.FunctionType, _function),
    (functools._lru_cache_wrapper, _lru_cache),
    ((types.BuiltinFunctionType, types.MethodDescriptorType), lambda value: value.__qualname__),
    (types.MethodType, lambda value: [value.__func__, value.__self__]),
    ((classmethod, staticmethod), lambda value: [value.__func__]),
    (property, lambda value: [value.fget, value.fset, value.fdel]),
    (functools.partial, lambda value: [value.func, value.args, value.keywords]),
    (random.Random, _random),
    (re.Pattern, lambda value: [value.pattern, value.flags]),
    (types.MappingProxyType, dict),
    (dict, lambda value: dict(dict.items(value))),
    ((list, deque), list),
    (bytearray, bytes),
    (tuple, tuple),
    ((set, frozenset), set),
)


#: Of NumPy, which need not be there.
_NUMPY: dict[tuple[str, str], Callable[[Any], object]] = {
    ("numpy", "ndarray"): _array,
    ("numpy.random._generator", "Generator"): lambda value: repr(value.bit_generator.state),
    ("numpy.random.mtrand", "RandomState"): lambda value: repr(value.get_state()),
}
