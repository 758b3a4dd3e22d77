"""What the executor itself costs, without a scheduler and without an API server: ``python -m benchmarks.micro``.

- **launch**: from the order until the runner is born, and until its end is told. The runs ask for a limit that can't be
  kept, so that they end before they would speak to Airflow: the price of the process and of its record alone.
- **sync**: one call of ``AirExecutor.sync()`` while runs live and nothing has changed. Their locks are held by this
  process, and their task instances are in a real PostgreSQL. *With a pass*: the call reconciles the runs with the
  database, as every fifth does in a scheduler that idles. *Adopted*: no launcher tells of the runs, as after the death
  of one, so that they are looked at once a second; measured is the call that looks.
- **memory**: of the launcher, and of runners that wait for a GPU. They have no task process yet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from air_executor.launcher.address import all_addresses
from air_executor.launcher.client import control
from air_executor.launcher.client.backend import LocalBackend
from air_executor.machine import system
from air_executor.runs.backend import RunRequest
from air_executor.runs.lock import KernelLock
from air_executor.runs.record import Identity, RunState, queued
from air_executor.runs.store import RunStore
from benchmarks.database import Database
from benchmarks.measure import MB, family, memory, percentile
from benchmarks.report import table
from benchmarks.results import machine, version
from benchmarks.stage import postgres
from tests.support.airflow_env import REPOSITORY, config
from tests.support.waiting import wait_for

#: How many runs are launched one by one, and how many at once.
LAUNCHES, BURST = 50, 100

#: How many runners are looked at together.
RUNNERS = 20

#: With how many live runs, and how often, ``sync()`` is called; calls that do a lot are made less often.
RUNS, CALLS, HEAVY_CALLS = (0, 100, 1000), 500, 30


@dataclass(frozen=True)
class Measured:
    """One line of the table."""

    what: str
    value: float
    unit: str


def _identity() -> Identity:
    return Identity(
        kind="task",
        workload_id=str(uuid.uuid4()),
        name="micro.task",
        dag_id="micro",
        task_id="task",
        dag_run_id="run",
        map_index=-1,
        try_number=1,
    )


def _distribution(what: str, values_ms: Sequence[float]) -> list[Measured]:
    return [
        Measured(f"{what}, p50", statistics.median(values_ms), "ms"),
        Measured(f"{what}, p95", percentile(values_ms, 95), "ms"),
    ]


# Launching


class Bench:
    """A store with a backend and its launcher."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(folder / "state")
        self.store.prepare()
        self.backend = LocalBackend(config(self.store.root, gpus=("0",)))

    def start(self, air: dict[str, Any]) -> str:
        """Order a run, and return its id."""
        identity, run_id = _identity(), str(uuid.uuid4())
        request = RunRequest(id=run_id, identity=identity, workload={}, air=air, server="", log_file=None)
        self.backend.order(request, queued(run_id, identity, limits={}, log_file=None))
        return run_id

    def launch(self, count: int) -> list[str]:
        """Start runs at once, and return their ids when the end of each has been told."""
        ids, told = [self.start({"memory": "impossible"}) for _ in range(count)], 0
        deadline = time.monotonic() + 60 + count
        while told < count:
            told += len(self.backend.take_ends())
            assert time.monotonic() < deadline, f"only {told} of {count} runs have ended"
            time.sleep(0.0005)
        return ids

    @property
    def launcher(self) -> psutil.Process:
        """The launcher, when it is warm."""
        [address] = all_addresses(self.store)
        status = wait_for(lambda: control.status(address), "the launcher to answer")
        return psutil.Process(status["pid"])


@contextlib.contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Start a bench that is warm, and end it with its processes."""
    made = Bench(folder)
    try:
        made.launch(3)
        yield made
    finally:
        launcher = made.launcher
        made.backend.close()
        for process in family(launcher):
            with contextlib.suppress(psutil.Error):
                process.kill()


def launches(made: Bench) -> list[Measured]:
    """Time launches, one by one and many at once."""
    born_ms, told_ms = [], []
    for _ in range(LAUNCHES):
        started_s = time.monotonic()
        [run_id] = made.launch(1)
        told_ms.append((time.monotonic() - started_s) * 1000)
        record = made.store.read(run_id)
        assert record.state is RunState.FAILED, f"{run_id}: {record.reason}"
        assert record.queued_at
        assert record.starting_at
        born = datetime.fromisoformat(record.starting_at) - datetime.fromisoformat(record.queued_at)
        born_ms.append(born.total_seconds() * 1000)
    started_s = time.monotonic()
    made.launch(BURST)
    rate = BURST / (time.monotonic() - started_s)
    return [
        *_distribution("launch: ordered until the runner is `starting`", born_ms),
        *_distribution("launch: ordered until its end is told", told_ms),
        Measured(f"launch: {BURST} ordered at once, until all ends are told", rate, "runs/s"),
    ]


def memories(made: Bench) -> list[Measured]:
    """Measure the launcher, and runners that wait."""
    lone = memory([made.launcher])
    gpu = KernelLock(made.store.gpus / "0")
    assert gpu.acquire(timeout_s=0)
    try:
        ids = [made.start({"gpus": 1}) for _ in range(RUNNERS)]

        def waiting() -> bool:
            assert made.backend.take_ends() == []
            return all(made.store.read(run_id).state is RunState.STARTING for run_id in ids)

        wait_for(waiting, f"{RUNNERS} runners to wait for the GPU", 120)
        # Not all below the launcher: some have been forked ahead, for runs to come.
        processes = [psutil.Process(made.store.read(run_id).pid) for run_id in ids]
        runners = memory(processes)
        for run_id in ids:
            made.backend.kill(run_id)
        wait_for(lambda: not any(process.is_running() for process in processes), "the runners to end")
    finally:
        gpu.release()
    return [
        Measured("memory: launcher without runs, PSS", lone.pss_bytes / MB, "MB"),
        Measured("memory: launcher without runs, USS", lone.uss_bytes / MB, "MB"),
        Measured(f"memory: each of {RUNNERS} runners, PSS", runners.pss_bytes / MB / runners.processes, "MB"),
        Measured(f"memory: each of {RUNNERS} runners, USS", runners.uss_bytes / MB / runners.processes, "MB"),
    ]


# sync()


def syncs(database: Database) -> list[Measured]:
    """Time ``sync()`` with some live runs, and with more and more."""
    from air_executor.airflow.executor import AirExecutor

    executor = AirExecutor(parallelism=max(RUNS))
    executor.start()
    locks: list[KernelLock] = []
    measured = []
    try:
        for count in RUNS:
            locks += [_live_run(executor, database) for _ in range(count - len(locks))]
            measured += _sync(executor, count)
        for run_id in list(executor._work.runs):
            executor._work.backend.follow(executor._work.backend.record(run_id))
        look = [_timed(executor, _look) for _ in range(HEAVY_CALLS)]
        measured += _distribution(f"sync(), {max(RUNS)} adopted runs, all looked at", look)
        assert len(executor._work.runs) == max(RUNS), "runs were lost"
    finally:
        launchers = [control.status(address) for address in all_addresses(RunStore(executor._work.options.state_dir))]
        executor.end()
        for lock in locks:
            lock.release()
        for status in filter(None, launchers):
            psutil.Process(status["pid"]).kill()
    return measured


def _live_run(executor: Any, database: Database) -> KernelLock:
    """Give an executor a run that it has started, as far as it can tell, with its row in the database."""
    store, identity = RunStore(executor._work.options.state_dir), _identity()
    process = {"pid": os.getpid(), "pid_started": system.start_time(os.getpid()), "host": system.host()}
    record = queued(str(uuid.uuid4()), identity, limits={}, log_file=None)
    record = record.advance(RunState.STARTING, boot_id=system.boot_id(), **process).advance(RunState.RUNNING)
    store.create(record)
    store.heartbeat(record.id)
    lock: KernelLock = store.lock(identity.workload_id)
    assert lock.acquire(timeout_s=0)
    # Without the DAG, and the DAG run, that the row would refer to.
    database.rows("SET session_replication_role = replica")
    database.rows(
        "INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, try_number, pool, pool_slots, state)"
        " VALUES (%s, 'task', 'micro', 'run', %s, 1, 'default_pool', 1, 'running')",
        identity.workload_id,
        len(executor._work.runs),
    )
    executor._work.add(record, ("micro", "task", "run", 1, len(executor._work.runs)))
    executor._work.backend._claims.claim(record.id)
    executor._work.backend._followed.add(record)
    del executor._work.backend._followed.unattended[record.id]
    return lock


def _sync(executor: Any, count: int) -> list[Measured]:
    quiet = [_timed(executor, _no_pass) for _ in range(CALLS)]
    passes = [_timed(executor, _pass) for _ in range(HEAVY_CALLS)]
    return [
        *_distribution(f"sync(), {count} runs, no pass due", quiet),
        *_distribution(f"sync(), {count} runs, with a pass", passes),
    ]


def _no_pass(executor: Any) -> None:
    executor._passes.reconciler._next_s = float("inf")


def _pass(executor: Any) -> None:
    executor._passes.reconciler._next_s = 0.0


def _look(executor: Any) -> None:
    _no_pass(executor)
    executor._work.backend._followed.looked_s = 0.0


def _timed(executor: Any, prepare: Callable[[Any], None]) -> float:
    """Return the milliseconds that ``sync()`` takes."""
    prepare(executor)
    started_s = time.perf_counter()
    executor.sync()
    return (time.perf_counter() - started_s) * 1000


# All of it


def measure(folder: Path) -> list[Measured]:
    """Measure everything."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor for each lock
    for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
        del os.environ[name]
    with postgres(folder) as server, contextlib.closing(Database(server, "migrated")) as database:
        os.environ |= {
            "AIRFLOW_HOME": str(folder / "home"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__AIR_EXECUTOR__STATE_DIR": str(folder / "executor"),
            "AIRFLOW__API_AUTH__JWT_SECRET": "only-for-benchmarks-but-long-enough" * 4,
        }
        with bench(folder) as made:
            measured = launches(made) + memories(made)
        return measured + syncs(database)


def main() -> None:
    """Measure, print a table, and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description="Time the executor itself.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks", metavar="FOLDER")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="air-benchmark-micro-"))
    try:
        measured = measure(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [["", "", ""], ["---", "---:", "---"], *([one.what, f"{one.value:.3f}", one.unit] for one in measured)]
    described = [["", ""], ["---", "---"], *map(list, machine().items())]
    explained = (__doc__ or "").partition("\n\n")[2].strip().replace("``", "`")
    parts = ["# The executor alone", "Made by `python -m benchmarks.micro`.", explained, table(rows)]
    parts += ["The machine:", table(described), f"AirExecutor {version()}.\n"]
    text = "\n\n".join(parts)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "micro.md").write_text(text)
    (options.out / "micro.json").write_text(json.dumps([asdict(one) for one in measured], indent=1) + "\n")


if __name__ == "__main__":
    main()
