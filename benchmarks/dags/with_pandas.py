"""Mapped tasks in a file that imports pandas at its top, as many do."""

from __future__ import annotations

import os

import pandas as pd
from airflow.sdk import DAG, task


@task
def use(number: int) -> None:
    """Use what was imported."""
    assert int(pd.Series([number]).sum()) == number


# The first is not measured: an executor may learn from it.
for dag_id, tasks in (("pandas_warm_up", "BENCHMARK_PANDAS_WARM_UP"), ("pandas", "BENCHMARK_PANDAS")):
    with DAG(dag_id, schedule=None):
        use.expand(number=list(range(int(os.environ[tasks]))))
