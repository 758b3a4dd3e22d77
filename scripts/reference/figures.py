"""The table of figures in the README: some rows of docs/benchmarks/README.md, so that they stand in one place only."""

from __future__ import annotations

import re
from dataclasses import dataclass

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

#: The columns of the benchmark's table that are shown.
EXECUTORS = ("LocalExecutor", "CeleryExecutor", "AirExecutor")


@dataclass(frozen=True)
class Figure:
    """One row of the README, and where its figures are."""

    title: str
    workload: str
    """How the row's workload begins in the benchmark's table."""
    figure: str
    """How its figure begins."""


FIGURES = (
    Figure("one task on an idle machine: queued → started, ms", "one task on an idle machine", "queued → started, p50"),
    Figure("mapped no-ops, tasks/s", "200 mapped no-ops", "throughput"),
    Figure("CPU of all of Airflow per no-op, s", "200 mapped no-ops", "CPU per task"),
    Figure("chain of 20 no-ops, s", "chain of 20", "duration"),
    Figure("tasks that `import pandas`, tasks/s", "100 mapped tasks", "throughput"),
    Figure("idle after work: memory for running tasks, MB", "32 tasks", "after work, idle: PSS beyond"),
    Figure("memory per running task, MB", "32 tasks", "PSS per running task"),
)


def with_figures(readme: str, benchmarks: str) -> str:
    """Return the README with the figures of the benchmarks' page.

    :raises ValueError: a figure is not there.
    """
    rows = _rows(benchmarks)
    lines = [("", *EXECUTORS), ("---", *("---:" for _ in EXECUTORS))]
    for each in FIGURES:
        found = [row for row in rows if row["workload"].startswith(each.workload)]
        found = [row for row in found if row["figure"].startswith(each.figure)]
        if len(found) != 1:
            raise ValueError(
                f"docs/benchmarks/README.md has {len(found)} rows of the workload {each.workload!r} with the figure "
                f"{each.figure!r}; change FIGURES in scripts/reference/figures.py"
            )
        lines.append((each.title, *(_median(found[0][executor]) for executor in EXECUTORS)))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _median(cell: str) -> str:
    return cell.partition(" (")[0]


def _rows(page: str) -> list[dict[str, str]]:
    """Return the rows of the table of all workloads. A row without a workload is of the one above it."""
    table = re.search(r"^\| workload \|.*?(?=\n\n)", page, re.DOTALL | re.MULTILINE)
    if table is None:
        raise ValueError("docs/benchmarks/README.md has no table of workloads")
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines())
    rows: list[dict[str, str]] = []
    for cells in lines:
        row = dict(zip(head, cells, strict=True))
        row["workload"] = row["workload"] or rows[-1]["workload"]
        rows.append(row)
    return rows
