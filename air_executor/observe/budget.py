"""What the runs of this machine take of its memory and CPUs, and what waits for room, as people see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from air_executor import config
from air_executor.errors import AirExecutorError
from air_executor.runs.budget import Budget
from air_executor.runs.ledger import Ledger, Taken
from air_executor.runs.line import Waiting


@dataclass(frozen=True)
class ObservedBudget:
    """The budget as the options of this shell have it, and what is taken of it."""

    budget: Budget
    taken: Taken
    waiting: tuple[Waiting, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data. Sizes are bytes; ``null`` is no budget."""
        return {
            "memory_bytes": self.budget.memory,
            "memory_taken_bytes": self.taken.memory,
            "cpus": self.budget.cpus,
            "cpus_taken": self.taken.cpus,
            "runs": self.taken.runs,
        }


def look() -> ObservedBudget | None:
    """Return what is taken of this machine; ``None`` when there is no budget, and nobody keeps to one.

    :raises AirExecutorError: an option can't be used, or the files can't be read.
    """
    options = config.load_plain()
    budget = Budget.of(options.memory_budget, options.cpu_budget, options.over_budget)
    ledger = Ledger(budget, options.budget_dir)
    claims = ledger.claims() if ledger.is_there else []
    waiting = ledger.waiting() if ledger.is_there else []
    # The scheduler's environment may have a budget that this shell's has not.
    if not budget and not claims and not waiting:
        return None
    return ObservedBudget(budget, Taken.by(claims), tuple(waiting))


def look_if_possible() -> ObservedBudget | None:
    """Return the same; ``None`` also when it can't be told. The doctor says why."""
    try:
        return look()
    except AirExecutorError:
        return None


def documents(waiting: tuple[Waiting, ...]) -> list[dict[str, Any]]:
    """Return what waits as plain data: ``name``, ``dag_id``, sizes, ``since`` and ``why`` of each."""
    return [
        {
            "name": each.name,
            "dag_id": each.dag_id,
            "memory_bytes": each.memory,
            "cpus": each.cpus,
            "since": datetime.fromtimestamp(each.since_s, tz=timezone.utc).isoformat(),
            "why": each.why,
        }
        for each in waiting
    ]
