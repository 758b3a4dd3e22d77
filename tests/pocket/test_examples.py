"""Example DAGs, each by one command: those that have more than tasks."""

from __future__ import annotations

import pytest

from tests.pocket.conftest import Place
from tests.support.airflow_env import REPOSITORY

EXAMPLES = (
    "air_executor_demo crawl_tree deferrable_wait llm_text_orchestration mapped_fan_out per_task_executor"
).split()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_by_one_command(place: Place, name: str) -> None:
    result = place.events(str(REPOSITORY / "examples" / "dags" / f"{name}.py"))[-1]
    assert result["state"] == "success", place.logs()
    assert {task["state"] for task in result["tasks"]} <= {"success", "skipped"}
    place.check_nothing_runs()
