"""Work in flight while something breaks, and the processes that may break."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from typing import Any

import psutil

from air_executor.runs.record import UNWANTED, RunRecord, RunState
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun
from tests.support.titles import is_spare, title
from tests.support.waiting import wait_for

DAGS = {1: "flight_of_one", 5: "flight_of_five", 16: "flight_of_sixteen"}


@dataclasses.dataclass(frozen=True)
class Flight:
    """A DAG run whose tasks wait for :meth:`release`."""

    airflow: Airflow
    run: DagRun
    tasks: int

    @property
    def effects(self) -> list[str]:
        return self.airflow.effects(f"effects-{self.run.run_id}")

    def wait_for(self, *lines: str) -> None:
        what = f"{lines} of {self.run.run_id}"
        wait_for(lambda: set(lines) <= set(self.effects), what, seen=self.seen)

    def seen(self) -> object:
        """Return what a failure is to tell."""
        return self.effects, self.rows(), self.records()

    def begun(self) -> Flight:
        self.wait_for(*(f"begin {index} 1" for index in range(self.tasks)))
        wait_for(lambda: len(self.live()) == self.tasks, "all to be on record as running")
        return self

    def queued(self) -> Flight:
        """Wait until the scheduler has queued all tasks, and this executor has ordered them."""
        wait_for(lambda: {row["state"] for row in self.rows()} == {"queued"}, "the tasks to be queued")
        wait_for(lambda: len(self.records()) == self.tasks, "the runs to be ordered")
        return self

    def release(self, index: int | None = None) -> None:
        (self.airflow.out / f"release-{self.run.run_id}{'' if index is None else f'-{index}'}").touch()

    def records(self) -> list[RunRecord]:
        return [r for r in self.airflow.records() if r.identity.dag_run_id == self.run.run_id]

    def live(self) -> list[RunRecord]:
        return [r for r in self.records() if r.state is RunState.RUNNING]

    def record(self, index: int = -1) -> RunRecord:
        """Return the live record of a mapped task, or of the only one."""
        (record,) = [r for r in self.live() if r.identity.map_index == index]
        return record

    def rows(self) -> list[dict[str, Any]]:
        return self.airflow.query(
            "SELECT state, try_number, map_index, queued_by_job_id FROM task_instance WHERE run_id = :run_id",
            run_id=self.run.run_id,
        )

    def assert_each_ran_once(self) -> None:
        """Let all go, wait for their success, and see that no task was executed twice or lost a try."""
        self.release()
        assert self.run.wait() == "success"
        assert sorted(self.effects) == sorted(f"{w} {i} 1" for w in ("begin", "end") for i in range(self.tasks))
        assert [row["try_number"] for row in self.rows()] == [1] * self.tasks


def launchers(airflow: Airflow) -> list[psutil.Process]:
    """Return the launchers, without their forks that prune or are about to become runners."""
    found = {}
    for process in airflow.ours():
        with contextlib.suppress(psutil.Error):
            if is_launcher(process):
                found[process.pid] = process.ppid(), process
    return [process for parent, process in found.values() if parent not in found]


def launcher(airflow: Airflow) -> psutil.Process:
    """Return the one launcher, when it is warm."""

    def warm() -> psutil.Process | None:
        found = [each for each in launchers(airflow) if not is_superseded(each)]
        return found[0] if len(found) == 1 and "air-executor launcher" in title(found[0]) else None

    return wait_for(warm, "there to be one launcher, and it to be warm")


def is_superseded(process: psutil.Process) -> bool:
    """Tell whether another launcher has taken its address."""
    return title(process).strip().endswith(f"-{process.pid}")


def components(airflow: Airflow) -> set[int]:
    """Return the process ids of Airflow's own components, and of what they have started."""
    pids = set()
    for component in airflow.processes.values():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(component.pid)
            pids |= {process.pid, *(child.pid for child in process.children(recursive=True))}
    return pids


def is_launcher(process: psutil.Process) -> bool:
    return any(name in title(process) for name in ("air-executor launcher", "air_executor.launcher"))  # warm, starting


def strays(airflow: Airflow) -> list[psutil.Process]:
    """Return the processes that are neither Airflow's components nor launchers."""
    found = []
    known = components(airflow)
    for process in airflow.ours():
        with contextlib.suppress(psutil.Error):
            if process.pid not in known and not is_launcher(process) and not is_spare(process):
                found.append(process)
    return found


def unfinished(airflow: Airflow) -> list[RunRecord]:
    """Return the runs without an end, and those of whose end somebody should hear, and did not."""
    return [r for r in airflow.records() if not r.state.is_end or not is_known(r)]


def is_known(record: RunRecord) -> bool:
    return bool(record.reported_at or record.delivered or record.outcome == UNWANTED)


def last_job(airflow: Airflow) -> int:
    (row,) = airflow.query("SELECT max(id) AS id FROM job WHERE job_type = 'SchedulerJob'")
    return int(row["id"])


def kill_scheduler(airflow: Airflow) -> None:
    airflow.stop("scheduler", signum=signal.SIGKILL)


def start_scheduler(airflow: Airflow) -> int:
    """Start a scheduler, and return the id of its job."""
    before = last_job(airflow)
    airflow.start("scheduler")
    wait_for(lambda: last_job(airflow) > before, "the new scheduler")
    return last_job(airflow)


def probe(airflow: Airflow, name: str) -> None:
    """See that tasks run."""
    assert airflow.api.trigger("shell", run_id=name).wait() == "success"


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.Error):
            process.resume()


def check_nothing_left_behind(airflow: Airflow) -> None:
    """See that tasks still run, and that nothing is left of them, of the launcher and of the scheduler's executor."""
    probe(airflow, "the-last")
    wait_for(lambda: not unfinished(airflow), "all ends to be told")
    airflow.run("air-executor", "prune")  # the lock files of killed runners; the launcher does this now and then
    wait_for(lambda: list(airflow.store.locks.iterdir()) == [], "the locks to be gone")
    wait_for(lambda: len(list(airflow.store.executors.iterdir())) == 1, "what dead executors have left to be gone")
    airflow.stop("scheduler")
    wait_for(lambda: not launchers(airflow), "the launcher to end")
    wait_for(lambda: not [p for p in airflow.ours() if p.pid not in components(airflow)], "all processes to be gone")
    assert list(airflow.store.launchers.glob("*.sock")) == []
    assert list(airflow.store.executors.iterdir()) == []
