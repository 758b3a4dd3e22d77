"""Tasks that queue tasks, wave after wave."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, get_current_context, task

from air_executor.follow_up import follow_up
from air_executor.jobs import queue_tasks


@task
def discover(count: int, depth: int = 0, fails: bool = False) -> None:
    """Queue some, twice to be sure that nothing of the first call is lost."""
    half = count // 2
    queue_tasks([{"name": str(number), "depth": depth} for number in range(half)])
    queue_tasks([{"name": str(number), "depth": depth} for number in range(half, count)])
    if fails and get_current_context()["ti"].try_number == 1:
        raise RuntimeError("after it has queued")


@task
def dig(name: str, depth: int) -> str:
    """Queue two more, if it is not deep enough."""
    if depth:
        queue_tasks([{"name": f"{name}.{number}", "depth": depth - 1} for number in range(2)])
    return name


@task
def report(found: list[str]) -> list[str]:
    """Return what all waves have found."""
    return sorted(found)


def _dag(dag_id: str, first: Any, **options: Any) -> None:
    @dag(dag_id=dag_id, schedule=None, catchup=False)
    def made() -> None:
        report(follow_up(first(), dig, **options))

    made()


_dag("follow_up_waves", lambda: discover(3, 2), waves=5)
_dag("follow_up_nothing", lambda: discover(0), waves=3)
_dag("follow_up_left", lambda: discover(2, 1), waves=1)
_dag("follow_up_continues", lambda: discover(2, 2), waves=1, continue_in_new_run=True)
_dag("follow_up_retried", lambda: discover.override(retries=1, retry_delay=0)(2, 0, fails=True), waves=2)
_dag("follow_up_mapped", lambda: discover.partial(depth=1).expand(count=[1, 2]), waves=3)
