"""Work that is in flight while something is away, and what must be true of it afterwards."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil

from air_executor.runs.record import RunRecord, RunState
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun
from tests.support.flights import unfinished
from tests.support.titles import is_spare
from tests.support.titles import title as title_of
from tests.support.waiting import wait_for

#: With these, Airflow alone would give up after three seconds without an answer; so a fault need not last longer.
IMPATIENT_AIRFLOW = {
    "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "3",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "1",
}


@dataclass(frozen=True)
class Work:
    """A DAG run of ``tests/dags/away.py`` with one task, ``work``."""

    env: Airflow
    run: DagRun

    @property
    def effects(self) -> list[str]:
        return self.env.effects(f"away-{self.run.run_id}")

    @property
    def record(self) -> RunRecord:
        """The record of the only run that there is."""
        (record,) = [r for r in self.env.records(self.run.dag_id) if r.identity.dag_run_id == self.run.run_id]
        return record

    def wait_for_begin(self) -> None:
        wait_for(lambda: self.effects, f"{self.run.run_id} to begin")

    def release(self) -> None:
        (self.env.out / f"release-{self.run.run_id}").touch()

    def finish_work(self) -> None:
        """Let the task's own code come to its end. What it gives back is still to be delivered."""
        self.release()
        wait_for(lambda: self.effects[-1:] == ["end 1"], f"{self.run.run_id} to end")

    def check_done_once(self, timeout_s: float = 300) -> None:
        """Wait until the run is a success, and check that everything happened once and nothing is left of it."""
        self.check_success(timeout_s)
        check_nothing_left(self.env)

    def check_success(self, timeout_s: float = 300) -> None:
        """Wait until the run is a success, and check that everything happened once, in the first try."""
        assert self.run.wait(timeout_s) == "success"
        assert self.effects == ["begin 1", "end 1"]
        assert self.run.instance("work")["try_number"] == 1
        assert self.run.xcom("work") == "done"
        wait_for(lambda: self.record.state.is_end, "the end to be on record")
        record = self.record
        assert (record.state, record.identity.try_number, record.reason) == (RunState.SUCCEEDED, 1, None)
        assert record.delivered


def order(env: Airflow, run_id: str, dag_id: str = "away") -> Work:
    """Trigger a run."""
    return Work(env, env.api.trigger(dag_id, run_id=run_id))


def begin(env: Airflow, run_id: str, dag_id: str = "away") -> Work:
    """Trigger a run, and wait until its task is at work."""
    work = order(env, run_id, dag_id)
    work.wait_for_begin()
    return work


def check_nothing_left(env: Airflow) -> None:
    """Check that no run is open or untold, no lock file there, and no process but the launchers."""
    wait_for(lambda: not unfinished(env), "all ends to be told")
    wait_for(lambda: list(env.store.locks.iterdir()) == [], "the locks to be gone")
    wait_for(lambda: runners(env) == [], "the runners to be gone")


def runners(env: Airflow) -> list[str]:
    """Return the titles of runners, task processes, and whatever else descends from launchers."""
    titles = []
    for process in env.ours():
        with contextlib.suppress(psutil.Error):
            title = title_of(process)
            if title.startswith("air-executor launcher"):
                titles += [title_of(child) for child in process.children(recursive=True) if not is_spare(child)]
            elif title.startswith("air-executor") and not is_spare(process):
                titles.append(title)
    return titles
