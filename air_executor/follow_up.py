"""Work that a dag finds while it runs: what tasks queue becomes mapped task instances, wave after wave.

::

    @task
    def discover():
        queue_tasks([{"url": url} for url in find()])

    @task
    def fetch(url):
        queue_tasks([{"url": link} for link in links_of(url)])
        return size_of(url)

    report(follow_up(discover(), fetch, waves=5))

``queue_tasks`` leaves what it is given in an XCom of the task that calls it. Airflow clears those when it tries a task
again, and does not go on from a task that has failed; so a try that failed has queued nothing. Between two waves stands
a small task that collects what the one has queued, over which the next is mapped. No executor is needed for it but one
that Airflow has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import TaskGroup, get_current_context, task

from air_executor import compat
from air_executor.errors import JobError

#: XCom in which a task leaves what it has queued.
QUEUED = "air_executor_queued"

#: Where the configuration of a dag run that continues another one has what that has left, by the ids of its groups.
CONTINUED = "air_executor_follow_up"

#: So many items are named when some are left.
_NAMED = 5

#: What the running task has queued so far, by the id of its instance.
_queued: dict[str, list[dict[str, Any]]] = {}


def queue_in_dag(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Leave items for the next wave, in an XCom of the running task.

    :param items: keyword arguments of the task that follows, each for one instance of it.
    :return: the places of the items among all that the task has queued.
    :raises TypeError: an item is no mapping of names.
    """
    new = []
    for item in items:
        if not isinstance(item, Mapping) or not all(isinstance(name, str) for name in item):
            raise TypeError(f"what is queued must be the keyword arguments of the task that follows, not {item!r}")
        new.append(dict(item))
    instance = get_current_context()["ti"]
    queued = _queued.setdefault(f"{instance.id}/{instance.try_number}", [])
    queued += new
    instance.xcom_push(key=QUEUED, value=queued)
    return [str(place) for place in range(len(queued) - len(new), len(queued))]


def follow_up(
    first: Any,
    then: Callable[..., Any],
    *,
    waves: int = 3,
    group_id: str | None = None,
    continue_in_new_run: bool = False,
) -> Any:
    """Map ``then`` over what ``first`` queues, and over what its own instances queue, up to ``waves`` times.

    :param first: what a task returned that calls ``queue_tasks``; it may be mapped.
    :param then: a function with ``@task``. What was queued are its keyword arguments. It may queue more.
    :param waves: how often it may be mapped. Waves with nothing to do are skipped. When something is still queued
        after the last one, the run fails and says what.
    :param group_id: id of the task group that this makes; made of the name of ``then`` unless given.
    :param continue_in_new_run: begin another run of the dag with what is left, in place of failing. In it ``first``
        does not run, but what comes after it does.
    :return: a list of what all instances returned, wave after wave, for tasks downstream.
    :raises ValueError: ``waves`` is not at least 1.
    """
    if waves < 1:
        raise ValueError(f"waves must be at least 1, not {waves}")
    name = str(then.function.__name__)  # type: ignore[attr-defined]
    with TaskGroup(group_id=group_id or f"follow_up_{name}") as group:
        group_id = str(group.group_id)
        if continue_in_new_run:
            _begins(group_id) >> first
        queued: Any = _queued_first(first.operator.task_id, group_id)
        first >> queued
        results = []
        for wave in range(1, waves + 1):
            done = then.override(task_id=f"{name}_{wave}").expand_kwargs(queued)  # type: ignore[attr-defined]
            results.append(done)
            queued = _queued_later.override(task_id=f"queued_by_{wave}")(done.operator.task_id)
            done >> queued
        if continue_in_new_run:
            conf: Any = _rest(queued, group_id)
            TriggerDagRunOperator(task_id="continue", trigger_dag_id=group.dag.dag_id, conf=conf)
        else:
            _nothing_left(queued, waves) >> (results_task := _results(results))
            return results_task
        return _results(results)


def _continued(group_id: str) -> list[dict[str, Any]] | None:
    """Return what the run that this one continues has left for a group; ``None`` when it continues none."""
    run = get_current_context()["dag_run"]
    left = (run.conf or {}).get(CONTINUED, {}).get(group_id)
    return None if left is None else list(left)


def _pull(task_id: str) -> list[dict[str, Any]]:
    """Return what all instances of a task have queued."""
    found = get_current_context()["ti"].xcom_pull(task_ids=[task_id], key=QUEUED) or []
    return [item for items in found if items is not None for item in items]


@task.short_circuit(task_id="begins", ignore_downstream_trigger_rules=False)
def _begins(group_id: str) -> bool:
    """Let the run begin with its first task, unless it continues another."""
    return _continued(group_id) is None


@task(task_id="queued", trigger_rule="none_failed")
def _queued_first(task_id: str, group_id: str) -> list[dict[str, Any]]:
    """Collect what is to be done first."""
    continued = _continued(group_id)
    return _pull(task_id) if continued is None else continued


@task(trigger_rule="none_failed_min_one_success")
def _queued_later(task_id: str) -> list[dict[str, Any]]:
    """Collect what a wave has queued."""
    return _pull(task_id)


@task(task_id="nothing_left", trigger_rule="none_failed")
def _nothing_left(left: list[dict[str, Any]] | None, waves: int) -> None:
    """Fail if something is left."""
    if left:
        raise JobError(
            f"{_described(left)} still queued after {waves} waves. Let follow_up() make more of them (waves=…), or "
            "go on in another run (continue_in_new_run=True)."
        )


@task(task_id="rest", trigger_rule="none_failed")
def _rest(left: list[dict[str, Any]] | None, group_id: str) -> dict[str, Any]:
    """Return the configuration of the run that goes on with what is left."""
    if not left:
        raise compat.skip("nothing is left")
    print(f"{_described(left)} left for another run")
    conf = dict(get_current_context()["dag_run"].conf or {})
    return {**conf, CONTINUED: {group_id: left}}


def _described(left: Sequence[Mapping[str, Any]]) -> str:
    named = ", ".join(str(dict(item))[:100] for item in left[:_NAMED])
    return f"{len(left)} tasks ({named}{', …' if len(left) > _NAMED else ''}) are"


@task(task_id="results", trigger_rule="none_failed")
def _results(waves: list[Any]) -> list[Any]:
    """Return what all instances returned."""
    return [result for wave in waves if wave is not None for result in wave]
