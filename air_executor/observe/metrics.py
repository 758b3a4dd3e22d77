"""Metrics in Prometheus' text format: what is in a state directory now. ``METRICS`` is the list of them.

They are gauges, read anew each time: no process has to live for them. What happens in a scheduler (starts, ends) is
counted there, through Airflow's own metrics: see :mod:`air_executor.airflow.metrics`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import psutil

from air_executor.observe.budget import look_if_possible
from air_executor.observe.everywhere import AllRuns
from air_executor.observe.jobs import summaries
from air_executor.observe.query import launchers, observe_runs, waiting_for_gpus
from air_executor.runs.record import RunState

PREFIX = "air_executor_"

#: The media type of the text.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    """Each has few values: no name that a user gives is one."""


METRICS = (
    Metric("up", "1: the state directory can be read"),
    Metric("live_runs", "Runs that have not ended", ("kind", "state")),
    Metric("live_runs_elsewhere", "Live runs that have started on other hosts"),
    Metric("live_runs_memory_bytes", "Proportional set size of all live runs of this machine"),
    Metric("oldest_queued_seconds", "For how long the oldest run that has not begun has waited"),
    Metric("runs_on_record", "All runs whose records are kept, of this machine"),
    Metric("ends_untold", "Ended runs whose end has not been acknowledged"),
    Metric("waiting_for_gpus", "Tasks that wait for GPUs"),
    Metric("waiting_for_room", "Runs that wait for memory or CPUs of the machine's budget"),
    Metric("budget_memory_bytes", "What all runs of this machine may have together; 0 without a budget"),
    Metric("budget_memory_taken_bytes", "What they take of it"),
    Metric("launchers", "Launchers that answer"),
    Metric("launcher_runners", "Runners of all launchers"),
    Metric("launchers_superseded", "Of these, former generations, which end with their last runs"),
    Metric("launcher_spare_deaths", "Processes that they had forked ahead and that died before their orders came"),
    Metric(
        "launcher_troubles", "Problems that launchers report, such as spares that die at birth; see air-executor status"
    ),
    Metric("launcher_oldest_seconds", "Age of the oldest launcher"),
    Metric("jobs", "Jobs of the standalone engine that have not ended", ("state",)),
    Metric("jobs_unattended", "Of these, those on which no manager works"),
    Metric("memory_available_bytes", "Memory that the machine can give to new processes"),
    Metric("scrape_seconds", "How long it took to find this out"),
)


@dataclass(frozen=True)
class Sample:
    """A value of a metric."""

    name: str
    labels: dict[str, str]
    value: float


def text(runs: AllRuns) -> str:
    """Return all metrics of a state directory in Prometheus' format.

    :raises StateDirError: it can't be read.
    """
    found = samples(runs)
    return "".join(
        line + "\n"
        for metric in METRICS
        for line in _lines(metric, [each for each in found if each.name == metric.name])
    )


def samples(runs: AllRuns) -> list[Sample]:
    """Return all metrics of a state directory, in the order of their list.

    :raises StateDirError: it can't be read.
    """
    began_s = time.monotonic()
    values = {**_of_runs(runs), **_of_budget(), **_of_launchers(runs), **_of_jobs(runs)}
    values["up"] = {(): 1.0}
    values["memory_available_bytes"] = {(): float(psutil.virtual_memory().available)}
    values["scrape_seconds"] = {(): time.monotonic() - began_s}
    return [
        Sample(metric.name, dict(zip(metric.labels, key, strict=True)), value)
        for metric in METRICS
        for key, value in values[metric.name].items()
    ]


def _of_runs(runs: AllRuns) -> dict[str, dict[tuple[str, ...], float]]:
    live = observe_runs(runs)
    records = [run.record for run in live]
    queued = [record.queued_at for record in records if record.state is RunState.QUEUED and record.queued_at]
    waited = (datetime.now(tz=timezone.utc) - datetime.fromisoformat(min(queued))).total_seconds() if queued else 0.0
    elsewhere = sum(record.state is not RunState.QUEUED and runs.is_elsewhere(record.id) for record in records)
    return {
        "live_runs": _counted((record.identity.kind, record.state.value) for record in records),
        "live_runs_elsewhere": {(): float(elsewhere)},
        "live_runs_memory_bytes": {(): float(sum(run.memory_bytes or 0 for run in live))},
        "oldest_queued_seconds": {(): waited},
        "runs_on_record": {(): float(len(runs.here.ids()))},
        "ends_untold": {
            (): float(sum(record.state.is_end and not record.reported_at for record in runs.open_records()))
        },
        "waiting_for_gpus": {(): float(len(waiting_for_gpus(runs.here)))},
    }


def _of_budget() -> dict[str, dict[tuple[str, ...], float]]:
    room = look_if_possible()
    return {
        "waiting_for_room": {(): float(len(room.waiting) if room else 0)},
        "budget_memory_bytes": {(): float(room.budget.memory or 0) if room else 0.0},
        "budget_memory_taken_bytes": {(): float(room.taken.memory) if room else 0.0},
    }


def _of_launchers(runs: AllRuns) -> dict[str, dict[tuple[str, ...], float]]:
    found = launchers(runs.here)
    return {
        "launchers": {(): float(len(found))},
        "launcher_runners": {(): float(sum(each["runners"] for each in found))},
        "launchers_superseded": {(): float(sum(bool(each.get("superseded")) for each in found))},
        "launcher_spare_deaths": {(): float(sum(each.get("spare_deaths", 0) for each in found))},
        "launcher_troubles": {(): float(sum(len(each.get("troubles", ())) for each in found))},
        "launcher_oldest_seconds": {(): max((float(each["age_s"]) for each in found), default=0.0)},
    }


def _of_jobs(runs: AllRuns) -> dict[str, dict[tuple[str, ...], float]]:
    jobs = summaries(runs.here.root, ended=False)
    return {
        "jobs": _counted((job.state.value,) for job in jobs),
        "jobs_unattended": {(): float(sum(job.has_manager is False for job in jobs))},
    }


def _counted(keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    return {key: float(count) for key, count in sorted(Counter(keys).items())}


def _lines(metric: Metric, found: Iterable[Sample]) -> Iterator[str]:
    name = PREFIX + metric.name
    yield f"# HELP {name} {metric.help}"
    yield f"# TYPE {name} gauge"
    for each in found:
        labels = ",".join(f'{label}="{_escaped(part)}"' for label, part in each.labels.items())
        yield f"{name}{{{labels}}} {each.value:.15g}" if labels else f"{name} {each.value:.15g}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
