"""TemporalExecutor with three hosts, while Temporal, schedulers, the API server and the database are away."""

from __future__ import annotations

import signal

import pytest

from tests.support.api import ENDED
from tests.support.cluster import NEED_HOSTS, Cluster
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.faults, NEED_HOSTS]


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
    wait_for(lambda: "can't be reached" in worker.task_log(run), "the task's log to tell")
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
