"""Work that a DAG finds while it runs: tasks queue items, which become mapped task instances, wave after wave.

::

    @task
    def discover():
        queue_tasks([{"url": url} for url in find()])

    @task
    def fetch(url):
        queue_tasks([{"url": link} for link in links_of(url)])
        return size_of(url)

    report(follow_up(discover(), fetch, waves=5))

``queue_tasks`` stores its items in an XCom of the task that calls it. Airflow clears XComs when it tries a task again,
and runs nothing after a task that has failed; so a try that failed has queued nothing. Between two waves, a small task
collects what the first one has queued, and the second one is mapped over that. It works with every executor.

Airflow also clears XComs when a task returns after a reschedule, in the same try. So items are stored with the
collecting task, too, and restored from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from airflow.configuration import conf
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import TaskGroup, get_current_context, task
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.execution_time.xcom import XCom

from air_executor.airflow.compat import dags
from air_executor.errors import JobError

#: XCom in which a task stores what it has queued.
QUEUED = "air_executor_queued"

#: XCom in which a collecting task stores, for the next wave, what is more than Airflow maps a task over.
LEFT = "air_executor_left"

#: Key in the ``conf`` of a DAG run that continues another one: the items that this one has left, by group id.
CONTINUED = "air_executor_follow_up"

#: How many items an error names when some are left.
_NAMED = 5

#: What the running task has queued so far, by try.
_queued: dict[str, list[dict[str, Any]]] = {}

#: The id of the task that collects it, by try.
_collectors: dict[str, str] = {}


def is_in_task() -> bool:
    """Return whether this process executes a task of a dag."""
    try:
        get_current_context()
    except RuntimeError:
        return False
    return True


def queue_in_dag(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Store items for the next wave, in an XCom of the running task.

    :param items: the keyword arguments of the task that follows, one mapping for each of its instances.
    :return: the indexes of the items among all that the task has queued.
    :raises TypeError: an item is no mapping of names.
    """
    new = []
    for item in items:
        if not isinstance(item, Mapping) or not all(isinstance(name, str) for name in item):
            raise TypeError(f"what is queued must be the keyword arguments of the task that follows, not {item!r}")
        new.append(dict(item))
    instance = get_current_context()["ti"]
    this = _try(instance)
    if this not in _queued:
        # After a deferral, another process continues. What the first one has queued is still there.
        before = instance.xcom_pull(task_ids=instance.task_id, key=QUEUED, map_indexes=instance.map_index)
        _queued[this] = list(before or [])
    queued = _queued[this]
    queued += new
    instance.xcom_push(key=QUEUED, value=queued)
    if this in _collectors:
        XCom.set(
            key=_note_of(instance),
            value={"try": this, "queued": queued},
            dag_id=instance.dag_id,
            run_id=instance.run_id,
            task_id=_collectors[this],
        )
    return [str(place) for place in range(len(queued) - len(new), len(queued))]


def _try(instance: Any) -> str:
    # Airflow gives a task instance another id for each try.
    return f"{instance.id}/{instance.try_number}"


def _note_of(instance: Any) -> str:
    """Return the key of the collecting task's XCom for what a task instance has queued."""
    return f"{QUEUED}.{instance.task_id}.{instance.map_index}"


def _note_collector(operator: Any, collector_id: str) -> None:
    """Have a task restore, when it starts, what its try has queued before, and know which task collects it."""

    def begin(context: Any) -> None:
        instance = context["ti"]
        this = _try(instance)
        _collectors[this] = collector_id
        if context.get("task_reschedule_count"):
            note = instance.xcom_pull(task_ids=collector_id, key=_note_of(instance), map_indexes=-1)
            if note and note["try"] == this:
                _queued[this] = note["queued"]
                instance.xcom_push(key=QUEUED, value=note["queued"])

    def both(context: Any) -> None:
        begin(context)
        if former is not None:
            former(context)

    if isinstance(operator, MappedOperator):
        former = operator.partial_kwargs.get("pre_execute")
        operator.partial_kwargs["pre_execute"] = both
    else:
        former = operator._pre_execute_hook
        operator._pre_execute_hook = both


def follow_up(
    first: Any,
    then: Callable[..., Any],
    *,
    waves: int = 3,
    group_id: str | None = None,
    continue_in_new_run: bool = False,
) -> Any:
    """Map ``then`` over what ``first`` queues, and over what its own instances queue, up to ``waves`` times.

    :param first: what calling a task returned that calls ``queue_tasks``; it may be mapped.
    :param then: a function with ``@task``. It gets an item as its keyword arguments, and may queue more.
    :param waves: how often it may be mapped. Waves without items are skipped. What exceeds the number that Airflow maps
        a task over (``[core] max_map_length``, 1024 unless set) waits for the next wave. When items are left after the
        last wave, or more than the remaining waves can take, the run fails and names some.
    :param group_id: the id of the task group that this makes; by default it has the name of ``then``.
    :param continue_in_new_run: do not fail then, but start another run of the DAG with what is left. In that run
        ``first`` is skipped, and what follows it runs.
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
        queued: Any = _queued_first(first.operator.task_id, group_id, waves, continue_in_new_run)
        first >> queued
        _note_collector(first.operator, queued.operator.task_id)
        results, collectors = [], [queued.operator.task_id]
        for wave in range(1, waves + 1):
            done = then.override(task_id=f"{name}_{wave}").expand_kwargs(queued)  # type: ignore[attr-defined]
            results.append(done)
            queued = _queued_later.override(task_id=f"queued_by_{wave}")(
                done.operator.task_id, collectors[-1], waves - wave, continue_in_new_run
            )
            done >> queued
            _note_collector(done.operator, queued.operator.task_id)
            collectors.append(queued.operator.task_id)
        if continue_in_new_run:
            conf_of_next: Any = _rest(queued, group_id, collectors)
            TriggerDagRunOperator(task_id="continue", trigger_dag_id=group.dag.dag_id, conf=conf_of_next)
        else:
            _nothing_left(queued, waves, collectors) >> (results_task := _results(results))
            return results_task
        return _results(results)


def _continued(group_id: str) -> list[dict[str, Any]] | None:
    """Return what the run that this one continues has left for a group; ``None``: it continues none."""
    run = get_current_context()["dag_run"]
    left = (run.conf or {}).get(CONTINUED, {}).get(group_id)
    return None if left is None else list(left)


def _pull(task_id: str) -> list[dict[str, Any]]:
    """Return what all instances of a task have queued."""
    found = get_current_context()["ti"].xcom_pull(task_ids=[task_id], key=QUEUED) or []
    return [item for items in found if items is not None for item in items]


@task.short_circuit(task_id="begins", ignore_downstream_trigger_rules=False)
def _begins(group_id: str) -> bool:
    """Skip the first task of a run that continues another."""
    return _continued(group_id) is None


def _pull_left(task_id: str) -> list[dict[str, Any]]:
    """Return what a collecting task has left for a later wave."""
    left = get_current_context()["ti"].xcom_pull(task_ids=task_id, key=LEFT, map_indexes=-1)
    return list(left or [])


def _for_next_wave(items: list[dict[str, Any]], waves: int, continues: bool) -> list[dict[str, Any]]:
    """Return the items of the next wave, and store the rest for the one after that.

    :param waves: how many are left.
    :param continues: whether another run takes what these leave.
    :raises JobError: there are more items than these waves can take.
    """
    limit = conf.getint("core", "max_map_length", fallback=1024)
    if not waves or len(items) <= limit:
        return items
    if len(items) > limit * waves and not continues:
        raise JobError(
            f"{_described(items)} queued, and Airflow maps a task over {limit} at most ([core] max_map_length): that "
            f"is {limit * waves} in the {waves} waves that there are still. Raise that limit, let follow_up() make "
            "more waves (waves=…), or go on in another run (continue_in_new_run=True)."
        )
    print(
        f"{len(items)} tasks are queued, and Airflow maps a task over {limit} at most ([core] max_map_length): the "
        f"other {len(items) - limit} wait for the wave after this one"
    )
    get_current_context()["ti"].xcom_push(key=LEFT, value=items[limit:])
    return items[:limit]


@task(task_id="queued", trigger_rule="none_failed")
def _queued_first(task_id: str, group_id: str, waves: int, continues: bool) -> list[dict[str, Any]]:
    """Collect the items of the first wave."""
    continued = _continued(group_id)
    return _for_next_wave(_pull(task_id) if continued is None else continued, waves, continues)


@task(trigger_rule="none_failed_min_one_success")
def _queued_later(task_id: str, before: str, waves: int, continues: bool) -> list[dict[str, Any]]:
    """Collect what was left before a wave, and what the wave has queued."""
    return _for_next_wave(_pull_left(before) + _pull(task_id), waves, continues)


def _not_collected(collectors: Sequence[str]) -> list[dict[str, Any]]:
    """Return what was left for a wave that was skipped, because all instances of the one before were skipped."""
    instance = get_current_context()["ti"]
    for one, following in itertools.pairwise(collectors):
        if (left := _pull_left(one)) and instance.xcom_pull(task_ids=following, map_indexes=-1) is None:
            return left
    return []


@task(task_id="nothing_left", trigger_rule="none_failed")
def _nothing_left(left: list[dict[str, Any]] | None, waves: int, collectors: list[str]) -> None:
    """Fail if something is left."""
    if left := left or _not_collected(collectors):
        raise JobError(
            f"{_described(left)} still queued after {waves} waves. Let follow_up() make more of them (waves=…), or "
            "go on in another run (continue_in_new_run=True)."
        )


@task(task_id="rest", trigger_rule="none_failed")
def _rest(left: list[dict[str, Any]] | None, group_id: str, collectors: list[str]) -> dict[str, Any]:
    """Return the configuration of the run that continues with what is left."""
    if not (left := left or _not_collected(collectors)):
        raise dags.skip("nothing is left")
    print(f"{_described(left)} left for another run")
    given = dict(get_current_context()["dag_run"].conf or {})
    return {**given, CONTINUED: {group_id: left}}


def _described(left: Sequence[Mapping[str, Any]]) -> str:
    named = ", ".join(str(dict(item))[:100] for item in left[:_NAMED])
    return f"{len(left)} tasks ({named}{', …' if len(left) > _NAMED else ''}) are"


@task(task_id="results", trigger_rule="none_failed")
def _results(waves: list[Any]) -> list[Any]:
    """Return what all instances returned."""
    return [result for wave in waves if wave is not None for result in wave]
