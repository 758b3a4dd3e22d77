"""What each way of laying out a launcher's memory saves, alone: ``python -m benchmarks.layout``.

Runs of a launcher of Airflow's tasks, one after the other, with everything on and with each of these off:

- **rehearsal**: the launcher is a runner and a task process for a few runs before its first fork. Gathering needs it.
- **gathering**: the code of the functions that were called in the rehearsal is copied side by side.
- **gap filling**: the free blocks among those in use are used up, so that forks allocate on pages of their own.
- **huge pages**: the launcher's memory is moved into huge pages.

No scheduler and no database are there; the API server is a thread of this process that says yes to everything, and is
not counted. CPU and page faults are those of launcher, runners and task processes, per task, for tasks that do nothing.
Memory is the PSS of all of them while some tasks sleep, beyond that of the launcher before, per task. The start is the
CPU of a launcher until it answers.

Each Python adds its rounds to those of the others: call it with the ``python`` of each virtual environment. Figures are
medians over the rounds; a round takes the variants in an order of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socketserver
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from air_executor.launcher.address import all_addresses
from air_executor.launcher.client import control
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import Identity, RunRecord, RunState, queued
from air_executor.runs.store import RunStore
from benchmarks.measure import MB, cpu_s, memory
from benchmarks.report import table
from benchmarks.results import machine, version
from tests.support.airflow_env import REPOSITORY, config
from tests.support.waiting import wait_for

#: Tasks that are not counted, tasks that do nothing, tasks that sleep at once.
WARM_UP, NOOPS, SLEEPERS = 4, 30, 6

#: How each is turned off, in a Python that becomes a launcher. The rehearsal has an option.
OFF = {
    "nothing": "",
    "rehearsal": "",
    "gathering": "from air_executor.launcher import memory; memory.gather_code = lambda used: None",
    "gap filling": "from air_executor.launcher import memory; memory.fill_gaps = lambda: None",
    "huge pages": "from air_executor.machine import system; system.use_huge_pages = lambda: None",
    "all four": "from air_executor.launcher import memory; from air_executor.machine import system; "
    "memory.fill_gaps = system.use_huge_pages = lambda: None",
}

#: What is measured, with its unit.
FIGURES = {"cpu_ms": "CPU, ms", "faults": "page faults", "memory_mb": "memory, MB", "start_s": "start, CPU s"}

_FOUND = """\
What was found: each pays on both Pythons. Without the rehearsal, tasks need a fifth to a quarter more memory and page
faults. Without gathering it is about an eighth, without gap filling a twentieth; neither changes the CPU by more than
it varies. Huge pages save CPU, and no memory. All of it costs a launcher less than a second of CPU, once. Other tests
ran on the machine meanwhile: faults and memory do not depend on that, CPU does by some percent."""

DAG = """
import time
from airflow.sdk import dag, task

@dag(schedule=None)
def layout():
    @task
    def nothing(): ...

    @task
    def sleeps():
        time.sleep(3600)

    nothing() >> sleeps()

layout()
"""


class Bench:
    """A store with a backend and its launcher."""

    def __init__(self, folder: Path, url: str, options: Mapping[str, Any]) -> None:
        self.folder, self._url = folder, url
        self.store = RunStore(folder / "state")
        self.store.prepare()
        self.backend = LocalBackend(config(self.store.root, stop_grace_seconds=1.0, **options))

    def order(self, task_id: str) -> str:
        """Order a run, and return its id."""
        run_id, ti_id = str(uuid.uuid4()), str(uuid.uuid4())
        identity = Identity(kind="task", workload_id=ti_id, name=f"layout.{task_id}", dag_id="layout", task_id=task_id)
        log_file = str(self.folder / "logs" / run_id)
        ti = {"id": ti_id, "dag_version_id": str(uuid.uuid4()), "dag_id": "layout", "task_id": task_id}
        ti |= {"run_id": "run", "map_index": -1, "try_number": 1, "queue": "default", "pool_slots": 1}
        workload = {
            "ti": {**ti, "priority_weight": 1},
            "dag_rel_path": "layout.py",
            "bundle_info": {"name": "layout", "version": None},
            "token": "",
            "log_path": log_file,
        }
        request = RunRequest(id=run_id, identity=identity, workload=workload, server=self._url, log_file=log_file)
        self.backend.order(request, queued(run_id, identity, limits={}, log_file=log_file))
        return run_id

    def finish(self, task_id: str) -> RunRecord:
        """Order a run, and return its record when it has ended."""
        run_id = self.order(task_id)
        ends = wait_for(self.backend.take_ends, f"the end of {task_id}", every_s=0.002)
        [record] = [record for record in ends if record.id == run_id]
        if record.state is not RunState.SUCCEEDED:
            said = Path(record.log_file or os.devnull).read_text()
            raise RuntimeError(f"{task_id} has {record.state.value}: {record.reason}\n{said}")
        return record

    def launcher(self) -> psutil.Process:
        """Return the launcher, when it is warm."""
        [address] = all_addresses(self.store)
        status = wait_for(lambda: control.status(address), "the launcher to answer", every_s=0.01)
        return psutil.Process(status["pid"])

    def end(self) -> None:
        """End all processes of this bench."""
        launcher = self.launcher()
        self.backend.close()
        for process in [launcher, *launcher.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        launcher.wait(60)


def faults(process: psutil.Process) -> int:
    """Return the page faults of a process and of its children that it has waited for."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7]) + int(fields[8])


def measure(folder: Path, url: str, without: str) -> dict[str, float]:
    """Measure a launcher of its own, without one of :data:`OFF`."""
    (folder / "patch").mkdir(parents=True)
    (folder / "patch" / "sitecustomize.py").write_text(OFF[without])
    (folder / "dags").mkdir()
    (folder / "dags" / "layout.py").write_text(DAG)
    bundle = {"name": "layout", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle"}
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(folder / "patch"), str(REPOSITORY)]),
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
            [{**bundle, "kwargs": {"path": str(folder / "dags")}}]
        ),
        "AIRFLOW__API_AUTH__JWT_SECRET": "only-for-benchmarks-but-long-enough" * 4,
    }
    # A module that is there anyway: with "auto", packages would be tried meanwhile.
    preload = ("math", "-rehearsal") if without in ("rehearsal", "all four") else ("math",)
    made = Bench(folder, url, {"preload": preload})
    made.backend.warm_up()
    launcher = made.launcher()
    start_s = cpu_s([launcher])
    try:
        for _ in range(WARM_UP):
            made.finish("nothing")
        cpu, faulted = cpu_s([launcher]), faults(launcher)
        for _ in range(NOOPS):
            made.finish("nothing")
        cpu, faulted = cpu_s([launcher]) - cpu, faults(launcher) - faulted
        time.sleep(1)  # until the next runner is forked ahead
        idle = memory([launcher, *launcher.children(recursive=True)]).pss_bytes
        ids = [made.order("sleeps") for _ in range(SLEEPERS)]

        def pids() -> list[int]:
            records = [made.store.read(run_id) for run_id in ids]
            return [pid for record in records for pid in (record.pid, record.task_pid) if pid]

        wait_for(lambda: len(pids()) == 2 * SLEEPERS, "the sleepers")
        time.sleep(2)  # until they have come to their sleep
        held = memory([launcher, *launcher.children(recursive=True)]).pss_bytes - idle
    finally:
        made.end()
    return {
        "cpu_ms": cpu * 1000 / NOOPS,
        "faults": faulted / NOOPS,
        "memory_mb": held / MB / SLEEPERS,
        "start_s": start_s,
    }


@contextlib.contextmanager
def api_server() -> Iterator[str]:
    """Run an execution API that says yes to everything, and return its URL."""
    from air_executor.airflow.rehearsal import ExecutionApi

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), ExecutionApi) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/execution/"
        server.shutdown()


def report(rounds: Mapping[str, list[dict[str, dict[str, float]]]]) -> str:
    """Return the table, of all Pythons."""
    rows = [["Python", "without", *FIGURES.values()], ["---", "---", *["---:"] * len(FIGURES)]]
    for python, measured in sorted(rounds.items(), key=lambda item: [int(part) for part in item[0].split(".")]):
        for without in OFF:
            cells = []
            for figure in FIGURES:
                value = statistics.median(one[without][figure] for one in measured)
                ratios = [one[without][figure] / one["nothing"][figure] for one in measured]
                low, high = min(ratios), max(ratios)
                cells.append(f"{value:,.1f}" + ("" if without == "nothing" else f" ({low:.2f} to {high:.2f} x)"))
            rows.append([f"{python}, {len(measured)} rounds", without, *cells])
    described = [
        ["", ""],
        ["---", "---"],
        *([name, value] for name, value in machine(["apache-airflow"]).items() if name != "Python"),
    ]
    explained = (__doc__ or "").partition("\n\n")[2].strip().replace("``", "`")
    how = "In brackets: ratios to the same round with everything on. Above 1, it pays; of the start, it costs below 1."
    parts = ["# The launcher's memory", "Made by `python -m benchmarks.layout`.", explained, _FOUND, how, table(rows)]
    parts += ["The machine:", table(described), f"AirExecutor {version()}.\n"]
    return "\n\n".join(parts)


def main() -> None:
    """Measure, add to what other Pythons have measured, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layout", description="Measure memory layouts.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks", metavar="FOLDER")
    parser.add_argument("--anew", action="store_true", help="forget what this Python has measured before")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
        del os.environ[name]
    results = options.out / "layout.json"
    rounds = json.loads(results.read_text()) if results.exists() else {}
    own = rounds.setdefault(".".join(map(str, sys.version_info[:3])), [])
    if options.anew:
        own.clear()
    folder = Path(tempfile.mkdtemp(prefix="air-benchmark-layout-"))
    try:
        with api_server() as url:
            for number in range(options.rounds):
                order = random.sample(list(OFF), k=len(OFF))
                own.append({without: measure(folder / f"{number}-{without}", url, without) for without in order})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(rounds, indent=1) + "\n")
    text = report(rounds)
    print(text)
    (options.out / "layout.md").write_text(text)


if __name__ == "__main__":
    main()
