"""What a job costs, beside its peers: ``python -m benchmarks.jobs``.

The peers are huey with its file storage, a shell's ``xargs -P``, and the floor. All run the command ``true``, with the
same number of places; the floor is ``posix_spawn`` and ``wait`` from one loop, with as many at a time.

- **no-ops**: a job of that many tasks.
- **queued inside**: one task queues that many.
- **as the job grows**: a job of 10,000; tasks/s and the manager's CPU per task in each tenth of it.
"""

from __future__ import annotations

import argparse
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
from tests.support.airflow_env import config

#: Of the module that huey's consumer imports.
_HUEY = """
import subprocess
from huey import FileHuey
huey = FileHuey("bench", path={path!r}, use_thread_lock=True)

@huey.task()
def run():
    subprocess.run(["true"], check=True)
"""


def engine(tasks: list[dict[str, Any]], places: int, expected: int) -> dict[str, Any]:
    """Run a job, and return its tasks per second, and those of each tenth of it."""
    with tempfile.TemporaryDirectory(prefix="air-jobs-") as folder:
        store = JobStore(folder)
        api.submit("bench", tasks, max_runners=places, folder=folder, state_dir=folder)
        manager = Manager(config(Path(folder), launcher_idle_seconds=1.0), max_runners=places)
        began_s, cpu_s = time.monotonic(), time.process_time()
        manager.serve(until=lambda: not manager.live and store.open("bench").is_ended())
        took_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
        files = store.open("bench")
        if files.job.state is not JobState.COMPLETED or len(files.tasks) != expected:
            raise RuntimeError(f"the job ended {files.job.state.value}: {files.job.error}")
        ends = sorted(datetime.fromisoformat(task.completed_at or "").timestamp() for task in files.tasks.values())
        tenth = max(1, len(ends) // 10)
        rates = [
            tenth / (ends[min(begin + tenth, len(ends) - 1)] - ends[begin])
            for begin in range(0, len(ends) - tenth, tenth)
        ]
        return {"tasks_per_s": expected / took_s, "manager_ms_per_task": cpu_s * 1000 / expected, "tenths": rates}


def huey(count: int, places: int) -> dict[str, Any]:
    """Run as many tasks through huey's consumer, with its tasks as files."""
    with tempfile.TemporaryDirectory(prefix="huey-") as folder:
        (Path(folder) / "work.py").write_text(_HUEY.format(path=f"{folder}/queue"))
        env = {**os.environ, "PYTHONPATH": folder}
        fill = f"import work; [work.run() for _ in range({count})]"
        subprocess.run([sys.executable, "-c", fill], env=env, check=True)
        code = "import work; print(work.huey.pending_count() + 0, len(work.huey.all_results()))"
        consumer = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "huey.bin.huey_consumer",
                "work.huey",
                "-w",
                str(places),
                "-k",
                "process",
                "-d",
                "0.01",
            ],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        began_s = time.monotonic()
        try:
            while True:
                said = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
                if int(said.stdout.split()[0]) == 0:
                    break
                time.sleep(0.2)
        finally:
            consumer.terminate()
            consumer.wait()
        return {"tasks_per_s": count / (time.monotonic() - began_s)}


def xargs(count: int, places: int) -> dict[str, Any]:
    """Run as many commands through ``xargs -P``."""
    began_s = time.monotonic()
    numbers = "\n".join(map(str, range(count)))
    subprocess.run(["xargs", "-P", str(places), "-n", "1", "true"], input=numbers.encode(), check=True)
    return {"tasks_per_s": count / (time.monotonic() - began_s)}


def floor(count: int, places: int) -> dict[str, Any]:
    """Start as many processes, so many at a time, and wait for them: nothing else."""
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


_QUEUE = (
    "from air_executor.jobs import queue_tasks; queue_tasks([{'command': 'true'}] * int(__import__('sys').argv[1]))"
)


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description="Compare the engine with its peers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--growing", type=int, default=10_000)
    parser.add_argument("--places", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count, places = options.count, options.places
    noop = [{"id": f"t{number}", "command": "true"} for number in range(count)]
    inside = [{"id": "queue", "command": sys.executable, "args": ["-c", _QUEUE, str(count)]}]
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "engine, no-ops": lambda: engine(noop, places, count),
        "engine, queued inside": lambda: engine(inside, places, count + 1),
        "huey, file storage": lambda: huey(count, places),
        "xargs -P": lambda: xargs(count, places),
        "fork and exec": lambda: floor(count, places),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in measures}
    for number in range(options.rounds):
        for name, measure in measures.items():
            figures = measure()
            found[name].append(figures)
            print(f"round {number + 1} {name}: {figures['tasks_per_s']:.0f} tasks/s", flush=True)
    growing = [{"id": f"t{number}", "command": "true"} for number in range(options.growing)]
    found["engine, as the job grows"] = [engine(growing, places, options.growing)]
    print("\n| | tasks/s | manager, ms CPU per task |\n|---|---|---|")
    for name, samples in found.items():
        rate = statistics.median(sample["tasks_per_s"] for sample in samples)
        cpu = [sample["manager_ms_per_task"] for sample in samples if "manager_ms_per_task" in sample]
        print(f"| {name} | {rate:.0f} | {f'{statistics.median(cpu):.1f}' if cpu else ''} |")
    tenths = found["engine, as the job grows"][0]["tenths"]
    print(f"\ntasks/s in each tenth of {options.growing}: {', '.join(f'{rate:.0f}' for rate in tenths)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
