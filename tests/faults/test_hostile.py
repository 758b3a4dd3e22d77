"""Tasks that do by chance whatever tasks do to an executor, and end, or are ended, in every way.

``--hostile-seed`` and ``--hostile-tasks`` draw others, or more.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from air_executor.runs.record import UNWANTED, RunRecord, RunState
from tests.faults.conftest import Fly
from tests.support import airflow_env, flights, hostile
from tests.support.airflow_env import Airflow
from tests.support.api import ENDED, DagRun
from tests.support.hostile import Script
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]

#: This many hostile tasks are mapped in one DAG run, beside this many that only look around.
BATCH, INNOCENTS = 20, 2

#: A DAG run of them takes no longer than this, in seconds.
PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def has_postgres() -> bool:
    return True


@pytest.fixture(scope="module")
def components() -> tuple[str, ...]:
    return airflow_env.READING  # which calls back


@pytest.fixture(scope="module")
def dags() -> Sequence[str]:
    return ["hostile.py", "faults.py", "features.py"]  # the last has what looks whether tasks still run


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    return {
        "AIRFLOW__CORE__PARALLELISM": "24",
        "AIRFLOW__SCHEDULER__MAX_TIS_PER_QUERY": "24",
        # The end of a task's process waits for the processes of multiprocessing, and Airflow so long for its end.
        "AIRFLOW__CORE__TASK_SUCCESS_OVERTIME": "10",
        # A callback that is asked for while its DAG's file is processed waits until that is processed again.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "2",
    }


@dataclass
class Batch:
    """A DAG run of hostile tasks, by their map indexes."""

    airflow: Airflow
    run: DagRun
    scripts: list[Script]
    killed: set[int] = field(default_factory=set)
    begun_s: dict[int, float] = field(default_factory=dict)

    def name(self, index: int) -> str:
        return f"{self.run.run_id}-{index}"

    def lines(self, kind: str, index: int) -> list[str]:
        return self.airflow.effects(f"{kind}-{self.name(index)}")

    def records(self) -> dict[int, RunRecord]:
        """Return the records of its runs; of those that Airflow did not want there is none."""
        found: dict[int, RunRecord] = {}
        for record in self.airflow.records("hostile"):
            who = record.identity
            if who.dag_run_id == self.run.run_id and who.task_id == "act" and record.outcome != UNWANTED:
                assert who.map_index is not None
                assert who.map_index not in found, f"two runs of {self.name(who.map_index)}"
                found[who.map_index] = record
        return found

    # Killing from outside

    def wait(self) -> None:
        """Wait for its end, and kill meanwhile who is to be killed."""

        def is_over() -> bool:
            records = self.records()
            for index, script in enumerate(self.scripts):
                if script.victim is not None and index not in self.killed and index in records:
                    self._kill_when_due(index, script, records[index])
            return self.run.state in ENDED

        try:
            wait_for(is_over, f"the end of {self.run.run_id}", PATIENCE_S, every_s=0.1)
        except AssertionError as error:
            left = [ti for ti in self.run.instances() if ti["state"] not in ENDED]
            about = [(ti["map_index"], ti["state"], self.scripts[ti["map_index"]]) for ti in left]
            raise AssertionError(f"{error}: {about}") from None

    def _kill_when_due(self, index: int, script: Script, record: RunRecord) -> None:
        if record.state is not RunState.RUNNING or not self.lines("pids", index):
            return
        begun_s = self.begun_s.setdefault(index, time.monotonic())
        if script.delay_s is None:
            due = bool(self.lines("ready", index)) and not self.unlogged(index, record)
        else:
            due = time.monotonic() - begun_s >= script.delay_s
        if not due:
            return
        self.killed.add(index)
        assert script.victim is not None
        if "launcher" in script.victim:
            for launcher in flights.launchers(self.airflow):
                launcher.kill()
        pid = record.task_pid if script.victim == "task" else record.pid
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):
            if script.victim != "launcher":
                os.kill(pid, signal.SIGTERM if script.victim == "runner politely" else signal.SIGKILL)

    # What has to be true in the end

    def check(self) -> None:
        states = {ti["map_index"]: (ti["state"], ti["try_number"]) for ti in self.run.instances()}
        # Airflow knows of the end of a task a moment earlier.
        wait_for(lambda: all(each.state.is_end for each in self.records().values()), f"the ends of {self.run.run_id}")
        records = self.records()
        for index, script in enumerate(self.scripts):
            about = f"{self.name(index)}, {script}, {records.get(index)}"
            assert states[index] == (script.state, 1), f"{states[index]}: {about}"
            ended = records[index].outcome if records[index].delivered else "failed"
            assert ended == script.state, about
            assert records[index].state in (RunState.SUCCEEDED, RunState.KILLED) or ended == "failed", about
            expected = "success" if script.state == "success" else "failure"
            wait_for(lambda index=index: self.lines("callbacks", index), f"the callback of {about}")
            assert self.lines("callbacks", index) == [expected], about
            wait_for(lambda index=index: not self.alive(index), f"nothing to be left of {about}", 120)
            lost_with_its_reader = script.victim in ("runner", "launcher and runner") and script.delay_s is not None
            if not lost_with_its_reader:
                assert self.unlogged(index, records[index]) == [], about

    def unlogged(self, index: int, record: RunRecord) -> list[str]:
        """Return what a task has printed and is not in its log."""
        log = Path(str(record.log_file)).read_text(errors="replace") if record.log_file else ""
        return [mark for mark in self.lines("marks", index) if f"{mark}\\n" not in log and f'{mark}"' not in log]

    def alive(self, index: int) -> list[str]:
        """Return those of a task's processes that run, as pid and start time; one that is only not reaped does not."""
        return [line for line in self.lines("pids", index) if is_running(*line.split())]

    def surroundings(self) -> list[dict[str, object]]:
        found = range(len(self.scripts), len(self.scripts) + INNOCENTS)
        return [json.loads(line) for index in found for line in self.lines("innocent", index)]


@pytest.fixture(autouse=True)
def _end_what_is_left(airflow: Airflow) -> Iterator[None]:
    """End what a test that fails has left of its tasks."""
    yield
    for path in airflow.out.glob("pids-*"):
        for line in path.read_text().splitlines():
            if is_running(*line.split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line.split()[0]), signal.SIGKILL)


def is_running(pid: str, ticks: str) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[19] == ticks and fields[0] != "Z"


def difference(normal: object, found: object) -> str:
    if not isinstance(normal, list) or not isinstance(found, list):
        return f"{found} instead of {normal}"
    usual, here = Counter(normal), Counter(found)
    return f"more: {list((here - usual).elements())}, less: {list((usual - here).elements())}"


def test_hostile_tasks_hurt_only_themselves(airflow: Airflow, fly: Fly, request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--hostile-seed") or random.randrange(1_000_000)
    number = request.config.getoption("--hostile-tasks")
    print(f"--hostile-seed {seed} --hostile-tasks {number}")
    rng = random.Random(seed)
    bystander = fly("bystander", tasks=1).begun()
    waiting = deque(hostile.draw(rng) for _ in range(number))
    normal: dict[str, object] | None = None
    while waiting:
        scripts = [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]
        conf = [*(script.conf() for script in scripts), *([{"deeds": [], "end": "innocence"}] * INNOCENTS)]
        run = airflow.api.trigger("hostile", {"scripts": conf}, run_id=f"seed-{seed}-left-{len(waiting)}")
        batch = Batch(airflow, run, scripts)
        batch.wait()
        batch.check()
        found = batch.surroundings()
        assert len(found) == INNOCENTS, run.states()
        normal = normal or found[0]
        odd = {
            name: difference(normal[name], each[name])
            for each in found
            for name in normal
            if each[name] != normal[name]
        }
        assert odd == {}, run.run_id
    bystander.assert_each_ran_once()
