"""Tasks that queue tasks, wave after wave."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, PokeReturnValue, dag, get_current_context, task

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


class DiscoverAndDefer(BaseOperator):
    """Queues one before it is deferred, and one after."""

    def execute(self, context: Any) -> None:
        queue_tasks([{"name": "0", "depth": 0}])
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="resume")

    def resume(self, context: Any, event: Any = None) -> None:
        queue_tasks([{"name": "1", "depth": 0}])


@task.sensor(mode="reschedule", poke_interval=1, timeout=120)
def discover_by_and_by() -> bool:
    """Queue one at the first look and one at the second, and none at the third."""
    number = get_current_context()["task_reschedule_count"]
    if number < 2:
        queue_tasks([{"name": str(number), "depth": 1}])
    return number >= 2


@task.sensor(mode="reschedule", poke_interval=1, timeout=120)
def dig_by_and_by(name: str, depth: int) -> PokeReturnValue:
    """Queue one more at the first look, if it is not deep enough, and none at the second."""
    number = get_current_context()["task_reschedule_count"]
    if depth and not number:
        queue_tasks([{"name": f"{name}.0", "depth": depth - 1}])
    return PokeReturnValue(is_done=bool(number), xcom_value=name)


@task
def report(found: list[str]) -> list[str]:
    """Return what all waves have found."""
    return sorted(found)


def _dag(dag_id: str, first: Any, then: Any = dig, **options: Any) -> None:
    @dag(dag_id=dag_id, schedule=None, catchup=False)
    def made() -> None:
        report(follow_up(first(), then, **options))

    made()


_dag("follow_up_waves", lambda: discover(3, 2), waves=5)
_dag("follow_up_nothing", lambda: discover(0), waves=3)
_dag("follow_up_left", lambda: discover(2, 1), waves=1)
_dag("follow_up_continues", lambda: discover(2, 2), waves=1, continue_in_new_run=True)
_dag("follow_up_retried", lambda: discover.override(retries=1, retry_delay=0)(2, 0, fails=True), waves=2)
_dag("follow_up_mapped", lambda: discover.partial(depth=1).expand(count=[1, 2]), waves=3)
_dag("follow_up_deferred", lambda: DiscoverAndDefer(task_id="discover").output, waves=1)
_dag("follow_up_rescheduled", discover_by_and_by, dig_by_and_by, waves=2)
_dag("follow_up_too_many", lambda: discover(1100, 0), waves=1)
