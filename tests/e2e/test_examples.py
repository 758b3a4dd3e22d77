"""The example dags load without a warning and run to success."""

from __future__ import annotations

import json

from tests.support.airflow_env import REPOSITORY, Airflow

EXAMPLES = {path.stem for path in (REPOSITORY / "examples" / "dags").glob("*.py")}


def test_every_example_runs_to_success(airflow: Airflow) -> None:
    runs = [airflow.api.trigger(dag_id) for dag_id in sorted(EXAMPLES)]
    assert {run.dag_id: run.wait() for run in runs} == dict.fromkeys(EXAMPLES, "success")


def test_examples_load_without_errors_or_warnings(airflow: Airflow) -> None:
    errors = json.loads(airflow.run("airflow", "dags", "list-import-errors", "-o", "json").stdout or "[]")
    assert errors == []
    warnings = airflow.api.get("/dagWarnings?limit=100")["dag_warnings"]
    assert [warning for warning in warnings if warning["dag_id"] in EXAMPLES] == []
    for path in sorted((REPOSITORY / "examples" / "dags").glob("*.py")):
        done = airflow.run("python", "-W", "error", "-c", f"import runpy; runpy.run_path({str(path)!r})")
        assert done.returncode == 0
