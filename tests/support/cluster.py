"""An Airflow with TemporalExecutor and three hosts, each with its own network, processes and state."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore
from tests.conftest import own_postgres
from tests.support import airflow_env, hosts
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun
from tests.support.hosts import Host
from tests.support.postgres import Postgres
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from tests.temporal.conftest import Temporal

_REASON = hosts.why_not()

#: For tests with a cluster.
NEED_HOSTS = pytest.mark.skipif(_REASON is not None, reason=f"hosts can't be made: {_REASON}")

NAMES = ("one", "two", "three")


@dataclass
class HostWorker:
    """The worker of a host."""

    airflow: Airflow
    temporal: Temporal
    host: Host
    queues: str = "default"
    process: subprocess.Popen[bytes] | None = None
    logs: list[Path] = field(default_factory=list)

    @property
    def store(self) -> RunStore:
        return RunStore(self.host.folder / "state")

    def start(self, queues: str = "default") -> None:
        env = {
            **self.airflow.env,
            "AIRFLOW_HOME": str(self.host.folder),
            "AIRFLOW__AIR_EXECUTOR__STATE_DIR": str(self.host.folder / "state"),
            "AIRFLOW__AIR_EXECUTOR__TEMPORAL_ADDRESS": f"{self.host.temporal_address}:{self.temporal.port}",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": (
                f"http://{self.host.airflow_address}:{self.airflow.port}/execution/"
            ),
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.host.folder / "logs"),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "tests.support.hosts.address_here",
            "AIR_TEST_ADDRESS": self.host.address,
        }
        # A worker needs none of these, and what it needs not it should not have.
        for name in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__API_AUTH__JWT_SECRET"):
            del env[name]
        log = self.host.folder / f"worker-{len(self.logs)}.log"
        self.logs.append(log)
        argv = ["-m", "air_executor.cli", "worker", "--queues", queues, "--slots", "12"]
        self.process = self.host.popen(sys.executable, *argv, env=env, log=log)
        wait_for(lambda: f"Host {self.host.name} serves" in log.read_text(), f"the worker of {self.host.name}")

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.host.signal(signum, "air_executor.cli worker")
        self.process.wait(240)

    def live(self, run: DagRun) -> list[RunRecord]:
        records = self.store.records() if self.store.root.exists() else []
        return [r for r in records if r.identity.dag_run_id == run.run_id and r.state is RunState.RUNNING]

    def task_log(self, run: DagRun) -> str:
        """Return what the host has of the logs of a DAG run."""
        return "".join(path.read_text() for path in (self.host.folder / "logs").rglob(f"*run_id={run.run_id}/**/*.log"))


@dataclass
class Cluster:
    """An Airflow, a Temporal server, and three hosts with a worker each."""

    airflow: Airflow
    temporal: Temporal
    postgres: Postgres
    workers: list[HostWorker]
    runs: list[DagRun] = field(default_factory=list)

    def restore(self) -> None:
        """Have all hosts up, connected, with a worker that serves the default queue."""
        for worker in self.workers:
            if worker.host.init is None:
                worker.host.start()
                worker.process = None
            worker.host.mend()
            if worker.process is None or worker.process.poll() is not None:
                worker.start()

    def trigger(self, name: str, dag_id: str = "flight_of_one") -> DagRun:
        self.runs.append(self.airflow.api.trigger(dag_id, run_id=name))
        return self.runs[-1]

    def effects(self, run: DagRun) -> list[str]:
        return self.airflow.effects(f"effects-{run.run_id}")

    def release(self, run: DagRun) -> None:
        (self.airflow.out / f"release-{run.run_id}").touch()

    def where(self, run: DagRun) -> HostWorker:
        """Return the worker that runs the only live task of a DAG run."""

        def found() -> list[HostWorker]:
            return [worker for worker in self.workers if worker.live(run)]

        wait_for(found, f"{run.run_id} to begin", 120)
        wait_for(lambda: any(line.startswith("begin") for line in self.effects(run)), "the task's first line")
        return found()[-1]

    def check_done_once(self, run: DagRun) -> None:
        assert run.wait() == "success"
        assert self.effects(run) == ["begin 0 1", "end 0 1"]


@contextlib.contextmanager
def running(folder: Path, shared_dir: Path, temporal: Temporal) -> Iterator[Cluster]:
    """Within this, a cluster is up, with hosts that have no workers yet.

    :param temporal: a server that all hosts can reach, which is started and ended.
    """
    postgres = own_postgres(shared_dir)
    options = {
        "AIRFLOW__CORE__EXECUTOR": "air_executor.TemporalExecutor",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url,
        "AIRFLOW__AIR_EXECUTOR__TEMPORAL_ADDRESS": temporal.address,
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    }
    airflow = airflow_env.make(folder / "home", shared_dir, options, airflow_env.FEW)
    workers = [HostWorker(airflow, temporal, Host(name, folder / name)) for name in NAMES]
    try:
        temporal.start()
        airflow.start()
        for worker in workers:
            worker.host.folder.mkdir()
            worker.host.start()
        yield Cluster(airflow, temporal, postgres, workers)
    finally:
        for worker in workers:
            worker.host.kill()
        airflow.end()
        temporal.kill()
        postgres.stop()
