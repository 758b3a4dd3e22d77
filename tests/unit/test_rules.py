"""The rules by which runs and Airflow's database are made to agree: over a place in memory, and a real database."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from air_executor.airflow import reconcile, schedulers, task_instances
from air_executor.airflow.reconcile import PASS_S, Outcome, Reconciler, Unwanted
from air_executor.airflow.reports import Report
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import queued
from tests.support.memory_backend import MemoryBackend, Place
from tests.support.waiting import wait_for
from tests.unit.clocks import Time
from tests.unit.documents import identity
from tests.unit.instances import LONG_AGO, Database

#: The scheduler's job.
JOB = 7

#: States in which nobody waits for the run of a task instance.
GIVEN_UP = (
    "success failed skipped removed upstream_failed up_for_retry up_for_reschedule deferred scheduled restarting"
).split()


class Site:
    """A scheduler with its database, and the place where its runs happen."""

    def __init__(self, folder: Path, database: Database, clock: Time) -> None:
        self.database, self.clock = database, clock
        self.place = Place(folder=folder)
        self.backend = MemoryBackend(self.place)
        assert self.backend.open(f"{JOB}.own")
        self.reconciler = Reconciler(self.backend, folder, JOB)
        self.runs: dict[str, str | None] = {}

    def live(self, state: str = "running", *, has_beat: bool = True, **changes: Any) -> tuple[str, str]:
        """Begin the run of a task instance; return both ids."""
        ti_id = self.database.add(state, **changes)
        who = identity(workload_id=ti_id)
        record = queued(str(uuid.uuid4()), who, limits={}, log_file=None)
        self.backend.order(RunRequest(id=record.id, identity=who, workload={}), record)
        if not has_beat:
            self.place.runs[record.id].beat_s = None
        self.runs[record.id] = ti_id
        return record.id, ti_id

    def beat(self, run_id: str) -> None:
        """Let a runner show its life."""
        self.place.runs[run_id].beat_s = self.clock.wall_s

    def make_pass(self, elsewhere: Sequence[str] = (), reports: Sequence[Report] = ()) -> Outcome:
        self.reconciler.begin(self.runs, elsewhere, reports)
        thread = self.reconciler._thread
        assert thread is not None
        thread.join(60)  # the clock of this process stands still
        found = self.reconciler.outcome()
        assert found is not None
        return found

    def let_time_pass(self, seconds: float, *beating: str) -> None:
        """Let time pass in which the scheduler looks at the clock, and these runners beat."""

        def look() -> None:
            for run_id in beating:
                self.beat(run_id)
            self.reconciler.is_due()

        self.clock.run(seconds, look)

    def beats(self, ti_id: str) -> bool:
        """Tell whether the next pass writes a heartbeat."""
        self.database.forget_beats()
        self.make_pass()
        return self.database.has_beaten(ti_id)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/airflow.db")
    for module in (task_instances, schedulers):
        monkeypatch.setattr(module, "create_session", made.session)
    yield made
    made.engine.dispose()


@pytest.fixture
def site(tmp_path: Path, database: Database, clock: Time) -> Site:
    return Site(tmp_path, database, clock)


# Heartbeats are written of runs whose runner shows its life, and whose task Airflow takes for running


def test_the_heartbeats_of_all_that_live_are_written(site: Site) -> None:
    instances = [site.live()[1] for _ in range(3)]
    site.make_pass()
    assert all(map(site.database.has_beaten, instances))


@pytest.mark.parametrize("state", ["queued", "success", "failed", "up_for_retry", "deferred", "restarting", None])
def test_none_is_written_where_airflow_does_not_take_the_task_for_running(site: Site, state: Any) -> None:
    _, ti_id = site.live(state)
    assert not site.beats(ti_id)


def test_none_is_written_of_a_runner_that_never_showed_its_life(site: Site) -> None:
    run_id, ti_id = site.live(has_beat=False)
    assert not site.beats(ti_id)
    assert not site.reconciler.is_silent(run_id)  # it may not have begun
    site.let_time_pass(20, run_id)
    assert site.beats(ti_id)


def test_none_is_written_of_a_runner_that_has_been_silent_for_a_minute(site: Site) -> None:
    (silent, of_silent), (well, of_well) = site.live(), site.live()
    site.make_pass()
    site.let_time_pass(55, well)
    assert site.beats(of_silent)
    site.let_time_pass(10, well)
    assert (site.reconciler.is_silent(silent), site.reconciler.is_silent(well)) == (True, False)
    site.let_time_pass(15, well)
    assert (site.beats(of_silent), site.database.has_beaten(of_well)) == (False, True)
    site.let_time_pass(15, silent, well)
    assert site.beats(of_silent)


@pytest.mark.parametrize("offset_s", [-3600.0, 3600.0])
def test_it_is_the_change_of_a_sign_of_life_that_counts_not_the_clock_it_is_of(site: Site, offset_s: float) -> None:
    run_id, ti_id = site.live()
    for _ in range(10):
        site.place.runs[run_id].beat_s = site.clock.wall_s + offset_s
        assert site.beats(ti_id)
        site.let_time_pass(16)


@pytest.mark.parametrize(("timeout_s", "every_s"), [(300, 15), (60, 15), (20, 5)])
def test_heartbeats_are_written_as_often_as_airflow_s_timeout_needs(
    tmp_path: Path, database: Database, clock: Time, timeout_s: int, every_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", str(timeout_s))
    site = Site(tmp_path, database, clock)
    run_id, ti_id = site.live()
    assert site.beats(ti_id)
    site.let_time_pass(every_s - 1, run_id)
    assert not site.beats(ti_id)
    site.let_time_pass(1, run_id)
    assert site.beats(ti_id)


# A run that Airflow has given up twice in a row is unwanted


@pytest.mark.parametrize("state", GIVEN_UP)
def test_a_run_whose_task_was_set_to_another_state_is_unwanted(site: Site, state: str) -> None:
    run_id, ti_id = site.live()
    assert site.make_pass().unwanted == []
    site.database.change(ti_id, state=state)
    assert site.make_pass().unwanted == []  # it may be about to end for that
    assert site.make_pass().unwanted == [Unwanted(run_id, f"its task instance was set to {state}")]


def test_a_run_whose_task_has_no_state_any_more_is_unwanted(site: Site) -> None:
    run_id, ti_id = site.live()
    site.database.change(ti_id, state=None)
    site.make_pass()
    assert site.make_pass().unwanted == [Unwanted(run_id, "its task instance was set to no state")]


def test_a_run_whose_task_is_gone_is_unwanted(site: Site) -> None:
    run_id, ti_id = site.live()
    site.database.remove(ti_id)
    site.make_pass()
    (found,) = site.make_pass().unwanted
    assert (found.run_id, "was deleted, cleared, or has moved on to another try" in found.reason) == (run_id, True)


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_run_is_wanted_while_its_task_waits_for_it_or_runs(site: Site, state: str) -> None:
    site.live(state)
    assert [site.make_pass().unwanted for _ in range(3)] == [[], [], []]


def test_a_run_that_is_wanted_again_in_between_is_not_unwanted(site: Site) -> None:
    run_id, ti_id = site.live()
    for state in ("scheduled", "running", "scheduled"):
        site.database.change(ti_id, state=state)
        assert site.make_pass().unwanted == []
    assert [each.run_id for each in site.make_pass().unwanted] == [run_id]


def test_what_is_no_task_is_never_unwanted(site: Site) -> None:
    site.runs["a callback"] = None
    assert [site.make_pass() for _ in range(2)] == [Outcome(set(), [], set())] * 2


# A run that another scheduler follows is that one's


def test_a_run_that_was_taken_over_is_lost_and_not_looked_at_any_more(site: Site) -> None:
    run_id, ti_id = site.live()
    site.database.remove(ti_id)
    heir = MemoryBackend(site.place)
    assert heir.open("8.heir")
    heir.follow(heir.record(run_id))
    for _ in range(2):
        found = site.make_pass()
        assert (found.lost, found.unwanted) == ({run_id}, [])


# Tasks whose runs nobody here can see are over when they do not run any more


def test_a_task_elsewhere_is_over_when_it_does_not_run_any_more(site: Site) -> None:
    runs, ended, gone = site.database.add(), site.database.add("success"), str(uuid.uuid4())
    found = site.make_pass(elsewhere=[runs, ended, gone])
    assert (found.over, found.unwanted) == ({ended, gone}, [])
    assert not site.database.has_beaten(runs)  # its own runner does that


# Tasks that wait for GPUs are queued, however long, until Airflow gives them up


def test_a_task_that_waits_for_gpus_counts_as_queued_just_now(site: Site) -> None:
    waits, other = (site.database.add("queued", queued_dttm=LONG_AGO) for _ in range(2))
    site.reconciler.waiting = [waits]
    site.make_pass()
    assert site.database.value(waits, "queued_dttm") > LONG_AGO + timedelta(minutes=1)
    assert site.database.value(other, "queued_dttm") == LONG_AGO


def test_a_task_whose_runner_waits_for_the_server_counts_as_queued_just_now(site: Site) -> None:
    waits, ti_id = site.live("queued", queued_dttm=LONG_AGO)
    _, other = site.live("queued", queued_dttm=LONG_AGO, has_beat=False)
    site.make_pass()
    assert site.database.value(ti_id, "queued_dttm") == LONG_AGO  # it may just have begun
    site.let_time_pass(reconcile._QUEUED_S, waits)
    site.make_pass()
    assert site.database.value(ti_id, "queued_dttm") > LONG_AGO + timedelta(minutes=1)
    assert site.database.value(other, "queued_dttm") == LONG_AGO


def test_a_task_that_waits_for_gpus_is_unwanted_by_its_own_id(site: Site) -> None:
    waits = site.database.add("queued")
    site.reconciler.waiting = [waits]
    site.make_pass()
    site.database.change(waits, state="failed", queued_dttm=LONG_AGO)
    site.let_time_pass(120)
    assert site.make_pass().unwanted == []
    assert [each.run_id for each in site.make_pass().unwanted] == [waits]
    assert site.database.value(waits, "queued_dttm") == LONG_AGO


# A failure that the scheduler has not taken in is reported again


def test_what_the_scheduler_has_missed_is_told_from_what_it_has_heard(site: Site) -> None:
    as_it_was, taken_in = (site.database.add(state, external_executor_id="run") for state in ("running", "failed"))
    reports = [Report("a", ti_id=as_it_was, executor_id="run"), Report("b", ti_id=taken_in, executor_id="run")]
    found = site.make_pass(reports=reports)
    assert (found.missed, found.heard) == ({"a"}, {"b"})


# A database that is away fails nothing, and is made up for


def test_a_database_that_is_away_changes_nothing_and_is_said_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=reconcile.log.name)
    run_id, ti_id = site.live()
    _, of_cleared = site.live()
    site.database.change(of_cleared, state="restarting")
    site.make_pass()

    @contextlib.contextmanager
    def away(**_: Any) -> Iterator[None]:
        raise OperationalError("SELECT", {}, Exception("no connection"))
        yield

    with monkeypatch.context() as patched:
        patched.setattr(task_instances, "create_session", away)
        for _ in range(5):
            site.let_time_pass(20, run_id)
            found = site.make_pass(elsewhere=[str(uuid.uuid4())], reports=[Report("r", ti_id=ti_id)])
            assert found == Outcome(set(), [], set())
            assert site.reconciler.is_database_away
        assert site.reconciler.is_behind() is False
        site.let_time_pass(60, run_id)
        assert site.reconciler.is_behind()
    found = site.make_pass()
    assert not site.reconciler.is_database_away
    assert site.database.has_beaten(ti_id)
    assert len(found.unwanted) == 1  # seen before and after
    assert not site.reconciler.is_behind()
    said = [entry.getMessage() for entry in caplog.records if "database" in entry.getMessage()]
    assert [text.split(";")[0].split(":")[0] for text in said] == [
        "The database can't be reached",
        "The database is back",
    ]


# A pass is made every few seconds, one at a time


def test_a_pass_is_due_every_few_seconds_once_the_last_one_is_over(site: Site) -> None:
    assert site.reconciler.is_due()
    site.reconciler.begin(site.runs)
    site.clock.pause(PASS_S)
    assert not site.reconciler.is_due()  # its outcome was not taken yet
    wait_for(site.reconciler.outcome, "the pass")
    assert site.reconciler.is_due()
    site.make_pass()
    assert not site.reconciler.is_due()
    site.let_time_pass(PASS_S - 1)
    assert not site.reconciler.is_due()
    site.let_time_pass(1)
    assert site.reconciler.is_due()


@pytest.mark.parametrize("broken", ["is_mine", "last_beat_s"])
def test_a_run_that_cannot_be_looked_at_hurts_no_other(
    site: Site, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bad, of_bad), (_, of_good) = site.live(), site.live()
    works: Callable[[str], Any] = getattr(site.backend, broken)

    def mostly(run_id: str) -> Any:
        if run_id == bad:
            raise ValueError("odd")
        return works(run_id)

    monkeypatch.setattr(site.backend, broken, mostly)
    found = site.make_pass()
    assert (found.lost, found.unwanted) == (set(), [])
    assert (site.database.has_beaten(of_bad), site.database.has_beaten(of_good)) == (False, True)
