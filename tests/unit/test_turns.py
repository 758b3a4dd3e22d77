"""One runner executes several commands in turn, and none of them can tell."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from air_executor.config import Config
from air_executor.jobs.model import TaskStatus
from air_executor.launcher.server.reaper import Reaper, Runner
from air_executor.launcher.server.strays import Strays
from air_executor.runner import main as runner
from air_executor.runner import turns
from air_executor.runner.turns import Turns
from air_executor.runner.usage import Spent
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import RunRecord, RunState, queued
from air_executor.runs.store import RunStore
from tests.jobs.conftest import Yard, new_yard, yard  # noqa: F401 (fixtures)
from tests.support.airflow_env import config
from tests.support.titles import is_spare
from tests.support.waiting import wait_for
from tests.unit.documents import identity, kept
from tests.unit.processes import family, forked, is_alive, result_of

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _family() -> Iterator[None]:
    with family():
        yield


@pytest.fixture
def options(store: RunStore) -> Config:
    return config(store.root, serves="jobs", stop_grace_seconds=0.2)


@pytest.fixture
def order(store: RunStore, tmp_path: Path) -> Callable[..., RunRequest]:
    """Orders runs of shell scripts."""

    def make(script: str, *, cwd: Path = tmp_path, **air: Any) -> RunRequest:
        run_id, log_file = str(uuid.uuid4()), str(tmp_path / f"{uuid.uuid4()}.log")
        who = identity(kind="job", workload_id=str(uuid.uuid4()), job_name="job", task_id="t")
        workload = {"cwd": str(cwd), "argv": [script], "shell": True}
        store.create(queued(run_id, who, limits={}, log_file=log_file))
        return RunRequest(id=run_id, identity=who, workload=workload, air=air, log_file=log_file)

    return make


def in_turn(store: RunStore, options: Config, *requests: RunRequest) -> list[bool]:
    """Execute runs one after the other in one process. Return for each whether another may follow it."""

    def execute() -> list[bool]:
        some, before, found = Turns(), None, []
        for request in requests:
            may_follow = some.may_follow(request)
            ended = runner.run_one(request, store, options, before)
            before = Spent.so_far()
            found.append(may_follow and ended.has_left_nothing and some.restore())
        return found

    return list(result_of(execute))


def log(request: RunRequest) -> list[str]:
    return Path(request.log_file or "").read_text().splitlines()


def test_a_command_finds_nothing_of_the_one_before_it(
    store: RunStore, options: Config, order: Callable[..., RunRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEPT", "as it was")
    (tmp_path / "elsewhere").mkdir()
    show = "pwd; umask; echo $PPID; env | sort"
    first = order(
        f"umask 077; {show}; echo 1 > $AIR_EXECUTOR_RESULT",
        cwd=tmp_path / "elsewhere",
        environment={"KEPT": "changed", "MINE": "secret"},
    )
    second = order(show, environment={"OTHER": "1"})
    assert in_turn(store, options, first, second) == [True, True]
    one, other = log(first), log(second)
    assert one[2] == other[2], "the same runner"
    assert "MINE=secret" in one
    assert "KEPT=changed" in one
    assert not any(line.startswith("MINE=") for line in other)
    assert "KEPT=as it was" in other
    assert "OTHER=1" in other
    assert one[0] == str(tmp_path / "elsewhere")
    assert other[0] == str(tmp_path)
    assert one[1] != other[1]
    assert f"AIR_EXECUTOR_RUN={second.id}" in other
    assert f"AIR_EXECUTOR_RESULT={store.folder(second.id)}/result" in other
    assert [store.read(each.id).state for each in (first, second)] == [RunState.SUCCEEDED] * 2


def test_each_run_has_its_own_figures(store: RunStore, options: Config, order: Callable[..., RunRequest]) -> None:
    python = f"exec {sys.executable} -c"
    large = order(f"{python} 'held = bytearray(400 << 20); sum(range(10 ** 7))'")
    small = order("true")
    failed = order("exit 3")
    assert in_turn(store, options, large, small, failed) == [True] * 3
    records: list[RunRecord] = [store.read(each.id) for each in (large, small, failed)]
    peaks = [record.peak_memory_bytes or 0 for record in records]
    assert peaks[0] >= 400 * MIB
    assert 0 < peaks[1] < 400 * MIB
    assert 0 < peaks[2] < 400 * MIB
    used = [record.cpu_time_s or 0 for record in records]
    assert used[1] < used[0]
    assert [record.exit_code for record in records] == [0, 0, 3]
    assert [record.pid for record in records] == [records[0].pid] * 3


@pytest.mark.parametrize(
    ("script", "air"),
    [
        ("sleep 600 &", {}),
        ("AIR_EXECUTOR_KEEP=1 sh -c 'setsid sleep 1' &", {}),
        ("sleep 600", {"timeout": 0.1}),
        ("true", {"nice": 1}),
        ("true", {"cpus": 1}),
        ("true", {"memory": "1GB"}),
        ("true", {"memory": "much"}),
    ],
)
def test_a_runner_whose_run_has_left_something_or_did_not_come_to_its_own_end_takes_no_other(
    store: RunStore, options: Config, order: Callable[..., RunRequest], script: str, air: dict[str, Any]
) -> None:
    assert in_turn(store, options, order(script, **air)) == [False]


def test_a_runner_ends_after_many_runs(
    store: RunStore, options: Config, order: Callable[..., RunRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MOST_RUNS", 3)
    assert in_turn(store, options, *(order("true") for _ in range(3))) == [True, True, False]


def test_a_process_without_a_working_folder_takes_one_order_only(
    store: RunStore, options: Config, order: Callable[..., RunRequest], tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()

    def execute() -> bool:
        os.chdir(gone)
        gone.rmdir()
        return Turns().may_follow(order("true"))

    assert result_of(execute) is False


def test_an_end_that_is_not_on_record_ends_the_runner_that_says_so(store: RunStore) -> None:
    record = kept(store, RunState.RUNNING)
    told: list[Any] = []
    reaper = Reaper(
        store, Strays(has_others=False), [], tell=lambda *said: told.append(said), ended=lambda run_id: None
    )
    with forked(lambda: None) as pid:
        reaper.adopt(pid, Runner(record.id, record.identity.workload_id, None))
        assert not reaper.end_of_turn(pid)
        wait_for(lambda: not is_alive(pid), "its end")
        assert reaper.runs == {pid: record.id}, "it is reaped like any that dies"
    assert told == []


def test_a_jobs_tasks_share_runners_which_end_soon_after(yard: Yard) -> None:  # noqa: F811
    yard.submit(*({"id": f"t{n}", "command": "echo $PPID", "shell": True} for n in range(8)), max_runners=1)
    yard.finish()
    runners = {yard.log(f"t{n}").strip() for n in range(8)}
    assert len(runners) < 8
    [launcher] = yard.launchers()
    wait_for(lambda: not ({str(child.pid) for child in launcher.children()} & runners), "the runners to end")
    wait_for(lambda: all(map(is_spare, launcher.children())), "the launcher to be alone")


def test_a_runner_that_dies_while_it_waits_costs_no_task(yard: Yard) -> None:  # noqa: F811
    yard.submit({"id": "a", "command": "echo $PPID", "shell": True}, name="one")
    yard.finish("one")
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have waited for long enough
        psutil.Process(int(yard.log("a", "one"))).kill()
    yard.submit({"id": "b", "command": "true"}, name="two")
    task = yard.finish("two").tasks["b"]
    assert (task.status, task.tries, task.interruptions) == (TaskStatus.COMPLETED, 1, 0)


def test_a_task_whose_runner_dies_is_begun_again_though_others_have_ended_there(yard: Yard) -> None:  # noqa: F811
    yard.submit(
        {"id": "a", "command": "echo $PPID > former", "shell": True},
        {"id": "b", "command": "mkdir once && kill -9 $PPID && sleep 600; true", "shell": True, "dependencies": ["a"]},
        max_runners=1,
    )
    files = yard.finish()
    assert [files.tasks[each].status for each in "ab"] == [TaskStatus.COMPLETED] * 2
    assert [files.tasks[each].interruptions for each in "ab"] == [0, 1]
