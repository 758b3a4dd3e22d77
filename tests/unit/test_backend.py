"""The contract of :class:`air_executor.runs.backend.RunBackend`, which each place where runs happen has to keep."""

from __future__ import annotations

import os
import select
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from air_executor.errors import AirExecutorError, RecordError, StateDirError
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.backend import RunBackend, RunRequest
from air_executor.runs.record import UNWANTED, Identity, RunRecord, RunState, queued
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.memory_backend import MemoryBackend, Place
from tests.support.waiting import wait_for
from tests.unit.processes import family, forked


class World(Protocol):
    """A place, seen from outside."""

    def backend(self) -> RunBackend: ...

    def has_begun(self, run_id: str) -> bool:
        """Tell whether a run has a runner, or had one."""

    def has_ended(self, run_id: str) -> bool:
        """Tell whether the end of a run is on record, whoever has heard of it."""

    def release(self, run_id: str, *, fails: bool = False) -> None:
        """Let the workload of a run come to its end."""

    def kill_runner(self, run_id: str) -> None:
        """Let the runner of a run die."""

    def dead_owner(self, name: str, *run_ids: str) -> None:
        """Have an owner begin, claim runs and die without a word."""

    def unborn(self) -> str:
        """Make a run that was ordered, and whose orderer and launcher have died before it began."""

    def keeps(self, workload_id: str) -> bool:
        """Tell whether anything is kept for a workload that may be ordered again."""

    def close(self) -> None: ...


class Memory:
    def __init__(self, folder: Path) -> None:
        self.place = Place(folder=folder, gpus=2)

    def backend(self) -> RunBackend:
        return MemoryBackend(self.place)

    def has_begun(self, run_id: str) -> bool:
        return self.place.runs[run_id].record.state is not RunState.QUEUED

    def has_ended(self, run_id: str) -> bool:
        return self.place.runs[run_id].record.state.is_end

    def release(self, run_id: str, *, fails: bool = False) -> None:
        (self.place.folder / run_id / "result").write_text(run_id)
        self.place.finish(run_id, RunState.FAILED if fails else RunState.SUCCEEDED, exit_code=1 if fails else 0)

    def kill_runner(self, run_id: str) -> None:
        self.place.finish(run_id, RunState.KILLED, signal="SIGKILL", reason="the runner was killed by SIGKILL")

    def dead_owner(self, name: str, *run_ids: str) -> None:
        dead = MemoryBackend(self.place)
        assert dead.open(name)
        for run_id in run_ids:
            dead.follow(dead.record(run_id))
        dead.die()

    def unborn(self) -> str:
        request, record = ordered()
        MemoryBackend(self.place, is_slow=True).order(request, record)
        return record.id

    def keeps(self, workload_id: str) -> bool:
        return workload_id in self.place.kept

    def close(self) -> None:
        pass


class Shells:
    """What runs that execute a shell, which waits for a file, have in common, wherever they are."""

    def __init__(self, folder: Path, store: RunStore) -> None:
        self.folder = folder
        self.store = store
        """Of the machine that executes them."""

    def has_ended(self, run_id: str) -> bool:
        return self.store.read(run_id).state.is_end

    def release(self, run_id: str, *, fails: bool = False) -> None:
        path = self.folder / f".{run_id}"
        path.write_text("1" if fails else "0")
        path.rename(self.folder / run_id)

    def kill_runner(self, run_id: str) -> None:
        pid = wait_for(lambda: self.store.read(run_id).pid, "the runner")
        os.kill(pid, 9)


class Local(Shells):
    """This machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, RunStore(folder / "state"))
        self.store.prepare()
        self.config = config(self.store.root, serves="jobs", gpus=("0", "1"), launcher_idle_seconds=600.0)
        self.made: list[LocalBackend] = []
        # Launchers of jobs settle the runs of jobs that are gone. Nobody can tell what this one waits for.
        (self.store.root / "jobs" / "contract").mkdir(parents=True)
        (self.store.root / "jobs" / "contract" / "state.json").write_text("{")

    def backend(self) -> RunBackend:
        self.made.append(LocalBackend(self.config))
        return self.made[-1]

    def has_begun(self, run_id: str) -> bool:
        return self.store.read(run_id).state is not RunState.QUEUED

    def dead_owner(self, name: str, *run_ids: str) -> None:
        def live() -> LocalBackend:
            backend = LocalBackend(self.config)
            assert backend.open(name)
            for run_id in run_ids:
                backend.follow(backend.record(run_id))
            return backend

        with forked(live):
            pass

    def unborn(self) -> str:
        _, record = ordered()
        self.store.create(record)
        return record.id

    def keeps(self, workload_id: str) -> bool:
        return os.path.exists(self.store.lock(workload_id).path)

    def close(self) -> None:
        for backend in self.made:
            backend.close()


@pytest.fixture(params=["local", "memory"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONTRACT", str(tmp_path))
    with family():
        made: World = Memory(tmp_path) if request.param == "memory" else Local(tmp_path)
        yield made
        made.close()


@pytest.fixture
def backend(world: World) -> Iterator[RunBackend]:
    made = world.backend()
    assert made.open("1.first")
    yield made


def ordered(workload_id: str | None = None) -> tuple[RunRequest, RunRecord]:
    """Return the request and the first record of a run that waits for the test."""
    who = Identity(kind="job", workload_id=workload_id or str(uuid.uuid4()), name="contract", job_name="contract")
    run_id = str(uuid.uuid4())
    folder = os.environ["CONTRACT"]
    waits = f'while ! [ -e "{folder}/{run_id}" ]; do sleep 0.02; done'
    script = f'{waits}; echo {run_id} > "$AIR_EXECUTOR_RESULT"; exit "$(cat "{folder}/{run_id}")"'
    workload = {"cwd": folder, "argv": ["sh", "-c", script], "shell": False}
    log_file = str(Path(folder, "log", run_id))
    request = RunRequest(id=run_id, identity=who, workload=workload, log_file=log_file)
    return request, queued(run_id, who, limits={}, log_file=log_file)


def begin(world: World, backend: RunBackend) -> RunRecord:
    """Order a run, and wait until it has begun."""
    request, record = ordered()
    backend.order(request, record)

    def has_begun() -> bool:
        assert backend.take_ends() == []
        return world.has_begun(record.id)

    wait_for(has_begun, "the run to begin")
    return backend.record(record.id)


def end_of(backend: RunBackend, run_id: str) -> RunRecord:
    """Return the end of a run, and of no other."""
    (record,) = wait_for(lambda: backend.take_ends() or _look(backend), "the end of the run")
    assert record.id == run_id
    assert backend.record(run_id) == record
    assert backend.ends() == []
    return record


def _look(backend: RunBackend) -> bool:
    """Wait as an executor does: for the descriptor, or until it is time to look."""
    poll, due_s = select.poll(), backend.due_in_s()
    if (fd := backend.fileno()) is not None:
        poll.register(fd, select.POLLIN)
    poll.poll(1000 * min(0.1, 0.1 if due_s is None else due_s))
    return False


def unknown() -> Identity:
    raise AssertionError("its record is there")


def test_a_run_is_ordered_followed_and_its_end_taken_once(world: World, backend: RunBackend) -> None:
    record = begin(world, backend)
    assert backend.knows(record.id)
    assert backend.is_mine(record.id)
    wait_for(lambda: backend.is_alive(record.identity.workload_id) or _look(backend), "life to be seen")
    beat_s = backend.last_beat_s(record.id)
    assert beat_s is not None and abs(time.time() - beat_s) < 600
    world.release(record.id)
    wait_for(lambda: backend.has_news() or _look(backend), "news")
    assert backend.ends() == backend.ends() == [record.id]  # a look takes nothing
    end = end_of(backend, record.id)
    assert (end.state, end.exit_code, end.reported_at) == (RunState.SUCCEEDED, 0, None)
    assert not backend.is_alive(record.identity.workload_id)
    assert backend.take_ends() == []


def test_a_failure_and_the_death_of_a_runner_are_ends_too(world: World, backend: RunBackend) -> None:
    fails = begin(world, backend)
    world.release(fails.id, fails=True)
    assert (end_of(backend, fails.id).state, backend.record(fails.id).exit_code) == (RunState.FAILED, 1)
    dies = begin(world, backend)
    world.kill_runner(dies.id)
    end = end_of(backend, dies.id)
    assert (end.state, end.signal) == (RunState.KILLED, "SIGKILL")
    assert "SIGKILL" in (end.reason or "")


def test_the_same_run_is_not_ordered_twice(world: World, backend: RunBackend) -> None:
    record = begin(world, backend)
    request, _ = ordered(record.identity.workload_id)
    with pytest.raises(StateDirError):
        backend.order(request, record)
    world.release(record.id)
    assert end_of(backend, record.id).state is RunState.SUCCEEDED


def test_what_is_not_known_is_said_so(backend: RunBackend) -> None:
    nobody = str(uuid.uuid4())
    assert not backend.knows(nobody)
    with pytest.raises(RecordError):
        backend.record(nobody)
    assert backend.adopt(nobody, lambda: ordered()[1].identity) is None
    assert not backend.is_alive(nobody)
    assert backend.last_beat_s(nobody) is None
    assert not backend.is_stopping(nobody)
    backend.kill(nobody)  # nothing happens


@pytest.mark.parametrize("unwanted", [False, True])
def test_a_run_is_stopped_with_the_reason(world: World, backend: RunBackend, unwanted: bool) -> None:
    record = begin(world, backend)
    assert not backend.is_stopping(record.id)
    backend.stop(record.id, "the test has had enough", unwanted=unwanted)
    assert backend.is_stopping(record.id)
    end = end_of(backend, record.id)
    assert end.state is RunState.KILLED
    assert "the test has had enough" in (end.reason or "")
    assert (end.outcome == UNWANTED) is unwanted


def test_a_run_is_killed(world: World, backend: RunBackend) -> None:
    record = begin(world, backend)
    backend.kill(record.id)
    end = end_of(backend, record.id)
    assert (end.state, end.signal) == (RunState.KILLED, "SIGKILL")


def test_a_run_that_has_not_begun_is_withdrawn_and_one_that_has_is_not(world: World, backend: RunBackend) -> None:
    unborn = backend.withdraw(backend.record(world.unborn()), "nobody wants it")
    assert (unborn.state, unborn.reason) == (RunState.LOST, "nobody wants it")
    assert backend.record(unborn.id) == backend.withdraw(unborn, "once more") == unborn
    record = begin(world, backend)
    assert backend.withdraw(record, "too late").state is record.state
    world.release(record.id)
    assert end_of(backend, record.id).state is RunState.SUCCEEDED


def test_what_a_run_leaves_is_in_its_folder_until_its_end_and_after(world: World, backend: RunBackend) -> None:
    record = begin(world, backend)
    world.release(record.id)
    end = end_of(backend, record.id)
    backend.acknowledge(end)
    assert (Path(backend.folder(record.id)) / "result").read_text().strip() == record.id


def test_what_is_kept_for_a_workload_is_released_but_not_while_it_has_a_runner(
    world: World, backend: RunBackend
) -> None:
    record = begin(world, backend)
    workloads = [record.identity.workload_id, str(uuid.uuid4())]
    backend.release(workloads)
    assert world.keeps(workloads[0])
    assert backend.is_alive(workloads[0])
    world.release(record.id)
    end_of(backend, record.id)
    wait_for(lambda: not backend.is_alive(workloads[0]), "the runner to be gone")
    backend.release(workloads)
    assert not any(map(world.keeps, workloads))


def test_who_has_no_name_owns_nothing_and_two_can_be_so(world: World) -> None:
    first, second = world.backend(), world.backend()
    assert first.open(None)
    assert second.open(None)
    record = begin(world, first)
    assert first.is_mine(record.id)
    first.close()
    adopted = second.adopt(record.id, unknown)
    assert adopted is not None
    second.follow(adopted)
    world.release(record.id)
    assert end_of(second, record.id).state is RunState.SUCCEEDED


def test_an_owner_has_its_name_alone_while_it_lives(world: World, backend: RunBackend) -> None:
    other = world.backend()
    assert not other.open("1.first")
    assert other.open("2.second")
    other.close()
    backend.close()
    assert world.backend().open("1.first")


def test_runs_outlive_their_owner_and_another_takes_them_over(world: World, backend: RunBackend) -> None:
    lives, ends = begin(world, backend), begin(world, backend)
    other = world.backend()
    assert other.open("2.second")
    assert list(other.orphans(lambda _: True)) == []
    backend.close()
    world.release(ends.id)
    wait_for(lambda: world.has_ended(ends.id), "the end that nobody hears of")
    assert list(other.orphans(lambda name: name != "1.first")) == []
    assert {record.id for record in other.orphans(lambda name: name == "1.first")} == {lives.id, ends.id}
    for run_id in (lives.id, ends.id):
        record = other.adopt(run_id, unknown)
        assert record is not None
        other.follow(record)
        assert other.is_mine(run_id)
    assert end_of(other, ends.id).state is RunState.SUCCEEDED
    world.release(lives.id)
    assert end_of(other, lives.id).state is RunState.SUCCEEDED


def test_of_two_that_follow_a_run_one_owns_it(world: World, backend: RunBackend) -> None:
    record = begin(world, backend)
    other = world.backend()
    assert other.open("2.second")
    adopted = other.adopt(record.id, unknown)
    assert adopted is not None
    other.follow(adopted)
    assert (backend.is_mine(record.id), other.is_mine(record.id)) == (False, True)
    world.release(record.id)
    for each in (backend, other):  # the former owner may hear of it, and has to ask whose it is
        wait_for(lambda each=each: each.take_ends() or _look(each), "the end")  # type: ignore[misc]


def test_what_never_began_does_not_begin_any_more(world: World, backend: RunBackend) -> None:
    run_id = world.unborn()
    assert backend.adopt(run_id, unknown) is None
    record = backend.record(run_id)
    assert (record.state, record.outcome) == (RunState.LOST, UNWANTED)
    assert list(backend.orphans(lambda _: True)) == []


def test_an_end_that_was_acknowledged_is_nobody_s_any_more(world: World, backend: RunBackend) -> None:
    record = begin(world, backend)
    world.release(record.id)
    end = end_of(backend, record.id)
    backend.close()
    heir = world.backend()
    assert heir.open("2.second")
    assert [each.id for each in heir.orphans(lambda _: True)] == [record.id]
    with_moment = heir.acknowledge(end) if end.identity.kind != "job" else end
    heir.acknowledge(with_moment)
    assert list(heir.orphans(lambda _: True)) == []


def test_dead_owners_are_settled_until_their_trace_is_dropped(world: World, backend: RunBackend) -> None:
    record = begin(world, backend)
    world.dead_owner("3.dead", record.id)
    settled: list[str] = []

    def settle(keeps: bool) -> Callable[[str, float], bool]:
        def note(name: str, last_seen_s: float) -> bool:
            assert abs(time.time() - last_seen_s) < 600
            settled.append(name)
            return keeps

        return note

    backend.settle_owners(settle(keeps=True))
    backend.settle_owners(settle(keeps=False))
    backend.settle_owners(settle(keeps=False))
    assert settled == ["3.dead", "3.dead"]
    assert [each.id for each in backend.orphans(lambda name: name == "3.dead")] == [record.id]
    adopted = backend.adopt(record.id, unknown)
    assert adopted is not None
    backend.follow(adopted)
    world.release(record.id)
    wait_for(lambda: backend.take_ends() or _look(backend), "the end")


def test_who_needs_gpus_takes_turns(world: World, backend: RunBackend) -> None:
    other = world.backend()
    assert other.open("2.second")
    assert (backend.gpus.size, backend.gpus.free()) == (2, 2)
    assert backend.gpus.take_turn()
    assert backend.gpus.take_turn()
    assert not other.gpus.take_turn()
    backend.gpus.leave_turn()
    assert other.gpus.take_turn()
    other.close()
    assert backend.gpus.take_turn()
    backend.gpus.publish([{"name": "d.t", "gpus": 1, "of": 2, "since": "2026-01-01T00:00:00+00:00"}])
    backend.gpus.leave_turn()


def test_a_run_that_is_not_there_is_not_followed_for_ever(backend: RunBackend) -> None:
    _, record = ordered()
    try:
        backend.follow(record)
    except AirExecutorError:
        return  # said at once
    assert wait_for(lambda: backend.take_ends() or _look(backend), "its end")
