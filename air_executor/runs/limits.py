"""Per-task limits: what ``executor_config={"air": {...}}`` may say, and how it is applied to a runner."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import orjson
import psutil

from air_executor.errors import LimitsError
from air_executor.machine.sizes import parse_size

#: Of a learned limit: from this many measured runs on, the most that they held and a fifth.
ENOUGH_RUNS, MARGIN = 5, 1.2

#: After an end for lack of memory it is doubled, but only so often.
_DOUBLED = 8


@dataclass(frozen=True)
class MemoryRule:
    """How the memory limit of a try is found: by ``steps``, or from earlier runs. Sizes are in bytes."""

    steps: tuple[int, ...] = ()
    """The limit of the first try, of one that follows an end for lack of memory, and so on."""
    floor: int | None = None
    ceiling: int | None = None
    """Of a learned limit: the least and the most that it is."""

    def limit(self, memory_ends: int, peaks: Sequence[int]) -> int | None:
        """Return the limit of a try; ``None``: it has none.

        :param memory_ends: how many earlier tries ended for lack of memory.
        :param peaks: what earlier runs of the task have held at most.
        """
        if self.steps:
            return self.steps[min(memory_ends, len(self.steps) - 1)]
        if len(peaks) < ENOUGH_RUNS:
            return self.ceiling
        learned = max(int(max(peaks) * MARGIN), self.floor or 0) << min(memory_ends, _DOUBLED)
        return learned if self.ceiling is None else min(learned, self.ceiling)

    def public(self) -> Any:
        """Return it as it may be written down."""
        bounds = {"floor": self.floor, "ceiling": self.ceiling}
        return list(self.steps) or {"auto": {name: size for name, size in bounds.items() if size is not None}}


@dataclass(frozen=True)
class Limits:
    """What one task may use. ``None`` is no limit."""

    memory: int | None = None
    """Bytes that the task process and its descendants may hold together."""
    memory_rule: MemoryRule | None = None
    """How to find that, if it is not the same for all tries."""
    cpu_time: float | None = None
    """Seconds of CPU that they may use together."""
    cpus: int | None = None
    """On how many CPUs they may run."""
    nice: int | None = None
    """How much lower than the scheduler's their priority is: 1 to 19 (negative needs privileges)."""
    timeout: float | None = None
    """Seconds from the start until the task is stopped."""
    gpus: int | None = None
    """GPUs to lease for the task alone."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the task."""

    @property
    def are_measured(self) -> bool:
        """Whether the task has to be measured while it runs."""
        return self.memory is not None or self.memory_rule is not None or self.cpu_time is not None

    def public(self) -> dict[str, Any]:
        """Return what may be written down: of the environment only the names, as values may be secret."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if (rule := values.pop("memory_rule")) is not None:
            values["memory"] = rule.public()
        values["environment"] = sorted(self.environment) or None
        return {name: value for name, value in values.items() if value is not None}

    def apply(self) -> None:
        """Apply what needs no measuring to this process, and so to its children: priority, CPUs, environment.

        :raises LimitsError: the machine does not offer it.
        """
        if self.nice is not None:
            try:
                os.nice(self.nice)
            except OSError as error:
                raise _bad("nice", self.nice, f"the system refuses it: {error.strerror}") from None
        if self.cpus is not None:
            _bind_to_cpus(self.cpus)
        os.environ.update(self.environment)


def parse(raw: Any) -> Limits:
    """Read the limits of a task.

    :param raw: the value of ``executor_config["air"]``; ``None`` when there is none.
    :raises LimitsError: something in it is unknown or can't be used; the message names the key and what is wanted.
    """
    if raw is None:
        return Limits()
    if not isinstance(raw, dict):
        raise LimitsError(f"executor_config['air'] must be a dict of limits, not {raw!r}.")
    unknown = sorted(str(name) for name in raw.keys() - _PARSERS.keys())
    if unknown:
        raise LimitsError(
            f"executor_config['air'] has unknown keys: {', '.join(unknown)}. Known are: {', '.join(_PARSERS)}."
        )
    values = {}
    for name, value in raw.items():
        try:
            values[name] = _PARSERS[name](value)
        except (ValueError, TypeError, OverflowError) as error:
            raise _bad(name, value if name != "environment" else "…", str(error)) from None
    if isinstance(values.get("memory"), MemoryRule):
        values["memory_rule"] = values.pop("memory")
    return Limits(**values)


def as_json(raw: Any) -> Any:
    """Return ``executor_config["air"]`` as plain data for a message.

    What is not plain data becomes text, which :func:`parse` then refuses by name.
    """
    try:
        return orjson.loads(orjson.dumps(raw, default=_stand_in, option=orjson.OPT_NON_STR_KEYS))
    except (TypeError, ValueError):
        return f"a {type(raw).__name__} that is not plain data"


def _stand_in(value: Any) -> dict[str, list[str]]:
    return {"not plain data": [type(value).__name__]}


def public(raw: Any) -> dict[str, Any]:
    """Return what may be written down of ``executor_config["air"]``; nothing when it can't be used."""
    try:
        return parse(raw).public()
    except LimitsError:
        return {}


def _bad(name: str, value: Any, why: str) -> LimitsError:
    return LimitsError(f"executor_config['air']['{name}'] = {value!r} can not be applied: {why}.")


def _memory(value: Any) -> int | MemoryRule:
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("it must name a size for the first try, and one for each after an end for lack of memory")
        return MemoryRule(steps=tuple(map(parse_size, value)))
    if value == "auto":
        return MemoryRule()
    if isinstance(value, dict):
        bounds = value.get("auto")
        if value.keys() != {"auto"} or not isinstance(bounds, dict) or bounds.keys() - {"floor", "ceiling"}:
            raise ValueError(
                "it must be a size, a list of sizes, 'auto', or {'auto': {'floor': size, 'ceiling': size}}"
            )
        sizes = {name: parse_size(size) for name, size in bounds.items()}
        rule = MemoryRule(floor=sizes.get("floor"), ceiling=sizes.get("ceiling"))
        if rule.floor is not None and rule.ceiling is not None and rule.floor > rule.ceiling:
            raise ValueError("its floor is above its ceiling")
        return rule
    return parse_size(value)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
        raise ValueError("it must be a number of seconds, more than 0")
    return float(value)


def _whole(least: int, most: float = math.inf) -> Callable[[Any], int]:
    def parse_whole(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            top = "" if most == math.inf else f" and at most {most}"
            raise ValueError(f"it must be a whole number, at least {least}{top}")
        return value

    return parse_whole


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(part, str) for item in value.items() for part in item):
        raise ValueError("it must be a dict of text to text")
    for name, text in value.items():
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(f"{name!r} is not the name of an environment variable, or its value holds a zero byte")
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "memory": _memory,
    "cpu_time": _seconds,
    "cpus": _whole(1),
    "nice": _whole(-20, 19),
    "timeout": _seconds,
    "gpus": _whole(1),
    "environment": _environment,
}


def _bind_to_cpus(count: int) -> None:
    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):
        raise _bad("cpus", count, "this system can not bind processes to CPUs")
    available = process.cpu_affinity()
    if count > len(available):
        raise _bad("cpus", count, f"this machine has {len(available)} for it")
    process.cpu_affinity(random.sample(available, count))
