"""The pytest fixture ``dag_run`` runs a DAG in an Airflow of its own, so that a test of a DAG is three lines.

For example::

def test_sales(dag_run):
    result = dag_run("dags/sales.py", conf={"day": "monday"})
    assert result.ok and result.xcom("count") == 3
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from air_executor.pocket.result import DagResult


@pytest.fixture
def dag_run(tmp_path: Path) -> Callable[..., DagResult]:
    """Return :func:`air_executor.dag_run`, with the run's folder below the test's own.

    Nothing of an Airflow that is set up for the tests, or imported by them, is used or changed.
    """
    from air_executor.pocket.api import dag_run

    return functools.partial(dag_run, state_dir=tmp_path / ".air-executor")
