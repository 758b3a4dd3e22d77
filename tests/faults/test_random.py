"""Faults of all kinds, one after the other by chance, while there is always work in flight.

Only with ``--faults-seed``: it takes ``--faults-minutes`` (10), and is for people, not for CI. The seed decides the
faults and their order; which of the running tasks they meet depends on the moment, too.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import psutil
import pytest

from air_executor.runs.record import UNWANTED, RunState
from tests.support import flights
from tests.support.api import ENDED, DagRun
from tests.support.flights import Flight
from tests.support.site import AIR_FAULTS, AIRFLOW_FAULTS, Site, mended, site
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]

#: This many dag runs are kept going, of this many tasks each.
LOADS, TASKS = 4, 8

#: What a run may say that could not be begun or recorded because the disk took nothing more.
DISK = (
    "No space left",
    "Read-only file system",
    "its end could not be recorded",
    "before it could record an outcome",
    "is gone and left no outcome",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("random")
    with site(folder, "air_executor.AirExecutor", small_disk=os.geteuid() == 0) as place:
        place.airflow.api.unpause("load")
        yield place


class Loads:
    """Dag runs in flight, and those that have been."""

    def __init__(self, place: Site, rng: random.Random) -> None:
        self._api = place.airflow.api
        self._rng = rng
        self.runs: list[DagRun] = []

    def fill_up(self) -> None:
        """Trigger runs until there are enough."""
        active = [run for run in self.runs if run.state not in ENDED]
        for _ in range(LOADS - len(active)):
            seconds = [[index, self._rng.choice([0, 1, 5, 10, 20])] for index in range(TASKS)]
            name = f"load-{len(self.runs)}"
            self.runs.append(self._api.trigger("load", {"seconds": seconds}, run_id=name))


def deed(place: Site, number: int, rng: random.Random) -> tuple[Flight, str]:
    """Do what users do to a running task, and return it with the state in which it should end."""
    flight = Flight(place.airflow, place.airflow.api.trigger("flight_of_one", run_id=f"deed-{number}"), 1)
    wait_for(lambda: flight.effects, "the task to begin", 120)
    what = rng.choice(["success", "failed", "cleared"])
    if what == "cleared":
        flight.run.clear("work")
        flight.release()
        return flight, "success"
    flight.run.mark("work", what)
    return flight, what


def test_nothing_is_lost_whatever_happens(place: Site, request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--faults-seed") or random.randrange(1_000_000)
    minutes = request.config.getoption("--faults-minutes")
    print(f"--faults-seed {seed} --faults-minutes {minutes}")
    names = [*AIRFLOW_FAULTS, *AIR_FAULTS, "user"]
    if place.disk is None:
        names = [name for name in names if not name.startswith("disk")]
    hit: set[str] = set()
    deeds: list[tuple[Flight, str]] = []
    loads = Loads(place, random.Random(seed))
    began_s = time.monotonic()
    faults: list[str] = []
    while time.monotonic() - began_s < minutes * 60:
        own = random.Random(f"{seed} {len(faults)}")  # so that what one fault draws does not depend on the one before
        name, lasts_s = own.choice(names), own.uniform(2, 25)
        loads.fill_up()
        time.sleep(own.uniform(0, 5))
        print(f"{time.monotonic() - began_s:6.1f} s  {name} ({lasts_s:.1f} s)", flush=True)
        faults.append(name)
        if name == "user":
            deeds.append(deed(place, len(faults), own))
        elif name in AIR_FAULTS:
            hit |= AIR_FAULTS[name](place, own, lasts_s)
        else:
            AIRFLOW_FAULTS[name](place, lasts_s)
        mended(place)

    excuses = DISK if any(name.startswith("disk") for name in faults) else ()
    for run in loads.runs:
        assert run.wait(600) == "success", run.run_id
        check_load(place, run, hit, excuses)
    for flight, state in deeds:
        assert flight.run.wait() == state
        assert max(Counter(flight.effects).values()) == 1, flight.effects
    wait_for(lambda: not flights.unfinished(place.airflow), "all ends to be told")
    end_log_servers(place)
    wait_for(lambda: not flights.strays(place.airflow), "all runners to be gone")
    flights.check_nothing_left_behind(place.airflow)
    print(f"{len(faults)} faults, {len(loads.runs)} dag runs, {len(hit)} runs ended by force")


def end_log_servers(place: Site) -> None:
    """End the log servers of schedulers that were killed: Airflow leaves them behind, whatever the executor."""
    port = int(place.airflow.env["AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"])
    for process in flights.strays(place.airflow):
        with contextlib.suppress(psutil.Error):
            if any(each.laddr.port == port and each.status == psutil.CONN_LISTEN for each in process.net_connections()):
                process.kill()


def check_load(place: Site, run: DagRun, hit: set[str], excuses: Sequence[str]) -> None:
    """See that each task ran once in each try, and that it had another try only for a reason."""
    effects = Flight(place.airflow, run, TASKS).effects
    assert max(Counter(effects).values()) == 1, effects
    assert {line.split()[1] for line in effects if line.startswith("end")} == {str(index) for index in range(TASKS)}
    records = [r for r in place.airflow.records("load") if r.identity.dag_run_id == run.run_id]
    failed = [r for r in records if r.state is not RunState.SUCCEEDED and r.outcome != UNWANTED]
    for record in failed:
        assert record.id in hit or any(text in (record.reason or "") for text in excuses), record
    more_tries = sum(instance["try_number"] - 1 for instance in run.instances())
    unrecorded = refusals(run, excuses)
    assert more_tries <= len(failed) + unrecorded, f"{more_tries} further tries, {len(failed)} failed runs"


def refusals(run: DagRun, excuses: Sequence[str]) -> int:
    """Return how many workloads could not even be put on record."""
    events = [event for task in ("busy", "total", "seconds") for event in run.events(task)]
    return sum(
        any(text in (event["extra"] or "") for text in excuses)
        for event in events
        if event["event"] != "trigger_dag_run"
    )
