"""Running a DAG from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from air_executor.pocket.request import Request
from air_executor.pocket.result import DagResult
from air_executor.pocket.run import Event, run


def dag_run(
    target: str | os.PathLike[str],
    dag_id: str | None = None,
    *,
    conf: Mapping[str, Any] | None = None,
    logical_date: datetime | str | None = None,
    run_id: str | None = None,
    tasks: Sequence[str] = (),
    parallelism: int = 32,
    connections: str | os.PathLike[str] | None = None,
    variables: str | os.PathLike[str] | None = None,
    pools: str | os.PathLike[str] | None = None,
    env_file: str | os.PathLike[str] | None = None,
    config_from: Sequence[str] = (),
    keep: bool = False,
    restart: bool = True,
    state_dir: str | os.PathLike[str] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> DagResult:
    """Run a DAG to its end in an Airflow of its own, and return what became of it. A failed run raises nothing.

    Airflow is not imported into this process, and nothing of an Airflow that is set up here is used.

    :param target: a file, a folder, or ``package.module:dag``.
    :param dag_id: which DAG, if there are several.
    :param conf: the run's configuration; it is checked against the DAG's params.
    :param logical_date: now, unless another is given; text is ISO 8601.
    :param run_id: the run's id; Airflow makes one if none is given.
    :param tasks: patterns of task ids, like a shell's: only these run, and those before them.
    :param parallelism: how many tasks run at a time.
    :param connections: a file as for ``airflow connections import``.
    :param variables: a file as for ``airflow variables import``.
    :param pools: a file as for ``airflow pools import``.
    :param env_file: variables for the environment.
    :param config_from: files as ``airflow.cfg``, or ``env`` for the ``AIRFLOW__...`` variables of this process.
    :param keep: leave the run's database and settings in its folder.
    :param restart: begin anew what was interrupted; otherwise go on with it.
    :param state_dir: where the run's folder is made, in ``dags``; where the command line makes it, if not given.
    :param on_event: called with all that happens.
    :raises DagError: the DAG can't be imported, or not be run so.
    :raises RunFailedError: the run's Airflow did not last.
    """
    date = logical_date.isoformat() if isinstance(logical_date, datetime) else logical_date
    request = Request(
        target=os.fspath(target),
        dag_id=dag_id,
        conf=dict(conf or {}),
        run_id=run_id,
        logical_date=date,
        tasks=tuple(tasks),
        parallelism=parallelism,
        connections=_path(connections),
        variables=_path(variables),
        pools=_path(pools),
        env_file=_path(env_file),
        config_from=tuple(config_from),
        keep=keep,
    )
    return DagResult.of(run(request, on_event or _ignore, restart=restart, state_dir=state_dir))


def _ignore(_: Event) -> None:
    pass


def _path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)
