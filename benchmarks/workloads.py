"""What is run, what of it is measured, and what that should be."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.database import Instance, most_at_once
from benchmarks.measure import MB, cpu_s, memory, percentile
from benchmarks.sizes import Sizes
from benchmarks.stage import Stage
from tests.support import flights
from tests.support.waiting import wait_for

#: Seconds between runs of one task.
PAUSE_S = 1.0

#: How often the no-ops are run; their figures are the medians.
NOOP_RUNS = 3

#: After this many seconds without work the launcher of the workload ``retired`` ends.
RETIRE_S = 15


@dataclass(frozen=True)
class Figure:
    """Something that is measured."""

    key: str
    what: str
    unit: str
    bar: str = ""
    """What AirExecutor must reach: in units, or with ``x`` as a multiple of LocalExecutor's in the same round."""


@dataclass(frozen=True)
class Workload:
    """Something to run, with the figures that come of it."""

    name: str
    what: str
    """Describes it, with ``{names}`` of sizes."""
    measure: Callable[[Stage], dict[str, float]]
    figures: tuple[Figure, ...]
    warm_up: tuple[str, ...] = ()
    """Dags to run before anything is measured, beside ``noops``; sizes have their names."""
    learns: bool = False
    """After the warm-up, an executor that learns from it gets the time to."""
    is_long: bool = False
    """It has an Airflow to itself that is not warmed up but for the above, runs once, and by default under AirExecutor
    only."""
    compares_with_nothing: bool = False
    """It uses :attr:`Stage.alone_bytes`."""
    counts_requests: bool = False
    """Runners reach the API server through a proxy."""
    settings: Callable[[Sizes], Mapping[str, str]] = lambda _: {}
    """Environment variables of that Airflow."""


def _throughput(instances: Sequence[Instance]) -> float:
    """Return tasks per second, from the first that was queued until the last had ended."""
    return len(instances) / (max(i.ended_s for i in instances) - min(i.queued_s for i in instances))


def _mapped(stage: Stage, dag_id: str, tasks: int) -> dict[str, float]:
    before_s = stage.cpu_s()
    run = stage.run(dag_id, tasks)
    time.sleep(PAUSE_S)  # what ends the last tasks belongs to them
    used_s = stage.cpu_s() - before_s
    instances = stage.database.instances(run)
    latencies_ms = [i.latency_ms for i in instances]
    return {
        "tasks_per_s": _throughput(instances),
        "cpu_s_per_task": used_s / tasks,
        "queued_p50_ms": statistics.median(latencies_ms),
        "queued_p95_ms": percentile(latencies_ms, 95),
    }


def measure_noops(stage: Stage) -> dict[str, float]:
    """Many tasks that do nothing, more than once: a machine that does other things as well is not always as fast."""
    figures = [_mapped(stage, "noops", stage.sizes.noops) for _ in range(NOOP_RUNS)]
    return {name: statistics.median(each[name] for each in figures) for name in figures[0]}


def measure_pandas(stage: Stage) -> dict[str, float]:
    """Many tasks whose file imports pandas."""
    return _mapped(stage, "pandas", stage.sizes.pandas)


def measure_chain(stage: Stage) -> dict[str, float]:
    """Tasks one after the other."""
    return {"duration_s": stage.database.duration_s(stage.run("chain", stage.sizes.chain))}


def measure_single(stage: Stage) -> dict[str, float]:
    """One task, again and again."""
    latencies_ms = []
    for _ in range(stage.sizes.singles):
        time.sleep(PAUSE_S)
        [instance] = stage.database.instances(stage.run("single", 1))
        latencies_ms.append(instance.latency_ms)
    return {"queued_p50_ms": statistics.median(latencies_ms)}


def measure_sleepers(stage: Stage) -> dict[str, float]:
    """Memory of Airflow that has worked and rests, and memory and the scheduler's CPU while tasks sleep."""
    stage.rest()
    idle = stage.executing_memory()
    figures = {
        "idle_mb": idle.pss_bytes / MB,
        "idle_beyond_mb": (idle.pss_bytes - stage.alone_bytes) / MB,
        "idle_processes": float(idle.processes),
    }
    with stage.sleeping(stage.sizes.sleepers):
        stage.rest()
        busy = stage.executing_memory()
        before_s = cpu_s([stage.scheduler], children=False)
        time.sleep(stage.sizes.watch_s)
        used_s = cpu_s([stage.scheduler], children=False) - before_s
    return figures | {
        "mb_per_task": (busy.pss_bytes - idle.pss_bytes) / MB / stage.sizes.sleepers,
        "all_mb": busy.pss_bytes / MB,
        "scheduler_cpu_ms": used_s * 1000 / stage.sizes.watch_s,
    }


def measure_crowd(stage: Stage) -> dict[str, float]:
    """Very many tasks that sleep at once."""
    stage.rest()
    idle = stage.executing_memory()
    with stage.sleeping(stage.sizes.crowd) as run:
        stage.rest()
        busy = stage.executing_memory()
        time.sleep(stage.sizes.watch_s)
    starts = stage.proxy.requests("/run")
    assert starts >= stage.sizes.crowd, f"only {starts} tasks have told their start through the proxy"
    return {
        "at_once": float(most_at_once(stage.database.instances(run))),
        "peak_mb": busy.pss_bytes / MB,
        "mb_per_task": (busy.pss_bytes - idle.pss_bytes) / MB / stage.sizes.crowd,
        "heartbeats": float(stage.proxy.requests("/heartbeat")),
    }


def measure_row(stage: Stage) -> dict[str, float]:
    """Very many tasks in a row; the memory of what stays, after the first step and in the end."""
    step, samples, worked_s = stage.sizes.row_step, [], 0.0
    for _ in range(stage.sizes.row // step):
        worked_s += step / _throughput(stage.database.instances(stage.run("noops", step)))
        stage.rest()
        samples.append((memory([stage.scheduler]), memory(flights.launchers(stage.airflow))))
    figures = {"tasks_per_s": stage.sizes.row / worked_s}
    for number, part in enumerate(("scheduler", "launcher")):
        series = [sample[number] for sample in samples]
        if not series[0].pss_bytes:
            continue  # no launcher
        figures[f"{part}_pss_growth"] = (series[-1].pss_bytes / series[0].pss_bytes - 1) * 100
        figures[f"{part}_uss_growth"] = (series[-1].uss_bytes / series[0].uss_bytes - 1) * 100
        for count, sample in enumerate(series, start=1):
            figures[f"{part}_pss_mb_after_{count * step}"] = sample.pss_bytes / MB
            figures[f"{part}_uss_mb_after_{count * step}"] = sample.uss_bytes / MB
    return figures


def measure_retired(stage: Stage) -> dict[str, float]:
    """Memory of a scheduler that has worked and whose launcher has ended."""
    _wait_for_retirement(stage)
    before = stage.executing_memory()
    for _ in range(2):
        stage.run("noops", stage.sizes.noops)
    _wait_for_retirement(stage)
    idle = stage.executing_memory()
    return {
        "idle_beyond_mb": (idle.pss_bytes - stage.alone_bytes) / MB,
        "more_processes": idle.processes - before.processes,
    }


def _wait_for_retirement(stage: Stage) -> None:
    wait_for(lambda: not flights.launchers(stage.airflow), "the launcher to end", RETIRE_S + 60, every_s=1.0)
    stage.rest()


def _crowd_settings(sizes: Sizes) -> Mapping[str, str]:
    return {"AIRFLOW__CORE__PARALLELISM": str(sizes.crowd), "BENCHMARK_SLEEPERS": str(sizes.crowd)}


_BEYOND = "after work, idle: PSS beyond a scheduler with no executor work"

WORKLOADS = (
    Workload(
        "single",
        "one task on an idle machine, {singles} times",
        measure_single,
        (Figure("queued_p50_ms", "queued → started, p50", "ms", "≤ 1 x"),),
    ),
    Workload(
        "noops",
        f"{{noops}} mapped no-ops, median of {NOOP_RUNS} runs",
        measure_noops,
        (
            Figure("tasks_per_s", "throughput", "tasks/s", "≥ 1.5 x"),
            Figure("cpu_s_per_task", "CPU per task, all of Airflow", "s", "≤ 0.7 x"),
            Figure("queued_p50_ms", "queued → started, p50", "ms"),
            Figure("queued_p95_ms", "queued → started, p95", "ms"),
        ),
    ),
    Workload(
        "chain",
        "chain of {chain} no-ops",
        measure_chain,
        (Figure("duration_s", "duration of the DAG run", "s", "≤ 0.35 x"),),
    ),
    Workload(
        "sleep32",
        "{sleepers} tasks that sleep",
        measure_sleepers,
        (
            Figure("idle_mb", "after work, idle: PSS of scheduler and workers or launcher", "MB"),
            Figure("idle_processes", "after work, idle: their number", ""),
            Figure("idle_beyond_mb", _BEYOND, "MB", "≤ 150 MB"),
            Figure("mb_per_task", "PSS per running task, beyond idle", "MB", "≤ 24 MB"),
            Figure("all_mb", "PSS of all of it while they sleep", "MB"),
            Figure("scheduler_cpu_ms", "CPU of the scheduler while they sleep", "ms/s", "≤ 1 x"),
        ),
        compares_with_nothing=True,
    ),
    Workload(
        "pandas",
        "{pandas} mapped tasks, `import pandas` in the DAG file",
        measure_pandas,
        (
            Figure("tasks_per_s", "throughput", "tasks/s", "≥ 7 x"),
            Figure("cpu_s_per_task", "CPU per task, all of Airflow", "s"),
        ),
        warm_up=("pandas_warm_up",),
        learns=True,
    ),
    Workload(
        "retired",
        "idle until the launcher has ended, after {noops} no-ops twice",
        measure_retired,
        (
            Figure("idle_beyond_mb", _BEYOND, "MB", "0 MB"),
            Figure("more_processes", "more processes than before", "", "0"),
        ),
        is_long=True,
        compares_with_nothing=True,
        settings=lambda _: {"AIRFLOW__AIR_EXECUTOR__LAUNCHER_IDLE_SECONDS": str(RETIRE_S)},
    ),
    Workload(
        "crowd",
        "{crowd} tasks that sleep at once, parallelism {crowd}",
        measure_crowd,
        (
            Figure("at_once", "ran at the same time", "tasks", "all"),
            Figure("peak_mb", "PSS of scheduler, launcher and all runners", "MB"),
            Figure("mb_per_task", "PSS per running task, beyond idle", "MB"),
            Figure("heartbeats", "heartbeat requests at the API server", "", "0"),
        ),
        is_long=True,
        counts_requests=True,
        settings=_crowd_settings,
    ),
    Workload(
        "row5000",
        "{row} no-ops in a row, in runs of {row_step}; growth after the first run",
        measure_row,
        (
            Figure("tasks_per_s", "throughput", "tasks/s"),
            Figure("scheduler_pss_growth", "scheduler, PSS", "%", "≤ 3 %"),
            Figure("scheduler_uss_growth", "scheduler, USS", "%", "≤ 3 %"),
            Figure("launcher_pss_growth", "launcher, PSS", "%", "≤ 3 %"),
            Figure("launcher_uss_growth", "launcher, USS", "%", "≤ 3 %"),
        ),
        is_long=True,
        settings=lambda sizes: {"BENCHMARK_NOOPS": str(sizes.row_step)},
    ),
)
