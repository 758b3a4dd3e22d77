"""What job files may say: misspelt fields are refused with the near name; the JSON Schema says what the code does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import orjson
import pytest

from air_executor.errors import JobError
from air_executor.jobs import api
from air_executor.jobs.fields import LIMITS
from air_executor.jobs.model import Job, Task
from air_executor.jobs.schema import GIVEN, job_file
from air_executor.jobs.store import JobStore
from air_executor.runs import limits
from tests.jobs.conftest import Yard

VALIDATOR = jsonschema.Draft202012Validator(job_file())

#: Fields of a task, each with values that are taken and values that are not.
TASK_VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "id": (["a", "x.1"], ["", "a b", "../b", 5]),
    "command": (["true"], ["", 5, None, "a\0b"]),
    "args": ([[], ["x"], None], ["x", [1]]),
    "dependencies": ([[], None], ["b", [1]]),
    "arguments": ([{"n": 1}], [[1]]),
    "shell": ([True, False], ["yes"]),
    "cwd": (["sub"], ["", 5]),
    "env": ([{"A": "b"}], [{"A": 1}, {"A=B": "c"}, ["A"]]),
    "env_file": ([".env"], ["", [".env"]]),
    "limits": ([{"memory": "1GiB", "gpus": 1}], [{"memroy": 1}, {"timeout": 1}, {"cpus": 0}]),
    "timeout": ([0, 1.5], [-1, True, "1s"]),
    "retries": ([0, 3], [-1, 1.5]),
    "retry_delay": ([0.5], [-1]),
    "when": (["success", "always"], ["never"]),
    "foreach": ([[], [1, "a", None], "${tasks.a.result}"], ["abc", {"a": 1}, "x ${tasks.a.result}"]),
    "priority": ([-5, 5], ["high", 1.5]),
    "key": (["k"], [""]),
    "status": (["skipped"], ["done"]),
    "x-mine": ([{"any": "thing"}], []),
    "_mine": ([1], []),
}

JOB_VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "max_runners": ([1, None], [0, "2"]),
    "env": ([{"A": "b"}], [{"A": 1}]),
    "env_file": ([".env"], [""]),
    "priority": ([3], ["high"]),
    "paused": ([True], ["no"]),
    "on_success": (
        ["echo done", {"command": "true"}, {"function": "a:b"}],
        [" ", 5, [], {"command": "true", "when": "always"}],
    ),
    "on_failure": ([{"command": "true", "x-mine": 1}], [{"comand": "true"}, {}]),
    "x-mine": ([1], []),
    "maxrunners": ([], [1]),
}


def cases(values: dict[str, tuple[list[Any], list[Any]]]) -> list[Any]:
    return [
        pytest.param(name, value, is_taken, id=f"{name}={value!r}")
        for name, both in values.items()
        for is_taken, some in zip((True, False), both, strict=True)
        for value in some
    ]


def is_submitted(yard: Yard, tasks: list[dict[str, Any]], **job: Any) -> bool:
    given = {
        "name": "job",
        "state_dir": yard.state_dir,
        **{name: value for name, value in job.items() if value is not None},
    }
    try:
        api.submit(tasks=tasks, **given)
    except JobError:
        return False
    return True


@pytest.mark.parametrize(("name", "value", "is_taken"), cases(TASK_VALUES))
def test_the_schema_and_a_submit_agree_on_tasks(yard: Yard, name: str, value: Any, is_taken: bool) -> None:
    tasks = [{"id": "b", "command": "true", name: value}]
    if "${" in str(value):
        tasks.append({"id": "a", "command": "true"})
    assert VALIDATOR.is_valid({"tasks": tasks}) is is_taken
    assert VALIDATOR.is_valid(tasks) is is_taken
    assert is_submitted(yard, tasks) is is_taken


@pytest.mark.parametrize(("name", "value", "is_taken"), cases(JOB_VALUES))
def test_the_schema_and_a_submit_agree_on_jobs(yard: Yard, name: str, value: Any, is_taken: bool) -> None:
    assert VALIDATOR.is_valid({"tasks": [], name: value}) is is_taken
    assert is_submitted(yard, [], **{name: value}) is is_taken


def test_the_schema_has_all_fields_and_limits_and_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(job_file())
    defined = job_file()["$defs"]
    assert defined["task"]["properties"].keys() == Task.__dataclass_fields__.keys() - {"extra"}
    assert defined["job"]["properties"].keys() == {*GIVEN, "tasks"}
    assert Job.__dataclass_fields__.keys() > set(GIVEN)
    assert LIMITS.schema["properties"].keys() == limits._PARSERS.keys() - {"environment", "timeout"}
    assert all(what["description"] for what in defined["task"]["properties"].values())


def test_the_schema_is_printed(yard: Yard) -> None:
    assert orjson.loads(yard.call("schema")) == job_file()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("retires", "retries"),
        ("comand", "command"),
        ("depends_on", "dependencies"),
        ("Dependancies", "dependencies"),
        ("retry-delay", "retry_delay"),
        ("needs", "dependencies"),
        ("enviroment", "env"),
        ("working_dir", "cwd"),
        ("for_each", "foreach"),
        ("env-file", "env_file"),
        ("name", "id"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_near_name_wherever_it_is_given(yard: Yard, name: str, near: str) -> None:
    says = rf"task 'a': there is no field '{name}'; did you mean '{near}'\?"
    yard.submit({"id": "first", "command": "true"}, name="other")
    task = {"id": "a", "command": "true", name: 3}
    refusals: list[Callable[[], Any]] = [
        lambda: yard.submit(task),
        lambda: api.queue_tasks([task], job="other", state_dir=yard.state_dir),
    ]
    for refused in refusals:
        with pytest.raises(JobError, match=says):
            refused()
    assert yard.store.names() == ["other"]


def test_a_misspelt_field_goes_before_what_is_missing_for_it_and_is_one_line(yard: Yard) -> None:
    (yard.folder / "job.yaml").write_text("tasks: [{id: a, comand: 'true'}]")
    assert yard.call("run", "job.yaml", code=2).splitlines() == [
        "air-executor: job job, task 'a': there is no field 'comand'; did you mean 'command'? "
        "Fields of your own begin with x- or _"
    ]
    (yard.folder / "job.yaml").write_text("taks: []")
    assert "job.yaml: there is no field 'taks'; did you mean 'tasks'?" in yard.call("submit", "job.yaml", code=2)


def test_a_field_that_is_like_no_other_is_refused_with_those_that_there_are(yard: Yard) -> None:
    with pytest.raises(JobError, match=r"there is no field 'qwertz'; known are id, .*, priority,"):
        yard.submit({"id": "a", "command": "true", "qwertz": 1})


def test_fields_of_ones_own_stay_through_the_life_of_a_job(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true", "x-owner": "me", "_note": [1]}, **{"x-team": "data"})
    files = yard.finish()
    assert files.tasks["a"].extra == {"x-owner": "me", "_note": [1]}
    assert files.job.extra == {"x-team": "data"}


def test_unknown_fields_in_files_on_disk_stay_as_they_are(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true"})
    path = yard.store.folder("job") / "tasks.json"
    path.write_bytes(orjson.dumps([{**each, "owner": "me"} for each in orjson.loads(path.read_bytes())]))
    yard.finish()
    assert orjson.loads(path.read_bytes())[0]["owner"] == "me"


def test_messages_show_no_value_of_a_variable(yard: Yard) -> None:
    with pytest.raises(JobError) as refused:
        yard.submit({"id": "a", "command": "true", "env": {"TOKEN": "s3cret", "N": 1}})
    assert "s3cret" not in str(refused.value)
    assert "field 'env': it must be an object of text to text" in str(refused.value)
    assert JobStore(yard.state_dir).names() == []
