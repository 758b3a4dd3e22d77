"""TemporalExecutor with three hosts that are cut off: from Airflow, from Temporal, from both."""

from __future__ import annotations

import contextlib
import signal

import psutil
import pytest

from air_executor.runs.record import RunState
from tests.support.cluster import NEED_HOSTS, Cluster
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.faults, NEED_HOSTS]


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
        wait_for(lambda: "can't be reached" in worker.task_log(run), "the task's log to tell")
    cluster.release(run)
    wait_for(lambda: "end 0 1" in cluster.effects(run), "the task's own end")
    worker.host.mend()
    cluster.check_done_once(run)


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
