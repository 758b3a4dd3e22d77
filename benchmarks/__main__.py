"""Compare executors: ``python -m benchmarks``, or ``scripts/benchmark`` which sets up what that needs.

Each round brings up an Airflow with each executor in turn, in another order every time, warms it up, and measures the
workloads. The long ones have an Airflow each, and run once. What fails is in the report with its reason; the others go
on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.database import Database
from benchmarks.results import Results, Sample, machine, version
from benchmarks.sizes import QUICK, Sizes
from benchmarks.stage import EXECUTORS, SETTINGS, Stage, postgres, scheduler_alone_bytes, stage
from benchmarks.workloads import WORKLOADS, Workload
from tests.support.airflow_env import REPOSITORY
from tests.support.postgres import Postgres

#: Under which executors the long workloads run, unless others are asked for.
LONG_EXECUTORS = ("AirExecutor",)

NAMES = {workload.name: workload for workload in WORKLOADS}


class Benchmark:
    """Measures one workload after the other, and says so."""

    def __init__(self, server: Postgres, folder: Path, sizes: Sizes, settings: Mapping[str, str]) -> None:
        self._server = server
        self._folder = folder
        self._sizes = sizes
        self._settings = settings
        self._version = version()
        self.samples: list[Sample] = []

    @functools.cached_property
    def _alone_bytes(self) -> int:
        return scheduler_alone_bytes(self._server, self._folder, self._sizes, self._settings)

    def round(self, number: int, executors: Sequence[str], workloads: Sequence[Workload]) -> None:
        """Measure workloads under each executor; with each round another one is the first."""
        first = (number - 1) % len(executors)
        for executor in (*executors[first:], *executors[:first]):
            self._play(number, executor, workloads, "noops")

    def once(self, executor: str, workload: Workload) -> None:
        """Measure a workload in an Airflow of its own."""
        self._play(1, executor, [workload])

    def _play(self, number: int, executor: str, workloads: Sequence[Workload], *warm_up: str) -> None:
        """Measure workloads in one Airflow. If it can't be brought up, or warmed up, all of them have failed."""
        name = f"{executor.lower()}-{number}-{workloads[0].name}"
        settings = {**workloads[0].settings(self._sizes), **self._settings}
        proxy = workloads[0].counts_requests
        left = list(workloads)
        try:
            alone_bytes = self._alone_bytes if any(workload.compares_with_nothing for workload in workloads) else 0
            with stage(
                executor,
                self._server,
                self._folder / name,
                self._sizes,
                settings,
                alone_bytes=alone_bytes,
                through_proxy=proxy,
            ) as made:
                warm: set[str] = set()
                while left:
                    # Just before its workload: what one makes an executor remember must not burden the others.
                    for dag_id in [each for each in (*warm_up, *left[0].warm_up) if each not in warm]:
                        made.run(dag_id, getattr(self._sizes, dag_id))
                        warm.add(dag_id)
                    if left[0].learns:
                        made.learn()
                    made.rest()
                    self._measure(made, number, executor, left[0])
                    del left[0]
        except Exception as error:
            for workload in left:
                self._note(Sample(number, executor, workload.name, error=_reason(error)))
            if not left:
                print(f"{executor} did not end well: {_reason(error)}", file=sys.stderr)

    def _measure(self, stage: Stage, number: int, executor: str, workload: Workload) -> None:
        load = os.getloadavg()[0]
        try:
            figures = workload.measure(stage)
        except Exception as error:
            self._note(Sample(number, executor, workload.name, error=_reason(error), load_before=load))
        else:
            self._note(Sample(number, executor, workload.name, figures, load_before=load))

    def _note(self, sample: Sample) -> None:
        self.samples.append(replace(sample, version=self._version))
        said = sample.error or ", ".join(f"{key} {value:.4g}" for key, value in sample.figures.items())
        now = time.strftime("%H:%M:%S")
        print(f"{now} round {sample.round} {sample.executor} {sample.workload}: {said}", flush=True)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:1000]


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _chosen_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: known are {', '.join(known)}")
        return names

    return chosen


def arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description="Compare AirExecutor with other executors.")
    parser.add_argument(
        "--executors", type=_chosen_of(list(EXECUTORS)), metavar="A,B", help=f"of {', '.join(EXECUTORS)}; default: all"
    )
    parser.add_argument(
        "--workloads",
        type=_chosen_of(list(NAMES)),
        metavar="A,B",
        help=f"of {', '.join(NAMES)}; default: all but the long ones",
    )
    parser.add_argument("--all", action="store_true", help="the long workloads too; by default under AirExecutor alone")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try it; --out is build/benchmarks then")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write to (docs/benchmarks)")
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="an environment variable more"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing, only make table and plots anew")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> Results:
    """Measure what was asked for."""
    sizes = QUICK if options.quick else Sizes()
    extra = dict(options.set)
    names = options.workloads or [name for name, workload in NAMES.items() if options.all or not workload.is_long]
    workloads = [workload for workload in WORKLOADS if workload.name in names]
    with postgres(folder) as server:
        benchmark = Benchmark(server, folder, sizes, extra)
        short = [workload for workload in workloads if not workload.is_long]
        for number in range(1, options.rounds + 1) if short else ():
            benchmark.round(number, options.executors or list(EXECUTORS), short)
        for workload in workloads:
            for executor in (options.executors or LONG_EXECUTORS) if workload.is_long else ():
                benchmark.once(executor, workload)
        with contextlib.closing(Database(server, "postgres")) as database:
            described = machine(PostgreSQL=database.version)
    settings = {"AIRFLOW__CORE__PARALLELISM": str(sizes.parallelism), **SETTINGS, **extra}
    return Results(described, settings, sizes, tuple(benchmark.samples))


def main() -> int:
    """Measure, report, and return the exit code."""
    options = arguments()
    # As an exit, so that Airflow's processes are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out = options.out or REPOSITORY / ("build" if options.quick else "docs") / "benchmarks"
    file = out / "results.json"
    if options.report:
        results = Results.read(file)
    else:
        folder = Path(tempfile.mkdtemp(prefix="air-benchmark-"))
        print(f"Airflow's logs are in {folder} until all has gone well", file=sys.stderr)
        results = measure(options, folder)
        if all(sample.error is None for sample in results.samples):
            shutil.rmtree(folder)
        if file.exists():
            results = results.with_former(Results.read(file))
    report.write(results, out)
    print(f"\n{report.markdown(results)}\nin {out}")
    return int(any(sample.error is not None for sample in results.samples))


if __name__ == "__main__":
    sys.exit(main())
