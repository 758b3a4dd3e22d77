"""TemporalExecutor with three hosts, each with its own network, processes and state: hosts die, and links are cut."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore
from tests.conftest import own_postgres
from tests.support import airflow_env, hosts
from tests.support.airflow_env import Airflow
from tests.support.api import ENDED, DagRun
from tests.support.hosts import Host
from tests.support.postgres import Postgres
from tests.support.waiting import wait_for
from tests.temporal.conftest import Temporal

REASON = hosts.why_not()

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(REASON is not None, reason=f"hosts can't be made: {REASON}"),
]

NAMES = ("one", "two", "three")


@dataclass
class Worker:
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


@dataclass
class Cluster:
    """An Airflow, a Temporal server, and three hosts with a worker each."""

    airflow: Airflow
    temporal: Temporal
    postgres: Postgres
    workers: list[Worker]
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

    def where(self, run: DagRun) -> Worker:
        """Return the worker that runs the only live task of a DAG run."""

        def found() -> list[Worker]:
            return [worker for worker in self.workers if worker.live(run)]

        wait_for(found, f"{run.run_id} to begin", 120)
        wait_for(lambda: any(line.startswith("begin") for line in self.effects(run)), "the task's first line")
        return found()[-1]

    def check_done_once(self, run: DagRun) -> None:
        assert run.wait() == "success"
        assert self.effects(run) == ["begin 0 1", "end 0 1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("hosts")
    temporal, postgres = Temporal(folder, ip="0.0.0.0"), own_postgres(shared_dir)
    options = {
        "AIRFLOW__CORE__EXECUTOR": "air_executor.TemporalExecutor",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url,
        "AIRFLOW__AIR_EXECUTOR__TEMPORAL_ADDRESS": temporal.address,
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    }
    airflow = airflow_env.make(folder / "home", shared_dir, options, airflow_env.FEW)
    workers = [Worker(airflow, temporal, Host(name, folder / name)) for name in NAMES]
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


@pytest.fixture(autouse=True)
def restored(cluster: Cluster) -> Iterator[None]:
    cluster.restore()
    yield
    for run in cluster.runs:  # also those of a test that has failed: they take slots
        cluster.release(run)
    cluster.runs.clear()


def test_hosts_share_the_work_and_show_it(cluster: Cluster) -> None:
    run = cluster.trigger("shared", "flight_of_sixteen")
    wait_for(lambda: len(cluster.effects(run)) == 16, "all to begin")
    wait_for(lambda: sum(len(worker.live(run)) for worker in cluster.workers) == 16, "all to be on record")
    counts = [len(worker.live(run)) for worker in cluster.workers]
    assert sum(counts) == 16 and min(counts) > 0 and max(counts) <= 12, counts

    def status() -> subprocess.CompletedProcess[str]:
        return cluster.airflow.run("air-executor", "temporal", "status", "--json", check=False)

    def is_seen() -> bool:
        done = status()
        if done.returncode:
            return False  # Temporal, or a worker, was too slow
        found = json.loads(done.stdout)
        workers = {queue["name"]: queue["workers"] for queue in found["queues"]}
        running = {host["name"]: host["running"] for host in found["hosts"]}
        where = dict(zip(NAMES, counts, strict=True))
        return workers.get("default") == 3 and len(found["runs"]) <= 16 and running == where

    wait_for(is_seen, "Temporal to know how many run where", seen=status)
    cluster.release(run)
    assert run.wait() == "success"
    # Each log is on its host, and Airflow's UI gets it from there.
    for ti in run.instances():
        assert ti["hostname"] in [worker.host.address for worker in cluster.workers]
        log = run.log("work", map_index=ti["map_index"])
        assert "Task instance is in running state" in log or "Done" in log, log


def test_commands_beside_the_scheduler_know_what_runs_on_hosts(cluster: Cluster) -> None:
    def command(*arguments: str) -> str:
        return cluster.airflow.run("air-executor", *arguments).stdout

    run = cluster.trigger("from-afar")
    worker = cluster.where(run)
    (record,) = worker.live(run)
    shown = ("running", worker.host.name)

    def seen() -> list[tuple[str, str | None]]:
        done = cluster.airflow.run("air-executor", "runs", "-r", run.run_id, "--json", check=False)
        found = [] if done.returncode else json.loads(done.stdout)
        return [(each["state"], each.get("host")) for each in found]

    wait_for(lambda: seen() == [shown], "the host to be known", every_s=2.0)
    (live,) = [each for each in json.loads(command("status", "--json"))["runs"] if each["id"] == record.id]
    assert (live["state"], live["host"]) == shown
    assert worker.host.name in command("status") and worker.host.name in command("show", record.id[:13])
    assert not list(cluster.airflow.home.glob(f"logs/**/run_id={run.run_id}/**/attempt=1.log"))
    assert len(command("logs", record.id).splitlines()) > 1  # so it comes from there
    assert "killed" in command("stop", record.id, "--reason", "from afar", "--wait")
    cluster.release(run)
    assert run.wait() == "success"
    assert cluster.effects(run) == ["begin 0 1", "begin 0 2", "end 0 2"]
    assert "from afar, by " in str(run.events("work"))
    assert "from afar" in json.loads(command("show", record.id, "--json"))["reason"]
    assert "ended killed: stopped: from afar" in command("logs", record.id)
    late = cluster.airflow.run("air-executor", "stop", record.id, check=False)
    assert late.returncode and "has ended already" in late.stderr


def test_a_lost_hosts_task_is_retried_on_another(cluster: Cluster) -> None:
    run = cluster.trigger("host-lost")
    first = cluster.where(run)
    first.host.kill()
    cluster.release(run)
    assert run.wait() == "success"
    assert cluster.effects(run) == ["begin 0 1", "begin 0 2", "end 0 2"]
    assert "its host was lost" in str(run.events("work"))


def test_what_dies_on_a_host_alone(cluster: Cluster) -> None:
    run = cluster.trigger("agent")
    worker = cluster.where(run)
    for what in ("air_executor.cli worker", "air-executor launcher"):
        worker.host.signal(signal.SIGKILL, what)
    assert worker.process is not None
    worker.process.wait(240)
    worker.start()
    cluster.release(run)
    cluster.check_done_once(run)
    run = cluster.trigger("runner")
    worker = cluster.where(run)
    (record,) = worker.live(run)
    worker.host.signal(signal.SIGKILL, f"air-executor runner {record.id}")
    # Its task dies a moment after it.
    wait_for(lambda: worker.store.read(record.id).state.is_end, "nothing to be left of the run")
    cluster.release(run)
    assert run.wait() == "success"
    assert cluster.effects(run) == ["begin 0 1", "begin 0 2", "end 0 2"]
    assert "the runner was killed by SIGKILL" in str(run.events("work"))


def test_an_upgraded_worker_goes_on_and_a_drained_one_ends_after_its_runs(cluster: Cluster) -> None:
    run = cluster.trigger("upgraded")
    worker = cluster.where(run)
    worker.stop()
    worker.start()
    assert worker.live(run)
    env = {"AIRFLOW__AIR_EXECUTOR__STATE_DIR": str(worker.store.root)}

    def is_well() -> bool:
        done = cluster.airflow.run("air-executor", "worker", "--check", check=False, **env)
        return done.returncode == 0 and "s ago" in done.stdout

    wait_for(is_well, "the worker to have reached Temporal", every_s=1.0)
    cluster.airflow.run("air-executor", "worker", "--drain", **env)
    wait_for(lambda: "no more are taken" in worker.logs[-1].read_text() or "drain" in worker.logs[-1].read_text(), "it")
    other = cluster.trigger("beside-the-drained")
    assert cluster.where(other) is not worker
    assert worker.process is not None and worker.process.poll() is None
    for each in (run, other):
        cluster.release(each)
        cluster.check_done_once(each)
    assert worker.process.wait(240) == 0
    done = cluster.airflow.run("air-executor", "worker", "--check", check=False, **env)
    assert done.returncode == 1 and "no worker serves" in done.stdout


@pytest.mark.parametrize("from_what", ["airflow", "temporal"])
def test_a_host_that_is_cut_off_from_one_goes_on(cluster: Cluster, from_what: str) -> None:
    run = cluster.trigger(f"cut-from-{from_what}")
    worker = cluster.where(run)
    address = worker.host.airflow_address if from_what == "airflow" else worker.host.temporal_address
    worker.host.cut(address)
    # Long enough for a cut from both to end the task, and for a host to be lost.
    if from_what == "temporal":
        kind, workflow_id = "EVENT_TYPE_ACTIVITY_TASK_COMPLETED", f"airflow-flight_of_one-{run.run_id}"
        wait_for(lambda: cluster.temporal.events(workflow_id, kind) >= 2, "two verdicts")
    else:
        wait_for(lambda: "can't be reached" in worker_log(worker, run), "the task's log to tell")
    cluster.release(run)
    wait_for(lambda: "end 0 1" in cluster.effects(run), "the task's own end")
    worker.host.mend()
    cluster.check_done_once(run)


def worker_log(worker: Worker, run: DagRun) -> str:
    return "".join(path.read_text() for path in (worker.host.folder / "logs").rglob(f"*run_id={run.run_id}/**/*.log"))


def test_a_host_that_is_cut_off_from_both_ends_its_task_before_the_retry_begins(cluster: Cluster) -> None:
    run = cluster.trigger("cut-from-both")
    first = cluster.where(run)
    (record,) = first.live(run)
    first.host.cut(first.host.airflow_address, first.host.temporal_address)
    wait_for(lambda: first.store.read(record.id).state.is_end, "the task to be ended on its host")
    assert "neither Airflow nor Temporal" in (first.store.read(record.id).reason or "")
    wait_for(lambda: cluster.effects(run)[-1:] == ["begin 0 2"], "the retry")
    second = wait_for(lambda: next((w for w in cluster.workers if w.live(run)), None), "the retry to be on record")
    assert second is not first
    assert str(first.store.read(record.id).ended_at) < str(second.live(run)[0].starting_at)
    first.host.mend()
    cluster.release(run)
    assert run.wait() == "success"
    assert cluster.effects(run) == ["begin 0 1", "begin 0 2", "end 0 2"]
    assert "its host was lost" in str(run.events("work"))


def test_a_zombie_that_returns_changes_nothing(cluster: Cluster) -> None:
    run = cluster.trigger("zombie")
    first = cluster.where(run)
    (record,) = first.live(run)
    stopped = first.host.processes()
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            process.suspend()
    first.host.cut(first.host.airflow_address, first.host.temporal_address)
    wait_for(lambda: cluster.effects(run)[-1:] == ["begin 0 2"], "the retry")
    first.host.mend()
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    assert first.process is not None
    first.process.send_signal(signal.SIGCONT)  # what has entered the host for it stops and goes on with it
    wait_for(lambda: first.store.read(record.id).state.is_end, "the zombie's end")
    assert first.store.read(record.id).state is not RunState.SUCCEEDED
    assert run.state == "running"
    cluster.release(run)
    assert run.wait() == "success"
    assert cluster.effects(run) == ["begin 0 1", "begin 0 2", "end 0 2"]


@pytest.mark.parametrize("away_s", [5, 120])
def test_temporal_comes_back(cluster: Cluster, away_s: int) -> None:
    run = cluster.trigger(f"temporal-away-{away_s}")
    cluster.where(run)
    cluster.temporal.kill()
    later = cluster.trigger(f"ordered-meanwhile-{away_s}")
    with pytest.raises(AssertionError, match="still waiting"):
        wait_for(lambda: later.state == "success" or len(cluster.effects(run)) > 1, "what must not come", away_s)
    cluster.temporal.start()
    for each in (run, later):
        cluster.release(each)
        cluster.check_done_once(each)


def test_temporals_data_are_deleted(cluster: Cluster) -> None:
    running = cluster.trigger("data-lost-running")
    cluster.where(running)
    waiting = cluster.trigger("data-lost-waiting", "flight_of_one_elsewhere")
    waiting.wait_for_state("work", "queued")
    wait_for(lambda: cluster.temporal.has("airflow-flight_of_one_elsewhere-data-lost-waiting"), "the order")
    cluster.temporal.kill()
    for path in cluster.temporal.folder.glob("temporal.db*"):
        path.unlink()
    cluster.temporal.start()
    cluster.workers[2].stop()
    cluster.workers[2].start("default,elsewhere")
    cluster.release(waiting)
    cluster.check_done_once(waiting)
    assert cluster.effects(running) == ["begin 0 1"]
    cluster.release(running)
    cluster.check_done_once(running)
    cluster.workers[2].stop()
    later = cluster.trigger("after-the-loss")
    cluster.release(later)
    cluster.check_done_once(later)


def test_of_two_schedulers_one_dies(cluster: Cluster) -> None:
    airflow = cluster.airflow
    runs = [cluster.trigger(f"two-schedulers-{number}") for number in range(3)]
    for run in runs:
        cluster.where(run)
    former = airflow.set_aside("scheduler")
    airflow.start("scheduler")
    wait_for(lambda: "Starting the scheduler" in airflow.log_of("scheduler"), "the second scheduler")
    airflow.stop(former, signum=signal.SIGKILL)
    for run in runs:
        cluster.release(run)
        cluster.check_done_once(run)


def test_a_scheduler_dies_with_orders_that_temporal_has_not(cluster: Cluster) -> None:
    cluster.temporal.kill()
    run = cluster.trigger("never-sent")
    run.wait_for_state("work", "queued")
    cluster.airflow.stop("scheduler", signum=signal.SIGKILL)
    cluster.airflow.start("scheduler")
    cluster.temporal.start()
    cluster.release(run)
    cluster.check_done_once(run)


def test_the_api_server_and_the_database_come_back(cluster: Cluster) -> None:
    run = cluster.trigger("api-away")
    worker = cluster.where(run)
    cluster.airflow.stop("api-server", signum=signal.SIGKILL)
    wait_for(lambda: "can't be reached" in worker_log(worker, run), "the task's log to tell")
    cluster.release(run)
    wait_for(lambda: "end 0 1" in cluster.effects(run), "the task's own end")
    cluster.airflow.start("api-server")
    cluster.check_done_once(run)
    run = cluster.trigger("database-restarted")
    cluster.where(run)
    cluster.postgres.restart()
    cluster.release(run)

    def ended() -> bool:
        cluster.airflow.revive()  # the scheduler may end a while after its database was away
        return run.state in ENDED

    wait_for(ended, "the end of the run", every_s=0.5)
    cluster.check_done_once(run)
