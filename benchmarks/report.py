"""The table and the plots, from the results alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.results import Results
from benchmarks.workloads import WORKLOADS, Figure, Workload

#: What others are compared with.
REFERENCE = "LocalExecutor"

BEGIN, END = "<!-- made by scripts/benchmark: from here -->", "<!-- made by scripts/benchmark: to here -->"

_EXPLANATION = """\
Figures are medians over the rounds, with the least and the greatest in brackets. `x` is the ratio to LocalExecutor in
the same round: its median over the rounds, and its range. A round brings up an Airflow with each executor in turn, in
another order every time, runs a warm-up that is not counted, and then all workloads. CPU is that of all of Airflow's
processes with their children; PostgreSQL and redis are not counted. Memory is PSS, of the scheduler and all that runs
tasks or could (workers, launcher, runners, task processes). "A scheduler with no executor work" has scheduled as many
no-ops with an executor that runs nothing and says that they succeeded. Times of tasks are from Airflow's database. All
values are in [results.json](results.json)."""

#: Plots: file, title, unit, and the figures in it with their labels.
_PLOTS = (
    (
        "throughput.svg",
        "Throughput",
        "tasks/s",
        {("noops", "tasks_per_s"): "no-ops", ("pandas", "tasks_per_s"): "pandas"},
    ),
    (
        "cpu.svg",
        "CPU per task, all of Airflow",
        "s",
        {("noops", "cpu_s_per_task"): "no-ops", ("pandas", "cpu_s_per_task"): "pandas"},
    ),
    (
        "memory.svg",
        "Memory of scheduler and workers or launcher (PSS)",
        "MB",
        {("sleep32", "idle_mb"): "idle after work", ("sleep32", "all_mb"): "while tasks sleep"},
    ),
    (
        "latency.svg",
        "Queued → started",
        "ms",
        {
            ("single", "queued_p50_ms"): "one task, p50",
            ("noops", "queued_p50_ms"): "no-ops, p50",
            ("noops", "queued_p95_ms"): "no-ops, p95",
        },
    ),
)


def write(results: Results, folder: Path) -> None:
    """Write the raw results, the plots, and the report into the ``README.md`` of a folder, between its markers."""
    results.write(folder / "results.json")
    plots = _plot(results, folder)
    path = folder / "README.md"
    text = path.read_text() if path.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{markdown(results, plots)}\n{END}{after}")


def markdown(results: Results, plots: Sequence[str] = ()) -> str:
    """Return the report."""
    executors = _executors(results)
    compared = [executor for executor in executors if executor != REFERENCE]
    head = ["workload", "figure", "bar", *executors, *(f"{executor}, x" for executor in compared)]
    rows = [head, ["---"] * len(head)]
    for workload in WORKLOADS:
        what = workload.what.format(**asdict(results.sizes))
        for figure in _figures(results, workload):
            name = f"{figure.what}, {figure.unit}" if figure.unit else figure.what
            cells = [_cell(results, workload, executor, figure) for executor in executors]
            ratios = [_ratio(results, workload, executor, figure) for executor in compared]
            rows.append([what, name, figure.bar, *cells, *ratios])
            what = ""
    errors = [
        f"- {s.workload} under {s.executor}, round {s.round}: {s.error}" for s in results.samples if s.error is not None
    ]
    loads = [s.load_before for s in results.samples]
    dates = sorted(sample.at for sample in results.samples)
    versions = ", ".join(dict.fromkeys(sample.version for sample in results.samples))
    parts = [
        _EXPLANATION,
        table(rows),
        *(["**Failed:**\n\n" + "\n".join(errors)] if errors else []),
        *(f"![{plot.removesuffix('.svg')}]({plot})" for plot in plots),
        "The machine:\n\n" + table([["", ""], ["---", "---"], *map(list, results.machine.items())]),
        f"AirExecutor {versions}, from {dates[0]} to {dates[-1]}; load average before a workload: {_spread(loads)}.",
        "Settings that are not Airflow's defaults, the same for all:\n\n```\n"
        + "\n".join(f"{name}={value}" for name, value in results.settings.items())
        + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _executors(results: Results) -> list[str]:
    found = dict.fromkeys(sample.executor for sample in sorted(results.samples, key=lambda s: s.round))
    return sorted(found, key=lambda name: name != REFERENCE)


def _figures(results: Results, workload: Workload) -> list[Figure]:
    """Return the figures of a workload, if anybody has tried it."""
    return [f for f in workload.figures if any(s.workload == workload.name for s in results.samples)]


def _cell(results: Results, workload: Workload, executor: str, figure: Figure) -> str:
    values = list(results.values(workload.name, executor, figure.key).values())
    errors = sum(sample.error is not None for sample in results.of(workload.name, executor))
    return " ".join(([_spread(values)] if values else []) + ([f"{errors} failed"] if errors else [])) or "-"


def _ratio(results: Results, workload: Workload, executor: str, figure: Figure) -> str:
    ours = results.values(workload.name, executor, figure.key)
    theirs = results.values(workload.name, REFERENCE, figure.key)
    ratios = [ours[number] / theirs[number] for number in ours.keys() & theirs.keys() if theirs[number]]
    return _spread(ratios) if ratios else "-"


def _spread(values: Sequence[float]) -> str:
    middle = _number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    """Return a number with three significant digits, a whole one with all of them."""
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plotter() -> Any:
    """Return matplotlib's ``pyplot``, set up so that the same figures give the same file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "air-executor"
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write a plot to a file, and let go of it."""
    figure.savefig(path, metadata={"Date": None})
    plotter().close(figure)


def _plot(results: Results, folder: Path) -> list[str]:
    """Draw what there are figures for, and return the names of the files."""
    pyplot = plotter()
    drawn = []
    for file, title, unit, labels in _PLOTS:
        bars = {executor: _bars(results, executor, labels) for executor in _executors(results)}
        bars = {executor: values for executor, values in bars.items() if any(values)}
        if not bars:
            continue
        figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
        width = 0.8 / len(bars)
        for number, (executor, values) in enumerate(bars.items()):
            at = [place + (number - (len(bars) - 1) / 2) * width for place in range(len(labels))]
            middles = [statistics.median(v) if v else 0.0 for v in values]
            low = [middle - min(v, default=0.0) for middle, v in zip(middles, values, strict=True)]
            high = [max(v, default=0.0) - middle for middle, v in zip(middles, values, strict=True)]
            axes.bar(at, middles, width, yerr=(low, high), capsize=3, label=executor)
        axes.set_xticks(range(len(labels)), list(labels.values()))
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.legend()
        save(figure, folder / file)
        drawn.append(file)
    return drawn


def _bars(results: Results, executor: str, labels: Mapping[tuple[str, str], str]) -> list[list[float]]:
    return [list(results.values(workload, executor, key).values()) for workload, key in labels]
