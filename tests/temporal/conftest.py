"""A real Temporal server, an Airflow with TemporalExecutor, and workers with state directories of their own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from air_executor.machine import system
from air_executor.runs.store import RunStore
from tests.conftest import give_postgres
from tests.support import airflow_env, cluster
from tests.support.airflow_env import Airflow
from tests.support.waiting import wait_for

#: What a server says, or its client for it, that has too much to do to answer.
_TOO_BUSY = (
    RPCStatusCode.CANCELLED,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.RESOURCE_EXHAUSTED,
    RPCStatusCode.UNAVAILABLE,
)


@dataclass
class Temporal:
    """A Temporal server with its own database file."""

    folder: Path
    port: int = field(default_factory=airflow_env.free_port)
    process: subprocess.Popen[bytes] | None = None
    ip: str = "127.0.0.1"
    """Where it listens."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        binary = shutil.which("temporal", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        assert binary is not None
        command = [binary, "server", "start-dev", "--headless", "--ip", self.ip, "--port", str(self.port)]
        with (self.folder / "temporal.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--db-filename", str(self.folder / "temporal.db"), "--log-level", "warn"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
            )
        wait_for(lambda: self.ask(self._is_up()), "Temporal")

    async def _is_up(self) -> bool:
        try:
            client = await Client.connect(self.address)
            return await client.service_client.check_health()
        except (RuntimeError, RPCError):
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def ask(self, work: Any) -> Any:
        return asyncio.run(work)

    def workflow(self, workflow_id: str) -> tuple[str, str, Any]:
        """Return the status of a workflow, its history as JSON, and its memo."""

        async def look() -> tuple[str, str, Any]:
            client = await Client.connect(self.address)
            handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(workflow_id)
            found = await handle.describe()
            assert found.status is not None
            return found.status.name, (await handle.fetch_history()).to_json(), await found.memo()

        def answer() -> tuple[str, str, Any] | None:
            try:
                return self.ask(look())
            except RuntimeError:  # no connection
                return None
            except RPCError as error:
                if error.status in _TOO_BUSY:
                    return None
                raise

        return wait_for(answer, f"what Temporal knows of {workflow_id}")

    def has(self, workflow_id: str) -> bool:
        """Tell whether there is such a workflow."""
        try:
            self.workflow(workflow_id)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True

    def events(self, workflow_id: str, kind: str) -> int:
        """Count the events of a kind in a workflow's history."""
        return self.workflow(workflow_id)[1].count(kind)

    def end_workflow(self, workflow_id: str, how: str) -> None:
        async def do() -> None:
            client = await Client.connect(self.address)
            await getattr(client.get_workflow_handle(workflow_id), how)()

        self.ask(do())


@dataclass
class Worker:
    """A host's worker."""

    airflow: Airflow
    name: str
    queues: str = "default"
    process: subprocess.Popen[bytes] | None = None

    @property
    def state_dir(self) -> Path:
        return self.airflow.home / f"host-{self.name}"

    @property
    def store(self) -> RunStore:
        return RunStore(self.state_dir)

    def start(self) -> None:
        env = {**self.airflow.env, "AIRFLOW__AIR_EXECUTOR__STATE_DIR": str(self.state_dir)}
        argv = ["worker", "--name", self.name, "--queues", self.queues, "--slots", "16", "--no-logs"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "air_executor.cli", *argv],
                env=env,
                cwd=self.airflow.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
            )
        wait_for(lambda: "serving" in self.log.read_text(), f"worker {self.name}")

    @property
    def log(self) -> Path:
        return self.airflow.home / f"worker-{self.name}.log"

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(signum)
        self.process.wait(240)
        self.log.rename(self.log.with_suffix(f".{self.process.pid}"))

    def kill_host(self) -> None:
        """Kill everything of the host at once: worker, launcher, runners and tasks."""
        assert self.process is not None
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.stop(signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Temporal]:
    server = Temporal(tmp_path_factory.mktemp("temporal"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path, temporal: Temporal) -> Iterator[Airflow]:
    options = {
        "AIRFLOW__CORE__EXECUTOR": "air_executor.TemporalExecutor",
        "AIRFLOW__AIR_EXECUTOR__TEMPORAL_ADDRESS": temporal.address,
        "AIRFLOW__CORE__PARALLELISM": "16",
    }
    env = airflow_env.make(tmp_path_factory.mktemp("airflow") / "home", shared_dir, options, airflow_env.FEW)
    give_postgres(env, shared_dir)
    env.start()
    yield env
    env.end()


@pytest.fixture(scope="module")
def worker(airflow: Airflow) -> Worker:
    host = Worker(airflow, "one")
    host.start()
    return host


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Iterator[cluster.Cluster]:
    """A cluster for the tests of a file."""
    folder = tmp_path_factory.mktemp("hosts")
    with cluster.running(folder, shared_dir, Temporal(folder, ip="0.0.0.0")) as running:
        yield running


@pytest.fixture(name="cluster")
def restored(hosts: cluster.Cluster) -> Iterator[cluster.Cluster]:
    """The cluster, restored; what a test has left to run is released after it."""
    hosts.restore()
    yield hosts
    for run in hosts.runs:  # also those of a test that has failed: they take slots
        hosts.release(run)
    hosts.runs.clear()
