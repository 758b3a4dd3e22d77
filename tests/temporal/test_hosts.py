"""TemporalExecutor with three hosts: they share the work, their workers change, and they die."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from tests.support.cluster import NAMES, NEED_HOSTS, Cluster
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.faults, NEED_HOSTS]


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
