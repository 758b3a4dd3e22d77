"""Removing what has ended: by name, by age and number, and where nobody asks for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from air_executor import config as options
from air_executor.errors import ConfigError, StateDirError, UnknownJobError, WrongStateError
from air_executor.jobs.model import Job, JobState, Task, TaskStatus
from air_executor.jobs.retention import READ_S, Retention, prune, prune_if_due, remove, retention
from air_executor.jobs.store import JobStore
from air_executor.machine import system
from air_executor.runs import pruning
from air_executor.runs.record import Identity, RunState
from air_executor.runs.store import RunStore
from tests.jobs.conftest import Yard
from tests.jobs.test_manager import sh
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.documents import record

DAY_S = 86400.0


def ended(store: JobStore, name: str, age_s: float = 0.0, state: JobState = JobState.COMPLETED) -> Path:
    """Make a job that ended this many seconds ago."""
    task = Task.from_dict({"id": "a", "command": "true"}, job_name=name, where="test")
    task.status = TaskStatus.COMPLETED if state.is_end else TaskStatus.PENDING
    files = store.create(Job(id=f"id-{name}", name=name, state=state), [task])
    files.logs.mkdir()
    files.log_file("a").write_text("log")
    moment_s = time.time() - age_s
    os.utime(files.path / "state.json", (moment_s, moment_s))
    return files.path


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / ".air-executor")


def test_what_is_old_or_too_much_goes_and_the_rest_stays(store: JobStore) -> None:
    for day in range(6):
        ended(store, f"day-{day}", day * DAY_S)
    ended(store, "waiting", 30 * DAY_S, JobState.WAITING)
    pruned = prune(store, Retention(keep_days=3.5, keep_jobs=100))
    assert (pruned.removed, pruned.kept) == (2, 5)
    prune(store, Retention(keep_days=100, keep_jobs=2))
    assert store.names() == ["day-0", "day-1", "waiting"]
    prune(store, Retention(keep_days=0, keep_jobs=0), least_age_s=READ_S)
    assert store.names() == ["day-0", "waiting"]
    prune(store, Retention(keep_days=0, keep_jobs=0))
    assert store.names() == ["waiting"]
    assert os.listdir(store.root) == ["waiting"]


def test_a_job_of_which_something_is_asked_or_on_which_somebody_works_stays(store: JobStore) -> None:
    ended(store, "asked", 30 * DAY_S)
    store.ask("asked", "retry")
    ended(store, "held", 30 * DAY_S)
    lock = store.files("held").lock()
    assert lock.acquire(timeout_s=0)
    (ended(store, "odd", 30 * DAY_S) / "state.json").write_text("{")
    ended(store, "gone", 30 * DAY_S)
    try:
        assert prune(store, Retention(keep_days=1, keep_jobs=0)).removed == 1
        assert store.names() == ["asked", "held", "odd"]
        with pytest.raises(WrongStateError, match="a manager works on job held"):
            remove(store, "held")
        with pytest.raises(WrongStateError, match="job asked has not ended; `air-executor cancel asked`"):
            remove(store, "asked")
    finally:
        lock.release(keep_file=True)


def test_what_can_not_be_removed_keeps_nothing_else(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        ended(store, name, 30 * DAY_S)
    rename = os.rename

    def fail(source: str | Path, target: str | Path) -> None:
        if Path(source).name == "b":
            raise PermissionError(1, "Operation not permitted")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(StateDirError, match="2 jobs were removed; 1 could not be, as job b cannot be removed"):
        prune(store, Retention(keep_days=1, keep_jobs=10))
    assert store.names() == ["b"]


def test_what_was_being_made_or_removed_at_somebodys_death_goes(store: JobStore) -> None:
    store.prepare()
    (store.root / ".job.removed-00ff" / "logs").mkdir(parents=True)
    old, new = (store.root / f".job.{n}2345678-1234-1234-1234-123456789abc" for n in (0, 1))
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    (store.root / ".mine").mkdir()
    prune(store, Retention(keep_days=1, keep_jobs=1))
    assert sorted(os.listdir(store.root)) == sorted([new.name, ".mine"])


def test_what_is_private_of_a_job_goes_with_it(store: JobStore) -> None:
    ended(store, "job")
    job = store.open("job").job
    store.private.keep(job, {"TOKEN": "secret"})
    store.private.trust(job)
    remove(store, "job")
    assert not store.private.is_trusted(job)
    assert not any(job.id in path.name for path in store.private.root.rglob("*"))


def test_in_a_folder_of_ones_own_nothing_goes_unless_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    mine = options.load_plain(str(tmp_path / ".air-executor"))
    mine = options.Config(**{**vars(mine), "serves": "jobs"})
    assert retention(mine, {}) is None
    assert retention(mine, {"AIR_EXECUTOR_KEEP_JOBS": "5"}) == Retention(float("inf"), 5)
    assert retention(mine, {"AIR_EXECUTOR_KEEP_DAYS": "0.5"}) == Retention(0.5, float("inf"))
    airflows = options.Config(**{**vars(options.load_plain()), "serves": "jobs"})
    assert retention(airflows, {}) == Retention(7.0, 10000)
    assert retention(airflows, {"AIR_EXECUTOR_KEEP_DAYS": "1"}) == Retention(1.0, 10000)
    with pytest.raises(ConfigError, match="AIR_EXECUTOR_KEEP_JOBS=many cannot be used"):
        retention(mine, {"AIR_EXECUTOR_KEEP_JOBS": "many"})


def test_where_nobody_asks_what_has_just_ended_stays(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIR_EXECUTOR_KEEP_JOBS", "0")
    ended(store, "old", 2 * READ_S)
    ended(store, "new")
    prune_if_due(config(store.root.parent))
    assert store.names() == ["new"]


def test_the_launcher_removes_old_jobs_while_a_manager_works(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIR_EXECUTOR_KEEP_DAYS", "7")
    for number in range(5):
        ended(yard.store, f"old-{number}", 8 * DAY_S)
    ended(yard.store, "young", 6 * DAY_S)
    yard.start_manager()
    wait_for(lambda: yard.store.names() == ["young"], "the old jobs to go")
    # The manager has noticed, and takes jobs of these names.
    yard.submit(sh("a", "true"), name="old-1")
    wait_for(lambda: yard.store.open("old-1").job.state.is_end, "the job to end")


def run_of(store: JobStore, job: str, state: RunState, reads_s: float = 3600.0, **more: Any) -> str:
    """Record a run of a job's task, whose manager is gone and whose end nobody has reported."""
    runs = RunStore(store.root.parent)
    runs.prepare()
    who = Identity(kind="job", workload_id=str(uuid.uuid4()), name=f"{job}/a", job_name=job, task_id="a")
    made = record(state, who=who, **more)
    runs.create(made)
    moment_s = time.time() - reads_s
    os.utime(runs.folder(made.id), (moment_s, moment_s))
    return made.id


def test_runs_that_no_job_waits_for_are_pruned(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIR_EXECUTOR_STATE_DIR", str(store.root.parent))
    runs = RunStore(store.root.parent)
    runs.prepare()
    runs.mark_open()
    dead = {"pid": 2**22 + 1, "boot_id": "a former boot", "host": system.host()}
    nobodys = [run_of(store, "gone", state) for state in (RunState.SUCCEEDED, RunState.QUEUED)]
    young = run_of(store, "gone", RunState.QUEUED, reads_s=0.0)  # its runner may be about to begin
    nobodys += [run_of(store, "gone", RunState.RUNNING, **dead)]
    # The job was reset, checked out or ended since the run began.
    ended(store, "ended")
    ended(store, "other", state=JobState.WAITING)
    nobodys += [run_of(store, name, RunState.KILLED) for name in ("ended", "other")]
    # The next manager of this job wants to know what became of the task.
    ended(store, "waits", state=JobState.WAITING)
    awaited = run_of(store, "waits", RunState.SUCCEEDED)
    files = store.open("waits")
    files.tasks["a"].status, files.tasks["a"].run_id = TaskStatus.RUNNING, awaited
    files.forget_text(files.tasks["a"])
    files.write()
    (store.folder("spoilt")).mkdir()
    (store.folder("spoilt") / "state.json").write_text("{")
    unknown = run_of(store, "spoilt", RunState.SUCCEEDED)
    assert pruning.prune(runs, keep_days=0, keep_runs=0).removed == 0
    prune_if_due(config(store.root.parent))
    assert set(runs.open.ids()) == {awaited, unknown, young}
    for run_id in nobodys:
        moment_s = time.time() - 3600  # those that were settled now are read by nobody either
        os.utime(runs.folder(run_id), (moment_s, moment_s))
    assert pruning.prune(runs, keep_days=0, keep_runs=0).removed == len(nobodys)
    assert set(runs.ids()) == {awaited, unknown, young}


def test_jobs_are_removed_by_name_and_pruned_on_the_command_line(yard: Yard) -> None:
    for name, age_s in (("a", 0.0), ("b", 0.0), ("old", 8 * DAY_S), ("older", 9 * DAY_S)):
        ended(yard.store, name, age_s)
    yard.submit(sh("a", "true"), name="waiting")
    assert yard.call("remove", "a") == "removed a\n"
    assert json.loads(yard.call("remove", "b", "--json")) == {"removed": ["b"]}
    assert "there is no job b" in yard.call("remove", "b", code=2)
    assert "air-executor cancel waiting" in yard.call("remove", "waiting", code=1)
    assert "removed 2 jobs, kept 1" in yard.call("prune")
    assert json.loads(yard.call("prune", "--keep-jobs", "0", "--json"))["jobs"] == {"removed": 0, "kept": 1}
    yard.call("cancel", "waiting")
    said = yard.call("remove", "waiting", "nobody", code=1)
    assert "removed waiting\n" in said
    assert "there is no job nobody" in said
    assert yard.store.names() == []


def test_a_job_that_has_not_ended_is_removed_by_force_unless_a_task_of_it_runs(yard: Yard) -> None:
    yard.submit(sh("a", "touch begun; exec sleep 600"), name="busy")
    yard.submit(sh("a", "true"), name="waiting")
    (yard.store.root / "waiting" / "tasks.json").write_text("[")
    assert "air-executor remove --force waiting" in yard.call("remove", "waiting", code=1)
    yard.call("remove", "--force", "waiting")
    manager = yard.start_manager()
    wait_for((yard.folder / "begun").exists, "the task")
    assert "a manager works on job busy" in yard.call("remove", "--force", "busy", code=1)
    manager.kill()
    manager.wait()
    said = yard.call("remove", "--force", "busy", code=1)
    [run] = re.findall(r"`air-executor stop (\S+)`", said)
    yard.call("stop", run)
    yard.call("remove", "--force", "busy")
    assert yard.store.names() == []


def test_a_job_that_is_a_link_is_unlinked_and_nothing_else(yard: Yard) -> None:
    ended(yard.store, "job")
    job = yard.store.open("job").job
    yard.store.private.trust(job)
    target = yard.folder / "target"
    shutil.copytree(yard.store.root / "job", target)
    before = sorted(target.rglob("*"))
    (yard.store.root / "linked").symlink_to(target)
    yard.call("remove", "linked")
    assert sorted(target.rglob("*")) == before
    assert yard.store.private.is_trusted(job)
    assert yard.store.names() == ["job"]


def test_a_job_that_can_not_be_understood_is_replaced(yard: Yard) -> None:
    yard.submit(sh("a", "false"))
    (yard.store.root / "job" / "tasks.json").write_text("[")
    (yard.folder / "job.json").write_text('[{"id": "a", "command": "true"}]')
    assert "job job completed" in yard.call("run", "job.json", "--replace")


def test_a_job_that_can_not_be_understood_is_removed_by_force(yard: Yard) -> None:
    (ended(yard.store, "odd") / "state.json").write_text("{")
    assert "is not JSON" in yard.call("remove", "odd", code=2)
    yard.call("remove", "odd", "--force")
    with pytest.raises(UnknownJobError):
        remove(yard.store, "odd")
