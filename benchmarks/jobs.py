"""What a job costs, beside its peers: ``python -m benchmarks.jobs``.

The peers are huey with its file storage, a shell's ``xargs -P``, and the floor. All run the command ``true``, with the
same number of places; the floor is ``posix_spawn`` and ``wait`` from one loop, with as many at a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from air_executor.jobs import api
from air_executor.jobs.manager import Manager
from air_executor.jobs.model import JobState
from air_executor.jobs.store import JobStore
from benchmarks.report import plotter, save, table
from benchmarks.results import machine, version
from tests.support.airflow_env import REPOSITORY, config

#: Of the module that huey's consumer imports.
_HUEY = """
import subprocess
from huey import FileHuey
huey = FileHuey("bench", path={path!r}, use_thread_lock=True, store_none=True)

@huey.task()
def run():
    subprocess.run(["true"], check=True)
"""

#: Waits until this many results are there.
_HUEY_WAIT = "import sys, time, work\nwhile work.huey.result_count() < int(sys.argv[1]): time.sleep(0.1)"

_QUEUE = (
    "from air_executor.jobs import queue_tasks; queue_tasks([{'command': 'true'}] * int(__import__('sys').argv[1]))"
)

#: Into this many parts a job is divided, to see whether it costs more as it grows.
_PARTS = 10

_EXPLANATION = """\
Made by `python -m benchmarks.jobs`. Every task is the command `true`; {places} run at a time. Tasks/s are medians over
{rounds} rounds, with the least and the greatest in brackets, of {count:,} tasks each. *Queued inside*: one task queues
all others. *Floor*: `posix_spawn` and `wait` from one loop, nothing else. huey has its file storage, and a worker
process for each place; nobody waits for its results but one process that counts them ten times a second. `xargs` and
the floor keep no record of anything."""


def engine(tasks: list[dict[str, Any]], places: int, expected: int) -> dict[str, Any]:
    """Run a job; return its tasks per second and its manager's CPU per task, and both for each part of it."""
    with tempfile.TemporaryDirectory(prefix="air-jobs-", ignore_cleanup_errors=True) as folder:  # a launcher ends yet
        store = JobStore(folder)
        api.submit("bench", tasks, max_runners=places, folder=folder, state_dir=folder)
        manager = Manager(config(Path(folder), launcher_idle_seconds=1.0), max_runners=places)
        clock: list[tuple[float, float]] = []

        def is_over() -> bool:
            clock.append((time.time(), time.process_time()))
            return store.files("bench").is_ended()

        began_s, cpu_s = time.monotonic(), time.process_time()
        manager.serve(until=is_over)
        took_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
        files = store.open("bench")
        if files.job.state is not JobState.COMPLETED or len(files.tasks) != expected:
            raise RuntimeError(f"the job ended {files.job.state.value}: {files.job.error}")
        ends = sorted(datetime.fromisoformat(task.completed_at or "").timestamp() for task in files.tasks.values())
    part = max(1, len(ends) // _PARTS)
    cuts = [ends[0], *(ends[number * part - 1] for number in range(1, _PARTS)), ends[-1]]
    cpu = [next((used for at, used in clock if at >= cut), clock[-1][1]) for cut in cuts]
    return {
        "tasks_per_s": expected / took_s,
        "manager_ms_per_task": cpu_s * 1000 / expected,
        "parts": {
            "tasks_per_s": [part / (after - before) for before, after in itertools.pairwise(cuts)],
            "manager_ms_per_task": [(after - before) * 1000 / part for before, after in itertools.pairwise(cpu)],
        },
    }


def huey(count: int, places: int) -> dict[str, Any]:
    """Run as many tasks through huey's consumer, with its tasks as files."""
    with tempfile.TemporaryDirectory(prefix="huey-") as folder:
        (Path(folder) / "work.py").write_text(_HUEY.format(path=f"{folder}/queue"))
        env = {**os.environ, "PYTHONPATH": folder}
        fill = f"import work; [work.run() for _ in range({count})]"
        subprocess.run([sys.executable, "-c", fill], env=env, check=True)
        workers = ["-w", str(places), "-k", "process", "-d", "0.01", "-n"]
        began_s = time.monotonic()
        consumer = subprocess.Popen(
            [sys.executable, "-m", "huey.bin.huey_consumer", "work.huey", *workers],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            subprocess.run([sys.executable, "-c", _HUEY_WAIT, str(count)], env=env, check=True, timeout=600)
            return {"tasks_per_s": count / (time.monotonic() - began_s)}
        finally:
            consumer.terminate()
            consumer.wait()


def xargs(count: int, places: int) -> dict[str, Any]:
    """Run as many commands through ``xargs -P``."""
    began_s = time.monotonic()
    numbers = "\n".join(map(str, range(count)))
    subprocess.run(["xargs", "-P", str(places), "-n", "1", "true"], input=numbers.encode(), check=True)
    return {"tasks_per_s": count / (time.monotonic() - began_s)}


def floor(count: int, places: int) -> dict[str, Any]:
    """Start as many processes, this many at a time, and wait for them: nothing else."""
    began_s = time.monotonic()
    live = 0
    for _ in range(count):
        if live == places:
            os.wait()
            live -= 1
        os.posix_spawn("/bin/true", ["true"], os.environ)
        live += 1
    while live:
        os.wait()
        live -= 1
    return {"tasks_per_s": count / (time.monotonic() - began_s)}


def measure(rounds: int, count: int, growing: int, places: int) -> dict[str, list[dict[str, Any]]]:
    """Measure everything, the peers in turn; return the samples of each."""
    noop = [{"id": f"t{number}", "command": "true"} for number in range(max(count, growing))]
    inside = [{"id": "queue", "command": sys.executable, "args": ["-c", _QUEUE, str(count)]}]
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "AirExecutor's engine": lambda: engine(noop[:count], places, count),
        "AirExecutor's engine, queued inside": lambda: engine(inside, places, count + 1),
        "huey": lambda: huey(count, places),
        "xargs -P": lambda: xargs(count, places),
        "floor": lambda: floor(count, places),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in measures}
    for number in range(rounds):
        for name, sample in measures.items():
            found[name].append(sample())
            print(f"round {number + 1} {name}: {found[name][-1]['tasks_per_s']:.0f} tasks/s", flush=True)
    found["growing"] = [engine(noop[:growing], places, growing)]
    return found


def report(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    """Return the report as Markdown."""
    rows = [["", "tasks/s", "manager's CPU per task, ms"], ["---"] * 3]
    for name, samples in found.items():
        if name == "growing":
            continue
        rates = [sample["tasks_per_s"] for sample in samples]
        cpu = [sample["manager_ms_per_task"] for sample in samples if "manager_ms_per_task" in sample]
        spread = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        rows.append([name, spread, f"{statistics.median(cpu):.2f}" if cpu else "-"])
    [growing] = found["growing"]
    share = options.growing // _PARTS
    parts = [["tasks", "tasks/s", "manager's CPU per task, ms"], ["---"] * 3]
    for number, (rate, cpu_ms) in enumerate(zip(*growing["parts"].values(), strict=True)):
        parts.append([f"{number * share:,} to {(number + 1) * share:,}", f"{rate:.0f}", f"{cpu_ms:.2f}"])
    return "\n\n".join(
        [
            "# Jobs of the standalone engine",
            _EXPLANATION.format(**vars(options)),
            table(rows),
            f"One job of {options.growing:,} tasks, in the order in which they ended:",
            "![cost per task as the job grows](jobs.svg)",
            table(parts),
            "The machine:",
            table([["", ""], ["---", "---"], *map(list, machine(["huey"]).items())]),
            f"AirExecutor {version()}.\n",
        ]
    )


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw what a task costs as the job grows."""
    parts = found["growing"][0]["parts"]
    figure, axes = plotter().subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for each, (name, values) in zip(axes, parts.items(), strict=True):
        each.plot([number * 100 / _PARTS for number in range(1, _PARTS + 1)], values, marker="o")
        each.set_ylim(0)
        each.set_xlabel("% of the job")
        each.set_title({"tasks_per_s": "tasks/s", "manager_ms_per_task": "manager's CPU per task, ms"}[name])
    save(figure, path)


def main() -> int:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description="Compare the engine with its peers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--growing", type=int, default=10_000)
    parser.add_argument("--places", type=int, default=4)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks", metavar="FOLDER")
    options = parser.parse_args()
    found = measure(options.rounds, options.count, options.growing, options.places)
    text = report(found, options)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "jobs.md").write_text(text)
    plot(found, options.out / "jobs.svg")
    (options.out / "jobs.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
