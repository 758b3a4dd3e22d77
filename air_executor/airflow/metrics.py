"""What an executor tells Airflow's metrics (StatsD, OpenTelemetry): ``METRICS`` is the list of them.

Airflow itself emits ``executor.open_slots``, ``executor.queued_tasks`` and ``executor.running_tasks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from air_executor.airflow.compat.stats import stats
from air_executor.runs.backend import LauncherCounts
from air_executor.runs.record import UNWANTED, RunRecord, RunState

PREFIX = "air_executor."


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    kind: str
    """``counter``, ``gauge`` or ``timer``; a timer's values are milliseconds."""
    help: str
    tags: tuple[str, ...] = ()
    """Each has few values."""


METRICS = (
    Metric(
        "run_ended", "counter", "Runs that have ended, with the state of the record and the cause", ("state", "cause")
    ),
    Metric("start_latency", "timer", "From the order of a run to the beginning of its task"),
    Metric("run_duration", "timer", "From the beginning of a task to the end of its run", ("state",)),
    Metric("reconcile_duration", "timer", "How long a pass that reconciles the runs with the database took"),
    Metric("adopted", "counter", "Runs taken over from another scheduler"),
    Metric("live_runs", "gauge", "Runs that this executor follows"),
    Metric(
        "launchers",
        "gauge",
        "Launchers that it is connected to, former ones that still have runs included; of this machine only",
    ),
    Metric("launcher_generations", "gauge", "Launchers that got its orders, one after the other, since its start"),
    Metric("spare_deaths", "gauge", "Processes forked ahead that have died before their orders came, since its start"),
    Metric("waiting_for_gpus", "gauge", "Workloads that wait for GPUs"),
    Metric("waiting_for_room", "gauge", "Tasks that wait for memory or CPUs of the machine's budget"),
)

#: How a reason begins, and the cause that it stands for.
_CAUSES = {
    "memory limit": "memory limit",
    "CPU time limit": "cpu time limit",
    "wall time limit": "wall time limit",
    "stopped": "stopped",
    "this host has reached neither": "isolation",
}


#: All causes.
CAUSES = ("success", "failure", "signal", *_CAUSES.values(), "lost", "unwanted")


def cause_of(record: RunRecord) -> str:
    """Return why a run ended as it did, as one of a few words."""
    if record.outcome == UNWANTED:
        return "unwanted"
    if record.state is RunState.SUCCEEDED:
        return "success"
    if record.state is RunState.LOST:
        return "lost"
    known = (cause for beginning, cause in _CAUSES.items() if (record.reason or "").startswith(beginning))
    return next(known, "signal" if record.signal else "failure")


def run_ended(record: RunRecord) -> None:
    """Count an end, and tell how long it took to start and to run."""
    stats.incr(PREFIX + "run_ended", tags={"state": record.state.value, "cause": cause_of(record)})
    queued, begun, ended = map(_moment, (record.queued_at, record.running_at, record.ended_at))
    if queued is not None and begun is not None:
        stats.timing(PREFIX + "start_latency", max(begun - queued, timedelta()))
    if begun is not None and ended is not None:
        stats.timing(PREFIX + "run_duration", max(ended - begun, timedelta()), tags={"state": record.state.value})


def adopted(count: int) -> None:
    """Count runs that were taken over."""
    if count:
        stats.incr(PREFIX + "adopted", count)


def reconciled(took_s: float) -> None:
    """Tell how long a pass took."""
    stats.timing(PREFIX + "reconcile_duration", timedelta(seconds=took_s))


def live(runs: int, waiting_for_gpus: int, waiting_for_room: int, launchers: LauncherCounts | None) -> None:
    """Tell what is in hand."""
    stats.gauge(PREFIX + "live_runs", runs)
    stats.gauge(PREFIX + "waiting_for_gpus", waiting_for_gpus)
    stats.gauge(PREFIX + "waiting_for_room", waiting_for_room)
    if launchers is not None:
        stats.gauge(PREFIX + "launchers", launchers.live)
        stats.gauge(PREFIX + "launcher_generations", launchers.generations)
        stats.gauge(PREFIX + "spare_deaths", launchers.spare_deaths)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
