"""Nothing of a dead try lives beside its retry, on a running Airflow; what is to stay, stays."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from air_executor.runs.record import RunState
from tests.support import machine
from tests.support.airflow_env import Airflow
from tests.support.flights import launcher
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    # Nobody waits that long for output that is held open.
    return {"AIRFLOW__WORKERS__SOCKET_CLEANUP_TIMEOUT": "3600"}


@pytest.fixture(scope="module")
def final_check() -> Callable[[Airflow], None]:
    return lambda airflow: None


@pytest.mark.parametrize("with_launcher", [False, True])
def test_a_try_finds_nothing_of_the_one_before_whose_runner_died(airflow: Airflow, with_launcher: bool) -> None:
    run = airflow.api.trigger("trees", run_id=f"trees-{with_launcher}")
    grown = [airflow.out / f"{name}-{run.run_id}-grown" for name in ("bash", "forks")]
    wait_for(lambda: all(path.exists() for path in grown), "the trees to stand")
    records = [r for r in airflow.records("trees") if r.identity.dag_run_id == run.run_id]
    assert len(records) == 2
    doomed = [psutil.Process(record.pid) for record in records]
    if with_launcher:
        doomed.insert(0, launcher(airflow))
    for process in doomed:
        process.suspend()  # so that none of them can do anything about the others
    for process in doomed:
        process.kill()
    assert run.wait() == "success"
    assert [path.read_text() for path in airflow.out.glob(f"*-{run.run_id}-beside")] == []
    state = RunState.LOST if with_launcher else RunState.KILLED
    assert {airflow.store.read(record.id).state for record in records} == {state}
    kept = psutil.Process(int((airflow.out / f"bash-{run.run_id}-kept").read_text()))
    assert kept.status() != psutil.STATUS_ZOMBIE
    kept.kill()


def test_what_one_task_starts_for_the_next_outlives_it_and_its_output_is_not_waited_for(airflow: Airflow) -> None:
    run = airflow.api.trigger("keeping")
    assert run.wait() == "success"
    assert run.xcom("use") is True
    assert "serving" in run.log("start")
    psutil.Process(run.xcom("start")).kill()


@machine.needs_root
def test_a_task_process_in_uninterruptible_sleep_does_not_keep_its_end_from_being_told(airflow: Airflow) -> None:
    with machine.silent_disk(airflow.home / "image", airflow.out / "stuck"):
        run = airflow.api.trigger("stuck")
        assert run.wait() == "failed"
        (record,) = airflow.ended_records("stuck")
        assert record.state is RunState.KILLED
        assert (record.reason or "").startswith("wall time limit of 40 s reached after")
        assert f"left behind, as it can't be killed: process {record.task_pid}" in (record.reason or "")
        assert "is in uninterruptible sleep" in (record.reason or "")
