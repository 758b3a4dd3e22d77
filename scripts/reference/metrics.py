"""The page of all metrics."""

from __future__ import annotations

from markdown import page, table

from air_executor.airflow import metrics as executor
from air_executor.observe import metrics as state


def metrics() -> str:
    """Return the page of all metrics."""
    return page(
        "Metrics",
        "## For Prometheus",
        "`air-executor metrics` prints what is in the state directory now: runs, launchers, and jobs of the standalone "
        "engine. `air-executor metrics --listen 9400` serves it at `http://127.0.0.1:9400/metrics`; run it as the user "
        "that AirExecutor runs as, once for each state directory. All are gauges. A dashboard for Grafana and alert "
        "rules are in `examples/monitoring`.",
        table(
            ("metric", "labels", "meaning"),
            [(f"`{state.PREFIX}{each.name}`", _names(each.labels), each.help) for each in state.METRICS],
        ),
        "## Through Airflow",
        "The executor counts what happens in its scheduler through Airflow's own metrics: StatsD or OpenTelemetry, as "
        "`[metrics]` in `airflow.cfg` says.",
        table(
            ("metric", "type", "tags", "meaning"),
            [(f"`{executor.PREFIX}{each.name}`", each.kind, _names(each.tags), each.help) for each in executor.METRICS],
        ),
        f"`cause` is one of {', '.join(executor.CAUSES)}.",
    )


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
