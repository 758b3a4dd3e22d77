"""The jobs in docs/reference/jobs.md are taken, and end as it says there."""

from __future__ import annotations

import re

import pytest
import yaml

from air_executor.jobs.model import Job, Task
from tests.jobs.conftest import Yard
from tests.support.airflow_env import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reference" / "jobs.md").read_text()
JOBS = re.findall(r"```yaml\n# (\S+)\.yaml(.*)\n([^`]*)```", PAGE)


def test_there_are_jobs() -> None:
    assert len(JOBS) >= 4


@pytest.mark.parametrize(("name", "says", "text"), JOBS, ids=[name for name, _, _ in JOBS])
def test_a_job_of_the_page_ends_as_it_says(yard: Yard, name: str, says: str, text: str) -> None:
    (yard.folder / f"{name}.yaml").write_text(text)
    fails = "fails" in says
    yard.call("run", f"{name}.yaml", code=1 if fails else 0)
    assert yard.store.open(name).job.state.value == ("failed" if fails else "completed")
    assert len(yaml.safe_load(text)["tasks"]) <= len(yard.tasks(name))


def test_the_page_has_all_fields_that_people_give() -> None:
    given = [
        name
        for model in (Task, Job)
        for name, item in model.__dataclass_fields__.items()
        if "kind" in item.metadata and not item.metadata["is_own"]
    ]
    assert [name for name in given if f"`{name}`" not in PAGE] == []


def test_the_page_shows_a_refusal_as_it_is(yard: Yard) -> None:
    (yard.folder / "nightly.yaml").write_text("tasks: [{id: load, command: 'true', retires: 3}]")
    [shown] = re.findall(r"^air-executor: .*$", PAGE, re.MULTILINE)
    assert yard.call("run", "nightly.yaml", code=2).strip() == shown
