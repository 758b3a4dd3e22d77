"""How much of this machine its runs may take together, and how much of that one run counts for."""

from __future__ import annotations

from dataclasses import dataclass

from air_executor.errors import LimitsError
from air_executor.machine import room
from air_executor.machine.sizes import mebibytes, parse_size
from air_executor.runs import limits as task_limits
from air_executor.runs.learned import Learned
from air_executor.runs.limits import MARGIN, Limits
from air_executor.runs.record import Identity

#: Of the memory that there is, so much is left to the system, the scheduler and whatever else runs here.
_RESERVED_PART, _RESERVED_BYTES = 0.1, 512 << 20


@dataclass(frozen=True)
class Need:
    """What one run counts for."""

    memory: int = 0
    """Bytes."""
    cpus: float = 0.0


@dataclass(frozen=True)
class Budget:
    """What all runs may take together. ``None``: as much as they like."""

    memory: int | None = None
    """Bytes."""
    cpus: float | None = None
    fails_large: bool = False
    """Whether a run that needs more than that fails; otherwise it runs alone."""

    @classmethod
    def of(cls, memory: str, cpus: str, large: str) -> Budget:
        """Return the budget that the options ``memory_budget``, ``cpu_budget`` and ``over_budget`` stand for."""
        return cls(parse_memory(memory), parse_cpus(cpus), large == "fail")

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return self.memory is not None or self.cpus is not None

    def excess(self, need: Need) -> str | None:
        """Return why a run never has room beside others; ``None`` when it may have."""
        if self.memory is not None and need.memory > self.memory:
            return (
                f"it needs {mebibytes(need.memory)} of memory, and all runs together may have {mebibytes(self.memory)}"
            )
        if self.cpus is not None and need.cpus > self.cpus:
            return f"it needs {need.cpus:g} CPUs, and all runs together may have {self.cpus:g}"
        return None

    def need(self, limits: Limits, learned: Learned, who: Identity) -> Need:
        """Return what a run counts for, as far as there is a budget: its limit, or else what earlier runs have held.

        A run of which nothing is known counts for what it holds, once it runs, and for one CPU. Only what its limits
        say can be more than the whole budget.
        """
        return Need(self._memory(limits, learned, who), self._cpus(limits))

    def _memory(self, limits: Limits, learned: Learned, who: Identity) -> int:
        if self.memory is None:
            return 0
        if limits.memory is not None:
            return limits.memory
        rule = limits.memory_rule
        limit = None if rule is None else rule.limit(learned.memory_ends(who), learned.peaks(who))
        if limit is not None and rule is not None and rule.steps:
            return limit
        held = max([*learned.peaks(who), *learned.seen(who)], default=0)
        return min(self.memory, limit or int(held * MARGIN))

    def _cpus(self, limits: Limits) -> float:
        if self.cpus is None:
            return 0.0
        return min(1.0, self.cpus) if limits.cpus is None else float(limits.cpus)

    def need_of(self, air: object, learned: Learned, who: Identity) -> Need:
        """Return what a run with these limits counts for, see :meth:`need`; with wrong ones it fails anyway."""
        try:
            limits = task_limits.parse(task_limits.as_json(air))
        except LimitsError:
            return Need()
        return self.need(limits, learned, who)


def parse_memory(text: str) -> int | None:
    """Return the bytes that the option ``memory_budget`` stands for now; ``None`` for ``off``.

    :raises ValueError: it is neither ``off`` nor ``auto`` nor a size.
    """
    if text == "off":
        return None
    if text == "auto":
        there = room.memory_bytes()
        return there - min(there // 2, max(int(there * _RESERVED_PART), _RESERVED_BYTES))
    return parse_size(text)


def parse_cpus(text: str) -> float | None:
    """Return the number of CPUs that the option ``cpu_budget`` stands for now; ``None`` for ``off``.

    :raises ValueError: it is neither ``off`` nor ``auto`` nor a number.
    """
    if text == "off":
        return None
    if text == "auto":
        return room.cpus()
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("must be off, auto or a number of CPUs, more than 0")
    return value
