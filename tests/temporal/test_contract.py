"""Hosts behind Temporal keep the contract of places where runs happen: the tests of ``tests/unit/test_backend.py``.

Not kept, and said so by the backend: a host kills what does not end when it is asked to, so nobody else can; what was
sent to Temporal may begin any time, so nothing is withdrawn; GPUs and what is kept for a next try are the host's.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from air_executor.cli.temporal_options import option
from air_executor.errors import RecordError
from air_executor.launcher.client.claims import Claims
from air_executor.machine import system
from air_executor.runs.backend import RunBackend
from air_executor.runs.ordered import OrderedRuns
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from air_executor.temporal import jobs
from air_executor.temporal.backend import TemporalBackend
from air_executor.temporal.settings import Settings
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.temporal.conftest import Temporal
from tests.unit.processes import forked
from tests.unit.test_backend import (  # noqa: F401 (the tests, and their fixture)
    Shells,
    backend,
    ordered,
    test_a_failure_and_the_death_of_a_runner_are_ends_too,
    test_a_run_is_ordered_followed_and_its_end_taken_once,
    test_a_run_is_stopped_with_the_reason,
    test_a_run_that_is_not_there_is_not_followed_for_ever,
    test_an_end_that_was_acknowledged_is_nobody_s_any_more,
    test_an_owner_has_its_name_alone_while_it_lives,
    test_dead_owners_are_settled_until_their_trace_is_dropped,
    test_of_two_that_follow_a_run_one_owns_it,
    test_runs_outlive_their_owner_and_another_takes_them_over,
    test_the_same_run_is_not_ordered_twice,
    test_what_a_run_leaves_is_in_its_folder_until_its_end_and_after,
    test_what_is_not_known_is_said_so,
    test_what_never_began_does_not_begin_any_more,
    test_who_has_no_name_owns_nothing_and_two_can_be_so,
)

pytestmark = pytest.mark.faults


class Host(Shells):
    """A host, seen by those who order runs from it."""

    def __init__(self, folder: Path, store: RunStore) -> None:
        super().__init__(folder, store)
        self.ordered = OrderedRuns.of(folder / "state")
        self.made: list[TemporalBackend] = []

    def backend(self) -> RunBackend:
        options = config(self.folder / "state", serves="jobs")
        self.made.append(jobs.make_backend(options, Settings.load(option)))
        return self.made[-1]

    def has_begun(self, run_id: str) -> bool:
        try:
            return self.store.read(run_id).state is RunState.RUNNING
        except RecordError:
            return False  # its host has not written it yet

    def dead_owner(self, name: str, *run_ids: str) -> None:
        def live() -> Claims:  # a client of Temporal does not survive a fork
            claims = Claims(self.ordered)
            assert claims.begin(name)
            for run_id in run_ids:
                claims.claim(run_id)
            return claims

        with forked(live):
            pass

    def unborn(self) -> str:
        _, record = ordered()
        self.ordered.create(record)
        return record.id

    def keeps(self, workload_id: str) -> bool:
        """Nothing is kept here."""
        return False

    def close(self) -> None:
        for made in self.made:
            made.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, temporal: Temporal) -> Iterator[RunStore]:
    """The state directory of a host's worker."""
    folder = tmp_path_factory.mktemp("host")
    store = RunStore(folder / "state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(folder / "home"))
        patch.setenv("TEMPORAL_ADDRESS", temporal.address)
        patch.setenv("TEMPORAL_TASK_QUEUE", f"contract-{os.getpid()}")
        patch.setenv("AIRFLOW__AIR_EXECUTOR__TEMPORAL_KEY", "a key")
        log = folder / "worker.log"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, "-m", "air_executor.cli", "worker", "--state-dir", str(store.root), "--no-logs"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
            )
        wait_for(lambda: "serves" in log.read_text(), "the worker")
        yield store
        worker.terminate()
        worker.wait(240)


@pytest.fixture
def world(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("CONTRACT", str(tmp_path))
    monkeypatch.setattr(jobs, "_LOST_S", 60.0)  # a run is lost when nothing was heard of it for so long
    host = Host(tmp_path, store)
    yield host
    host.close()
