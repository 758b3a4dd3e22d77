"""What a task process does before and after Airflow's own part."""

from __future__ import annotations

import sys
from collections.abc import Callable

from airflow.sdk.execution_time import supervisor as stock

from air_executor.airflow.compat.supervisor import leave_alerts_to_scheduler
from air_executor.airflow.supervision import current
from air_executor.machine import system

#: The process that forks the task process, which dies with it.
runner_pid = 0


def main() -> None:
    """Be a task process whose workload was known when it was forked."""
    system.die_with_parent(runner_pid)
    system.renew_random_state()
    if current.run is not None:
        current.run.begin_task()
    execute(current.run.note_imports if current.run is not None else lambda _: None)


def execute(note_imports: Callable[[int], None]) -> None:
    """Execute the task.

    :param note_imports: called at the end, with the number of modules that this process had at the start.
    """
    known = len(sys.modules)
    leave_alerts_to_scheduler()
    try:
        stock._subprocess_main()
    finally:
        note_imports(known)
