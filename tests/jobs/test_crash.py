"""The engine is killed at random, again and again: nothing is lost, and nothing that was completed is repeated."""

from __future__ import annotations

import contextlib
import random
from collections import Counter

import orjson
import psutil
import pytest

from air_executor.jobs.model import JobState, TaskStatus
from air_executor.runs.record import RunState
from tests.jobs.conftest import Yard
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

#: How often something is killed.
KILLS = 120

#: Each task of the job notes that it begins, queues one more until somebody says that it is enough, and notes its end.
WORK = """
import os, time
from air_executor.jobs import queue_tasks

def note(file, line):
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)

def work(line, generation):
    me = os.environ["AIR_EXECUTOR_TASK"]
    note("began", me)
    time.sleep(0.01)
    if not os.path.exists("enough"):
        more = {"line": line, "generation": generation + 1}
        queue_tasks([{"id": f"{line}.{generation + 1}", "function": "work:work", "arguments": more}])
    note("ended", me + " " + os.environ["AIR_EXECUTOR_RUN"])
    return generation
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_or_repeated_whatever_is_killed(yard: Yard, seed: int) -> None:
    chance = random.Random(seed)
    lines = 4
    (yard.folder / "work.py").write_text(WORK)
    yard.submit(
        *(
            {
                "id": f"{line}.0",
                "function": "work:work",
                "arguments": {"line": str(line), "generation": 0},
                "env": {"PYTHONPATH": yard.env["PYTHONPATH"]},
            }
            for line in range(lines)
        ),
        max_runners=lines,
    )
    folder = yard.store.folder("job")
    completed: set[str] = set()
    kills: Counter[str] = Counter()
    manager = yard.start_manager()
    while sum(kills.values()) < KILLS:
        with contextlib.suppress(psutil.TimeoutExpired):
            psutil.Process(manager.pid).wait(chance.uniform(0.0, 0.4))
        what = chance.choice(["manager", "launcher", "runner", "all"])
        family = [process for launcher in yard.launchers() for process in launcher.children(recursive=True)]
        doomed = {
            "manager": [],
            "launcher": yard.launchers(),
            "runner": family[:1],
            "all": [*yard.launchers(), *family],
        }[what]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if what in ("manager", "all"):
            manager.kill()
            manager.wait()
        kills[what] += 1
        # Whoever looks now sees whole documents, and what was completed stays so.
        for name in ("state.json", "tasks.json"):
            assert orjson.loads((folder / name).read_bytes())
        now = {task.id for task in yard.tasks().values() if task.status is TaskStatus.COMPLETED}
        assert completed <= now
        completed = now
        if manager.poll() is not None:
            manager = yard.start_manager()
    (yard.folder / "enough").touch()
    wait_for(lambda: yard.store.open("job").job.state.is_end, "the end of the job", 120)
    files = yard.store.open("job")
    assert files.job.state is JobState.COMPLETED, files.job.error
    # No link of the four chains is missing.
    for line in range(lines):
        chain = [task.id for task in files.tasks.values() if task.id.startswith(f"{line}.")]
        assert chain == [f"{line}.{generation}" for generation in range(len(chain))]
    began, ended = Counter(yard.lines("began")), [line.split() for line in yard.lines("ended")]
    runs = list(yard.runs.records())
    for task in files.tasks.values():
        assert task.result == int(task.id.partition(".")[2])
        # It began anew as often as its runner died under it, and never after it had ended well.
        assert began[task.id] <= 1 + task.interruptions
        well = [run.id for run in runs if run.identity.task_id == task.id and run.state is RunState.SUCCEEDED]
        assert well == [task.run_id]
        ends = [run_id for task_id, run_id in ended if task_id == task.id]
        assert len(ends) == len(set(ends)) <= began[task.id]
        assert ends[-1:] == well


def test_items_and_hooks_run_once_however_often_the_manager_is_killed(yard: Yard) -> None:
    chance = random.Random(7)
    numbers = list(range(30))
    script = "echo ${item} >> began; sleep 0.05; echo ${item} > $AIR_EXECUTOR_RESULT"
    yard.submit(
        {"id": "find", "shell": True, "command": f"echo '{numbers}' > $AIR_EXECUTOR_RESULT"},
        {"id": "work", "shell": True, "command": script, "foreach": "${tasks.find.result}"},
        {"id": "sum", "shell": True, "command": "echo ${tasks.work.result} >> sums"},
        {"id": "late", "command": "true", "dependencies": ["work"], "when": "failed"},
        on_success="echo good >> hooks",
        max_runners=3,
    )
    kills = 0
    while not yard.store.open("job").job.state.is_end:
        manager = yard.start_manager()
        with contextlib.suppress(psutil.TimeoutExpired):
            psutil.Process(manager.pid).wait(chance.uniform(0.0, 0.5) if kills < 12 else 0.0)
        if kills >= 12:
            wait_for(lambda: yard.store.open("job").job.state.is_end, "the end of the job")
        manager.kill()
        manager.wait()
        kills += 1
    files = yard.store.open("job")
    assert files.job.state is JobState.COMPLETED, files.job.error
    assert sorted(map(int, yard.lines("began"))) == numbers
    assert [orjson.loads(line) for line in yard.lines("sums")] == [numbers]
    assert yard.lines("hooks") == ["good"]
    assert files.tasks["late"].status is TaskStatus.SKIPPED
