"""The example DAGs load without a warning and run to success."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import ONE_AIRFLOW
from tests.support import airflow_env
from tests.support.airflow_env import REPOSITORY, Airflow

EXAMPLES = {path.stem for path in (REPOSITORY / "examples" / "dags").glob("*.py")}


@ONE_AIRFLOW
def test_every_example_runs_to_success(airflow: Airflow) -> None:
    runs = [airflow.api.trigger(dag_id) for dag_id in sorted(EXAMPLES)]
    assert {run.dag_id: run.wait() for run in runs} == dict.fromkeys(EXAMPLES, "success")


#: Imports DAG files and prints the warnings that they cause themselves, not those inside of Airflow.
LOAD = """
import runpy, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for path in sys.argv[1:]:
        runpy.run_path(path)
print([str(warning) for warning in caught if warning.filename in sys.argv])
"""


@pytest.mark.core
def test_examples_load_without_errors_or_warnings(tmp_path: Path, shared_dir: Path) -> None:
    env = airflow_env.make(tmp_path / "home", shared_dir, components=airflow_env.FEW)  # its database has all DAGs
    assert {row["dag_id"] for row in env.query("SELECT dag_id FROM serialized_dag")} >= EXAMPLES
    assert env.query("SELECT filename, stacktrace FROM import_error") == []
    warnings = env.query("SELECT dag_id, message FROM dag_warning")
    assert [warning for warning in warnings if warning["dag_id"] in EXAMPLES] == []
    paths = [str(path) for path in (REPOSITORY / "examples" / "dags").glob("*.py")]
    assert env.run(sys.executable, "-c", LOAD, *paths).stdout.splitlines()[-1] == "[]"
