"""The DAG that a run is of: read from its file, checked, and chosen."""

from __future__ import annotations

import fnmatch
import functools
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from air_executor.airflow.compat import pocketing
from air_executor.airflow.pocket.telling import tell
from air_executor.pocket.request import DagError, Request
from air_executor.pocket.settings import BUNDLE

if TYPE_CHECKING:
    from airflow.sdk import DAG


def read(request: Request) -> tuple[Any, DAG]:
    """Return the bag of the DAGs that a request leads to, and the one that it is for.

    :raises DagError: there is none, or more than one, or it can't be imported.
    """
    source = request.source
    path, bundle = Path(source.path), Path(source.bundle)
    sys.path.append(source.bundle)  # as Airflow has it
    bag = pocketing.read_dags(path, bundle, BUNDLE)
    wanted = request.dag_id or _named(source.variable, path, bag.dags)
    if wanted is None and len(bag.dags) == 1 and not bag.import_errors:
        wanted = next(iter(bag.dags))
    if wanted is None or wanted not in bag.dags:
        raise DagError(_complaint(wanted, path, bag))
    if request.tasks:
        bag.dags[wanted] = _part(bag.dags[wanted], request.tasks)
    for dag_id, each in list(bag.dags.items()):
        try:
            pocketing.check_serializable(each)
        except Exception as error:  # of many kinds
            if dag_id == wanted:
                raise DagError(f"DAG {dag_id} in {each.fileloc} can't be saved: {error}") from error
            del bag.dags[dag_id]
    return bag, bag.dags[wanted]


def _named(name: str | None, path: Path, dags: dict[str, DAG]) -> str | None:
    """Return the id of the DAG that ``package.module:name`` means."""
    if name is None or name in dags:
        return name
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path) and (found := getattr(module, name, None)) is not None:
            dag_id = getattr(found, "dag_id", None)
            if dag_id in dags:
                return str(dag_id)
            if callable(found):
                raise DagError(f"{name} in {path} is a function, which makes a DAG only when the module calls it")
    raise DagError(f"{path} has no DAG {name!r}: there {_are(dags)}")


def _complaint(wanted: str | None, path: Path, bag: Any) -> str:
    if bag.import_errors:
        problems = "\n".join(
            f"{file} can't be imported:\n{error.rstrip()}" for file, error in bag.import_errors.items()
        )
        return f"{problems}\nDAGs that can be: {', '.join(bag.dags)}" if bag.dags else problems
    if not bag.dags:
        return f"{path} has no DAG: none was made when it was imported"
    if wanted is not None:
        return f"{path} has no DAG {wanted!r}: there {_are(bag.dags)}"
    return f"{path} has {len(bag.dags)} DAGs; say which one to run: {', '.join(sorted(bag.dags))}"


def _are(names: Iterable[str]) -> str:
    found = sorted(names)
    return f"{'is' if len(found) == 1 else 'are'} {', '.join(found)}" if found else "is none"


def _part(dag: DAG, patterns: tuple[str, ...]) -> DAG:
    """Return a DAG of some tasks only, with those whose results they need.

    :raises DagError: a pattern fits no task.
    """
    wanted: set[str] = set()
    for pattern in patterns:
        if not (found := set(fnmatch.filter(dag.task_ids, pattern))):
            raise DagError(f"DAG {dag.dag_id} has no task {pattern!r}: its tasks are {', '.join(dag.task_ids)}")
        wanted |= found
    part: DAG = dag.partial_subset(sorted(wanted), include_upstream=True)
    return part


def drop_unfit(bag: Any, dag: DAG, pools: Mapping[str, int]) -> None:
    """Check the DAG, and take others out of the bag that Airflow would wait for without end if they were triggered.

    :raises DagError: the DAG itself is such.
    """
    check(dag, pools)
    for dag_id, each in list(bag.dags.items()):
        try:
            check(each, pools)
        except DagError as error:
            del bag.dags[dag_id]
            tell("warning", warning=f"DAG {dag_id} can't be triggered: {error}")


def check(dag: DAG, pools: Mapping[str, int]) -> None:
    """Check what Airflow would wait for without end.

    :param pools: their slots, by name; a negative number: without limit.
    :raises DagError: something is not there, or too little of it.
    """
    for task in dag.tasks:
        slots = pools.get(task.pool)
        if slots is None:
            there = ", ".join(sorted(pools))
            raise DagError(f"task {task.task_id} wants pool {task.pool!r}, and there are {there}: give --pools FILE")
        if 0 <= slots < task.pool_slots:
            raise DagError(
                f"task {task.task_id} wants {task.pool_slots} slots of pool {task.pool!r}, which has {slots}"
            )


@functools.cache
def order(dag: DAG) -> tuple[str, ...]:
    """Return the ids of a DAG's tasks, each after those before it."""
    return tuple(task.task_id for task in dag.topological_sort())
