"""Break things under LocalExecutor and under AirExecutor while sixteen tasks run, and compare what becomes of them.

``python -m tests.compare_faults [--only REGEX] [--json FILE] [--write docs/reliability.md]``

Each fault meets sixteen mapped tasks, each with a second try, that say when they begin and wait to be released; then it
is mended, the tasks are released, and the DAG run is followed to its end. Counted are, from what the tasks themselves
have left in a file and from the REST API: how many tasks succeeded, how many executions began beyond the first of each
task, how long the DAG run took to end once all was mended and released, and how many processes were left that belong to
no component (one may be the log server of a scheduler that was killed). Airflow is configured alike for both,
with its defaults for everything about timeouts, heartbeats and orphans. Components that end by themselves
are started again, as a service manager does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tests.support import site as places
from tests.support.api import ENDED
from tests.support.flights import Flight, strays
from tests.support.site import Site, mended, site
from tests.support.waiting import wait_for

EXECUTORS = {"LocalExecutor": "LocalExecutor", "AirExecutor": "air_executor.AirExecutor"}

TASKS = 16

#: A DAG run that takes longer than this to end, in seconds, is given up.
PATIENCE_S = 900.0

#: Tasks end this long, in seconds, after somebody began to stop the scheduler. Some executors wait for them.
RELEASED_S = 60.0

#: Airflow looks for orphaned tasks every 300 s, and takes a scheduler for dead after 30 s.
ORPHANS_S = 360.0

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

#: Breaks something for a number of seconds, and mends it.
Fault = Callable[[Site, Flight], None]


#: Here it counts how long the fault itself takes.
STOPPED = "scheduler stopped and started (SIGTERM)"


@dataclass(frozen=True)
class Outcome:
    """What became of the tasks."""

    fault: str
    executor: str
    state: str
    """Of the DAG run; "timeout" when it was given up."""
    succeeded: int
    executed_again: int
    """Executions that began beyond the first of each task."""
    twice_in_one_try: int
    fault_s: float
    """From the beginning of the fault until it was mended."""
    recovery_s: float
    """From then on until the DAG run ended."""
    left_processes: int

    def __str__(self) -> str:
        parts = [f"took {self.fault_s:.0f} s"] if self.fault == STOPPED else []
        parts += [f"{self.succeeded} of {TASKS} succeeded" if self.succeeded < TASKS else "all succeeded"]
        parts.append(f"{self.executed_again} executed again" if self.executed_again else "each ran once")
        if self.twice_in_one_try:
            parts.append(f"{self.twice_in_one_try} twice in one try")
        ended = (
            f"ended after {self.recovery_s:.0f} s" if self.state != "timeout" else f"not over after {PATIENCE_S:.0f} s"
        )
        parts.append(ended)
        if self.left_processes:
            parts.append(f"{self.left_processes} processes left behind")
        return ", ".join(parts)


def pids(flight: Flight) -> list[int]:
    """Return the process ids of the tasks, in the order of their indexes."""
    out = flight.airflow.out
    return [int((out / f"pid-{flight.run.run_id}-{index}").read_text()) for index in range(flight.tasks)]


def stopped(place: Site, flight: Flight) -> None:
    """Stop and start the scheduler. Its tasks end after a minute, whether it waits for them or not."""
    threading.Timer(RELEASED_S, flight.release).start()
    places.scheduler_stopped(place, 0)


def killed(place: Site, _flight: Flight) -> None:
    """Kill the scheduler, start it again at once, and let the tasks run on for as long as Airflow waits for orphans."""
    places.scheduler_killed(place, 0)
    time.sleep(ORPHANS_S)


def restarted(place: Site, _flight: Flight) -> None:
    for _ in range(5):
        places.scheduler_killed(place, 0)
        time.sleep(5)


def one_task_killed(_place: Site, flight: Flight) -> None:
    os.kill(pids(flight)[0], signal.SIGKILL)


def one_supervisor(signum: signal.Signals) -> Fault:
    def fault(_place: Site, flight: Flight) -> None:
        psutil.Process(pids(flight)[0]).parent().send_signal(signum)  # type: ignore[union-attr]

    return fault


def lasting(fault: places.Fault, lasts_s: float) -> Fault:
    return lambda place, _flight: fault(place, lasts_s)


FAULTS: dict[str, Fault] = {
    STOPPED: stopped,
    "scheduler killed (SIGKILL) and started, tasks run on for 6 minutes": killed,
    "scheduler killed and started five times": restarted,
    "scheduler frozen for 60 s": lasting(places.scheduler_frozen, 60),
    "one task process killed": one_task_killed,
    "one task's supervisor killed (worker or runner)": one_supervisor(signal.SIGKILL),
    "API server killed, started after 30 s": lasting(places.api_server_killed, 30),
    "API server unreachable for 180 s": lasting(places.api_server("refuse"), 180),
    "API server answers 500 for 60 s": lasting(places.api_server("error 500"), 60),
    "API server comes and goes for 60 s": lasting(places.api_server_flaps, 60),
    "PostgreSQL restarted": lasting(places.database_restarted, 0),
    "PostgreSQL unreachable for 60 s": lasting(places.database("refuse"), 60),
    "PostgreSQL without a free connection for 30 s": lasting(places.database_full, 30),
}


def measure(place: Site, fault: str, executor: str, number: int) -> Outcome:
    """Let one fault happen to a DAG run of sixteen tasks."""
    mended(place)
    flight = Flight(place.airflow, place.airflow.api.trigger("flight_of_sixteen", run_id=f"fault-{number}"), TASKS)
    wait_for(lambda: len(flight.effects) == TASKS, "the tasks to begin", 120)
    began_s = time.monotonic()
    FAULTS[fault](place, flight)
    mended(place)
    mended_s = time.monotonic()
    flight.release()

    def state() -> str | None:
        if not place.is_working():
            return None
        now = flight.run.state
        if now in ENDED:
            return now
        return "timeout" if time.monotonic() - mended_s > PATIENCE_S else None

    end = wait_for(state, "the DAG run to end", PATIENCE_S + 120, every_s=0.5)
    ended_s = time.monotonic()
    time.sleep(3)  # what is still there then is left behind
    left = strays(place.airflow)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    effects = flight.effects
    begun = [line for line in effects if line.startswith("begin")]
    return Outcome(
        fault=fault,
        executor=executor,
        state=end,
        succeeded=[instance["state"] for instance in flight.run.instances()].count("success"),
        executed_again=len(begun) - TASKS,
        twice_in_one_try=sum(count - 1 for count in Counter(begun).values()),
        fault_s=round(mended_s - began_s, 1),
        recovery_s=round(ended_s - mended_s, 1),
        left_processes=len(left),
    )


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the outcomes in Markdown, a row for each fault."""
    rows = [f"| fault | {' | '.join(EXECUTORS)} |", "|---" * (len(EXECUTORS) + 1) + "|"]
    cells = {(outcome.fault, outcome.executor): outcome for outcome in outcomes}
    for fault in FAULTS:
        found = [cells.get((fault, executor)) for executor in EXECUTORS]
        if any(found):
            rows.append(f"| {fault} | " + " | ".join(str(outcome or "not run") for outcome in found) + " |")
    return "\n".join(rows)


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="faults to measure")
    parser.add_argument("--json", type=Path, help="where to leave the figures")
    parser.add_argument("--from", type=Path, dest="source", help="figures to show again instead of measuring")
    parser.add_argument("--write", type=Path, help="a document whose marked part becomes the table")
    arguments = parser.parse_args()
    outcomes = [Outcome(**each) for each in json.loads(arguments.source.read_text())] if arguments.source else []

    def measure_all(name: str, executor: str, folder: Path) -> None:
        with site(folder / name, executor) as place:
            place.airflow.api.unpause("flight_of_sixteen")
            for number, fault in enumerate(FAULTS):
                if re.search(arguments.only, fault):
                    outcomes.append(measure(place, fault, name, number))
                    print(f"{name}: {fault}: {outcomes[-1]}", flush=True)

    with tempfile.TemporaryDirectory(prefix="air-executor-faults-") as folder:
        # One after the other: they would share the machine's two cores otherwise.
        for name, executor in EXECUTORS.items() if not arguments.source else ():
            measure_all(name, executor, Path(folder))
    print(table(outcomes))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    if arguments.write:
        text = arguments.write.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        arguments.write.write_text(f"{before}{BEGIN}\n{table(outcomes)}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
