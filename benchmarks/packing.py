"""More memory wanted than there is: ``python -m benchmarks.packing``.

Forty tasks of 100 to 900 MiB, most of it touched and held for 2 to 6 s, where 2 GiB are for them all: AirExecutor with
a memory budget, and LocalExecutor. The scheduler, and with it all that runs tasks, is in a memory control group
(version 1; making one takes root) with room for the scheduler beside those 2 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import plotter, save, table
from benchmarks.results import machine, version
from tests.support import airflow_env
from tests.support.airflow_env import REPOSITORY, Airflow
from tests.support.api import ENDED
from tests.support.waiting import wait_for

MIB = 1 << 20
BUDGET = 2048 * MIB

#: For the scheduler, its launcher or workers, and what the kernel counts of files.
BESIDE = 1024 * MIB

EXECUTORS = {"AirExecutor": "air_executor.AirExecutor", "LocalExecutor": "LocalExecutor"}

#: Sizes in MiB and times in seconds: the same for all.
TASKS = [(draw.randint(100, 900), draw.randint(2, 6)) for draw in map(random.Random, range(40))]

_DAG = """
import time
from airflow.sdk import dag, task

@dag(schedule=None, max_active_tasks=100)
def packing():
    for number, (size, seconds) in enumerate({tasks}):
        @task(task_id=f"t{{number:02}}", executor_config={{"air": {{"memory": f"{{size}}MiB"}}}})
        def hold(mebibytes, seconds):
            held = bytearray(mebibytes << 20)
            for at in range(0, len(held), 4096):
                held[at] = 1
            time.sleep(seconds)
        hold(size - 70, seconds)

packing()
"""


@contextlib.contextmanager
def group(limit: int) -> Iterator[Path | None]:
    """Make a memory control group; yield ``None`` where that is not possible."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":", 2)[2] for line in lines if ":memory:" in line), None)
    folder = Path(f"/sys/fs/cgroup/memory/{own}/packing-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit))
    except OSError as error:
        print(f"no memory control group can be made ({error}); without one", flush=True)
        yield None
        return
    try:
        yield folder
    finally:

        def is_empty() -> bool:
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)  # all of them are this benchmark's
            return not (folder / "cgroup.procs").read_text()

        wait_for(is_empty, "the control group to be empty")
        folder.rmdir()


def measure(executor: str, folder: Path, base: Path) -> dict[str, Any]:
    """Run the tasks once."""
    options = {
        "AIRFLOW__CORE__EXECUTOR": EXECUTORS[executor],
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__AIR_EXECUTOR__MEMORY_BUDGET": str(BUDGET),
        "AIRFLOW__AIR_EXECUTOR__BUDGET_DIR": str(folder / "budget"),
    }
    airflow = airflow_env.make(folder / executor, base, options, is_quick=False)
    for path in airflow.dags.glob("*.py"):
        path.unlink()
    (airflow.dags / "packing.py").write_text(_DAG.format(tasks=TASKS))
    with group(BUDGET + BESIDE) as place:
        try:
            airflow.start()
            airflow.api.unpause("packing")
            if place is not None:
                scheduler = psutil.Process(airflow.processes["scheduler"].pid)
                for process in [scheduler, *scheduler.children(recursive=True)]:
                    (place / "cgroup.procs").write_text(str(process.pid))
                for process in airflow.ours():  # a launcher is no child of the scheduler
                    if process.name().startswith("air-executor") or "air-executor" in " ".join(process.cmdline()):
                        (place / "cgroup.procs").write_text(str(process.pid))
            return _figures(airflow, place)
        finally:
            airflow.end()


def _figures(airflow: Airflow, place: Path | None) -> dict[str, Any]:
    run = airflow.api.trigger("packing")
    with contextlib.suppress(AssertionError):
        wait_for(lambda: run.state in ENDED, "the end of the run", 400)
    instances = run.instances()
    sizes = {f"t{number:02}": size for number, (size, _) in enumerate(TASKS)}
    used = [
        (
            sizes[each["task_id"]],
            datetime.fromisoformat(each["start_date"]).timestamp(),
            datetime.fromisoformat(each["end_date"]).timestamp(),
        )
        for each in instances
        if each["start_date"] and each["end_date"]
    ]
    began = min(begin for _, begin, _ in used)
    changes = sorted((at - began, change) for size, begin, end in used for at, change in ((begin, size), (end, -size)))
    wanted = list(itertools.accumulate(change for _, change in changes))
    kills = None if place is None else (place / "memory.oom_control").read_text().split()[-1]
    return {
        "state": run.state,
        "tasks": dict(Counter(str(each["state"]) for each in instances)),
        "makespan_s": max(end for _, _, end in used) - began,
        "killed_by_the_kernel": None if kills is None else int(kills),
        "scheduler_died": airflow.processes["scheduler"].poll() is not None,
        "ideal_s": sum(size * (end - begin) for size, begin, end in used) * MIB / BUDGET,
        "wanted_at_once_mib": max(wanted),
        "course": [[round(at, 2), sum_] for (at, _), sum_ in zip(changes, wanted, strict=True)],
    }


def report(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the report as Markdown."""
    rows = [
        [
            "",
            "tasks that succeeded",
            "killed by the kernel",
            "makespan, s",
            "of a perfect packing",
            "wanted, MiB",
        ],
        ["---"] * 6,
    ]
    for name, samples in found.items():
        for sample in samples:
            ok = sample["tasks"].get("success", 0)
            kills = sample["killed_by_the_kernel"]
            died = "; its scheduler died" if sample["scheduler_died"] else ""
            ratio = f"{sample['makespan_s'] / sample['ideal_s']:.2f} x" if ok == len(TASKS) else "-"
            rows.append(
                [name, f"{ok} of {len(TASKS)}{died}", "-" if kills is None else str(kills),
                 f"{sample['makespan_s']:.0f}", ratio, str(sample["wanted_at_once_mib"])]
            )  # fmt: skip
    return "\n\n".join(
        [
            "# More memory wanted than there is",
            f"Made by `python -m benchmarks.packing`. Forty tasks of 100 to 900 MiB, held for 2 to 6 s, together "
            f"{sum(size for size, _ in TASKS):,} MiB, in a control group with 2 GiB for them and 1 GiB for the "
            "scheduler and what runs tasks. AirExecutor has `memory_budget` = 2 GiB, and each task a memory limit of "
            "its size. A perfect packing is the sum of size times duration over 2 GiB, with all the time that each "
            "task took: no order beats it. *Wanted* is what the tasks that ran at once had together. No task has "
            "retries.",
            table(rows),
            "![memory of the tasks that run, as their limits have it](packing.svg)",
            "The machine:",
            table([["", ""], ["---", "---"], *map(list, machine(["apache-airflow"]).items())]),
            f"AirExecutor {version()}.\n",
        ]
    )


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw how much memory the tasks that ran wanted together."""
    figure, axes = plotter().subplots(figsize=(9, 3.2), layout="constrained")
    for name, samples in found.items():
        course = samples[0]["course"]
        axes.step([at for at, _ in course], [size / 1024 for _, size in course], where="post", label=name)
    axes.axhline(BUDGET / MIB / 1024, color="grey", linestyle="--", label="what there is")
    axes.set_xlabel("s")
    axes.set_ylabel("GiB")
    axes.legend()
    save(figure, path)


def main() -> int:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description="Memory as a resource.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--executors", default=",".join(EXECUTORS))
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks", metavar="FOLDER")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.executors.split(",")}
    with tempfile.TemporaryDirectory(prefix="packing-") as folder:
        for number in range(options.rounds):
            for name, samples in found.items():
                place = Path(folder) / f"round-{number}"
                place.mkdir(exist_ok=True)
                samples.append(measure(name, place, Path(folder)))
                print(name, {key: value for key, value in samples[-1].items() if key != "course"}, flush=True)
    text = report(found)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "packing.md").write_text(text)
    (options.out / "packing.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, options.out / "packing.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
