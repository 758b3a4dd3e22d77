"""The commands that show what tasks use, and which limits to set: usage and advise."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rich.text import Text

from air_executor.cli import select, views, where
from air_executor.cli.listing import Listing, say_where, show
from air_executor.cli.table import EXIT_OK, JSON, Command, print_json
from air_executor.errors import AirExecutorError
from air_executor.machine.sizes import mebibytes
from air_executor.observe.advice import Advice, advise
from air_executor.runs import usage
from air_executor.runs.limits import ENOUGH_RUNS
from air_executor.runs.record import RunRecord
from air_executor.runs.usage import Point

#: Size of a plot, in characters.
_WIDTH, _HEIGHT = 64, 8

_BARS = " ▁▂▃▄▅▆▇█"


def _usage(args: argparse.Namespace) -> int:
    runs = where.all_runs()
    record = runs.settled(select.one(runs, args))
    points = usage.read(runs.store_of(record.id), record.id)
    if args.json:
        print_json({"run": record.id, "limits": record.limits, "points": [dataclasses.asdict(each) for each in points]})
        return EXIT_OK
    if not points:
        there = f"; ask on its host, {record.host}" if runs.is_elsewhere(record.id) and record.host else ""
        raise AirExecutorError(
            f"there are no measurements of run {record.id} ({record.label}) here: only tasks that last longer than a "
            f"second are measured{there}"
        )
    show(*_shown(record, points))
    return EXIT_OK


def _shown(record: RunRecord, points: Sequence[Point]) -> list[Text]:
    limit = record.limits.get("memory")
    limited = f", limit {mebibytes(limit)}" if isinstance(limit, int) else ""
    peak = max(point.memory_bytes for point in points)
    last = points[-1]
    parts = [Text(f"{record.label}, {record.state.value}, run {record.id}", style="bold")]
    title = (
        f"memory: {mebibytes(peak)} at most, {mebibytes(usage.memory_percentile(points, 0.95))} for 95 % of the time"
    )
    parts.append(Text(title + limited))
    parts += _plot(points, lambda point: point.memory_bytes, mebibytes)
    cpus = _cpus(points)
    parts.append(Text(f"CPU: {last.cpu_s:.1f} s, {last.cpu_s / max(last.at_s, 0.1):.2f} CPUs on average"))
    parts += _plot(points, lambda point: cpus[point.at_s], lambda value: f"{value:.1f}")
    parts.append(Text(f"processes: {max(point.processes for point in points)} at most"))
    disk = [point for point in points if point.read_bytes is not None and point.written_bytes is not None]
    if disk:
        read, written = disk[-1].read_bytes or 0, disk[-1].written_bytes or 0
        parts.append(Text(f"disk: {mebibytes(read)} read, {mebibytes(written)} written"))
    if gpu := max((point.gpu_memory_bytes or 0 for point in points), default=0):
        parts.append(Text(f"memory of GPUs: {mebibytes(gpu)} at most"))
    return parts


def _cpus(points: Sequence[Point]) -> dict[float, float]:
    """Return how many CPUs were busy in each stretch, by its end."""
    found, before_s = {}, 0.0
    for point in points:
        found[point.at_s] = max(0.0, point.cpu_s - before_s) / max(point.lasts_s, 0.01)
        before_s = point.cpu_s
    return found


def _plot(points: Sequence[Point], value: Callable[[Point], float], label: Callable[[Any], str]) -> list[Text]:
    """Return columns of the greatest values over time, with the scale at their left and the time below."""
    end_s = points[-1].at_s or 0.01
    columns = [0.0] * _WIDTH
    for point in points:
        begin = int((point.at_s - point.lasts_s) / end_s * _WIDTH)
        for column in range(max(0, begin), min(_WIDTH, max(begin + 1, int(point.at_s / end_s * _WIDTH)))):
            columns[column] = max(columns[column], value(point))
    top = max(columns) or 1.0
    labels = {_HEIGHT - 1: label(top), 0: label(0)}
    margin = max(map(len, labels.values()))
    rows = []
    for row in reversed(range(_HEIGHT)):
        filled = (min(8, max(0, round((each / top * _HEIGHT - row) * 8))) for each in columns)
        rows.append(Text(f"{labels.get(row, ''):>{margin}} │" + "".join(_BARS[eighths] for eighths in filled)))
    rows.append(Text(f"{'':>{margin}} └" + "─" * _WIDTH))
    rows.append(Text(f"{'':>{margin}}  0{views.duration(end_s):>{_WIDTH - 1}}"))
    return rows


def _advise(args: argparse.Namespace) -> int:
    runs = where.all_runs()
    found = advise(record for record in runs.records() if select.is_wanted(record, args))
    if args.json:
        print_json([dataclasses.asdict(each) for each in found])
        return EXIT_OK
    say_where(f"memory, from the runs below {runs.here.root} that lasted longer than a second")
    if not found:
        show(Text("no measured runs"))
        return EXIT_OK
    columns = ("TASK", "RUNS", "P50", "P95", "MAX", "LIMIT", "ADVISED")
    shown = Listing(*columns, right=columns[1:])
    for each in found:
        shown.add_row(*_row(each))
    show(shown)
    if any(each.advised_bytes is None for each in found):
        show(Text(f"a limit is advised from {ENOUGH_RUNS} measured runs on"))
    return EXIT_OK


def _row(advice: Advice) -> list[str]:
    least = "≥ " if advice.is_at_least else ""
    limit, advised = advice.limit_bytes, advice.advised_bytes
    return [
        advice.task,
        str(advice.runs),
        mebibytes(advice.p50_bytes),
        mebibytes(advice.p95_bytes),
        least + mebibytes(advice.max_bytes),
        mebibytes(limit) if limit else "-",
        least + mebibytes(advised) if advised else "-",
    ]


COMMANDS: tuple[Command, ...] = (
    Command(
        "usage",
        "plot what a run used over time: memory, CPU; with --json all that was measured",
        _usage,
        (select.RUN, *select.ARGUMENTS, JSON),
    ),
    Command(
        "advise",
        "show how much memory tasks have held, and which limits to set",
        _advise,
        (*select.FILTERS, JSON),
    ),
)
