"""What is imported ahead of tasks, and that an edited DAG file takes effect with the next task all the same."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.flights import launcher
from tests.support.waiting import wait_for

#: A DAG file that imports a package from the index, and a module beside it.
DAG = """
import sys
AHEAD = any("numpy" in finder for finder in sys.meta_path if type(finder).__name__ == "Stash")
WAS_THERE = "numpy" in sys.modules
import numpy
from airflow.sdk import dag, task
from edited_module import VALUE

@dag(schedule=None)
def edited():
    @task
    def tell():
        return {"ahead": AHEAD, "was_there": WAS_THERE, "dag": "DAG_VALUE", "module": VALUE}
    tell()

edited()
"""


@pytest.fixture(scope="module")
def components() -> Sequence[str]:
    return airflow_env.READING


@pytest.fixture(scope="module")
def dags() -> Sequence[str]:
    return []  # the test writes its own


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    return {airflow_env.PRELOAD: "auto"}


def preloads(airflow: Airflow) -> str:
    """Return what the doctor says of packages that are imported ahead."""
    checks = json.loads(airflow.run("air-executor", "doctor", "--json", check=False).stdout)
    [found] = [check["found"] for check in checks if check["name"] == "preload"]
    return str(found)


@pytest.mark.by_turns
def test_packages_are_imported_ahead_and_what_users_edit_is_not(airflow: Airflow) -> None:
    dag_file, module = airflow.dags / "edited.py", airflow.dags / "edited_module.py"

    def edit(value: str) -> None:
        module.write_text(f"VALUE = {value!r}\n")  # first: a DAG file that can't import it is not soon read again
        dag_file.write_text(DAG.replace("DAG_VALUE", value))

    def told() -> dict[str, object]:
        run = airflow.api.trigger("edited")
        assert run.wait() == "success"
        value = run.xcom("tell")
        assert isinstance(value, dict)
        return value

    edit("first")
    assert told() == {"ahead": False, "was_there": False, "dag": "first", "module": "first"}
    edit("second")
    assert told() == {"ahead": False, "was_there": False, "dag": "second", "module": "second"}

    # A launcher has a package tried that it has seen imported twice, and a successor imports it. Either may have come
    # in the meantime, or come with the next run.
    wait_for(lambda: told()["ahead"], "a launcher that imports it", 400, seen=lambda: preloads(airflow))
    launcher(airflow)  # the former one has ended
    ahead, _, left = preloads(airflow).partition("; left to tasks: ")
    assert "numpy (" in ahead, left
    edit("third")
    assert told() == {"ahead": True, "was_there": False, "dag": "third", "module": "third"}
    for path in (dag_file, module):
        path.unlink()
