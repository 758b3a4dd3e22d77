"""All commands: the table that both argparse and Airflow's command line are made from."""

from __future__ import annotations

from air_executor.cli import (
    adding,
    cleaning,
    control,
    dag,
    helping,
    jobs,
    logs,
    making,
    manager,
    metrics,
    running,
    runs,
    schema,
    service,
    temporal,
    trust,
    ui,
    usage,
    worker,
)
from air_executor.cli.table import Command

COMMANDS: tuple[Command, ...] = (
    *runs.COMMANDS,
    *logs.COMMANDS,
    *usage.COMMANDS,
    *making.COMMANDS,
    *running.COMMANDS,
    *adding.COMMANDS,
    *jobs.COMMANDS,
    *control.COMMANDS,
    *trust.COMMANDS,
    *dag.COMMANDS,
    *cleaning.COMMANDS,
    *schema.COMMANDS,
    *manager.COMMANDS,
    *service.COMMANDS,
    *metrics.COMMANDS,
    *ui.COMMANDS,
    *worker.COMMANDS,
    *temporal.COMMANDS,
    helping.command(lambda: COMMANDS),
)
