"""What it costs to look after tasks that do nothing: ``python -m benchmarks.asleep``.

A job of very many commands that sleep, all at once. When they have slept for a while, the CPU time of all that looks
after them is added up: their runners, which measure them and show that they live, the launcher and the manager.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from air_executor.jobs import api
from air_executor.jobs.manager import Manager
from air_executor.jobs.model import TaskStatus
from air_executor.jobs.store import JobStore
from air_executor.launcher.address import all_addresses
from air_executor.launcher.client import control
from air_executor.runs.store import RunStore
from air_executor.runs.usage import NAME
from benchmarks.measure import cpu_s
from benchmarks.report import table
from benchmarks.results import machine, version
from tests.support.airflow_env import REPOSITORY, config

_EXPLANATION = """\
Made by `python -m benchmarks.asleep`. {tasks:,} commands sleep at once. From {settle:.0f} s after the last one began,
the CPU time that they, their runners, the launcher and the manager use is added up for {watch:.0f} s, in percent of
one CPU.
Memory and CPU of each task are sampled meanwhile, for `usage.jsonl`."""


class Watch:
    """Tells when tasks have been watched for long enough, and what was used meanwhile."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self._options = options
        self._jobs, self._runs = JobStore(folder), RunStore(folder)
        self._due_s = 0.0
        self._next: Callable[[], float] | None = self._await_all
        self._before: dict[str, dict[int, float]] = {}
        self._began_s = 0.0
        self.percent: dict[str, float] = {}
        """Of one CPU, by what used it."""

    def is_over(self) -> bool:
        """Take the next step, if it is time to."""
        if self._next is not None and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + self._next()
        return self._next is None

    def _await_all(self) -> float:
        tasks = self._jobs.open("asleep").tasks.values()
        if any(task.status is not TaskStatus.RUNNING for task in tasks):
            if ended := [task for task in tasks if task.status.is_end]:
                raise RuntimeError(f"task {ended[0].id} has {ended[0].status.value}: {ended[0].error}")
            return 1.0
        self._next = self._begin
        return float(self._options.settle)

    def _begin(self) -> float:
        self._before, self._began_s = self._cpu_s(), time.monotonic()
        self._next = self._end
        return float(self._options.watch)

    def _end(self) -> float:
        after, lasted_s = self._cpu_s(), time.monotonic() - self._began_s
        for name, before in self._before.items():
            self.percent[name] = (
                100 * sum(after[name].get(pid, used_s) - used_s for pid, used_s in before.items()) / lasted_s
            )
        self._next = None
        return 0.0

    def _cpu_s(self) -> dict[str, dict[int, float]]:
        """Return the CPU time of each process, by what it is."""
        records = list(self._runs.records())
        answers = [control.status(address) for address in all_addresses(self._runs)]
        pids = {
            "runners": [record.pid for record in records],
            "commands": [record.task_pid for record in records],
            "launcher": [answer["pid"] for answer in answers if answer is not None],
            "manager": [os.getpid()],
        }
        used: dict[str, dict[int, float]] = {}
        for name, some in pids.items():
            used[name] = {pid: cpu_s([psutil.Process(pid)], children=False) for pid in some if pid is not None}
        return used


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Let tasks sleep, and return how much of a CPU is used meanwhile, in percent, by what uses it."""
    with tempfile.TemporaryDirectory(prefix="air-asleep-", ignore_cleanup_errors=True) as folder:
        tasks = [{"id": f"t{number}", "command": "sleep", "args": ["36000"]} for number in range(options.tasks)]
        api.submit("asleep", tasks, max_runners=options.tasks, folder=folder, state_dir=folder)
        watch = Watch(options, folder)
        Manager(config(Path(folder), launcher_idle_seconds=1.0), max_runners=options.tasks).serve(until=watch.is_over)
        sampled = len(list(RunStore(folder).root.glob(f"runs/*/{NAME}")))
        store = JobStore(folder)
        store.ask("asleep", "cancel")
        Manager(config(Path(folder), launcher_idle_seconds=1.0)).serve(until=lambda: store.files("asleep").is_ended())
    return watch.percent | {"sampled": float(sampled)}


def report(found: dict[str, float], options: argparse.Namespace) -> str:
    """Return the report as Markdown."""
    used = {name: percent for name, percent in found.items() if name != "sampled"}
    rows = [["", "% of one CPU"], ["---", "---:"], *([name, f"{percent:.2f}"] for name, percent in used.items())]
    return "\n\n".join(
        [
            "# Tasks that sleep",
            _EXPLANATION.format(**vars(options)),
            table([*rows, ["all", f"{sum(used.values()):.2f}"]]),
            f"Tasks with samples: {found['sampled']:,.0f}.",
            "The machine:",
            table([["", ""], ["---", "---"], *map(list, machine([]).items())]),
            f"AirExecutor {version()}.\n",
        ]
    )


def main() -> int:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asleep", description="Tasks that do nothing.")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--settle", type=float, default=120.0, metavar="S", help="seconds until they are watched")
    parser.add_argument("--watch", type=float, default=60.0, metavar="S", help="for this many seconds")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks", metavar="FOLDER")
    options = parser.parse_args()
    text = report(measure(options), options)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "asleep.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
