"""How much of everything."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Sizes:
    """Numbers of tasks; dags read theirs from the environment."""

    parallelism: int = 32
    noops: int = 200
    pandas: int = 100
    pandas_warm_up: int = 32
    chain: int = 20
    #: Runs of one task each.
    singles: int = 15
    sleepers: int = 32
    #: Tasks that sleep at once, with a parallelism to match. 24 GiB hold them, with little to spare when they end.
    crowd: int = 1000
    #: Tasks in a row, in dag runs of this many.
    row: int = 5000
    row_step: int = 500
    #: For how many seconds an idle scheduler is watched.
    watch_s: int = 20

    def environment(self) -> dict[str, str]:
        """Return the variables for the DAGs."""
        return {f"BENCHMARK_{name.upper()}": str(value) for name, value in asdict(self).items()}


#: To see whether it works; the figures mean nothing.
QUICK = Sizes(
    parallelism=4,
    noops=6,
    pandas=4,
    pandas_warm_up=2,
    chain=3,
    singles=2,
    sleepers=4,
    crowd=10,
    row=18,
    row_step=6,
    watch_s=5,
)
