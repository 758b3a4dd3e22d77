"""Tasks and jobs as documents: what is taken, what is refused and how, and what stays as it was."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from air_executor.errors import JobError
from air_executor.jobs.fields import kinds
from air_executor.jobs.model import Job, JobState, Task, TaskStatus, check_dependencies, check_name, new_tasks

#: As the first Air-Executor wrote it.
FIRST = {
    "id": "task-1",
    "job_name": "old",
    "command": "echo",
    "args": ["hello"],
    "dependencies": [],
    "status": "completed",
    "created_at": "2025-10-02T07:30:00.000000",
    "started_at": "2025-10-02T07:30:01.000000",
    "completed_at": "2025-10-02T07:30:02Z",
    "error": None,
}


def task(**fields: Any) -> Task:
    return Task.from_dict({"id": "a", "command": "true", **fields}, job_name="job", where="job/tasks.json")


def test_a_task_of_the_first_air_executor_is_read_and_written_as_it_was() -> None:
    assert Task.from_dict(FIRST, job_name="old", where="old/tasks.json").to_dict() == FIRST


def test_what_is_written_is_read_back() -> None:
    written = task(
        args=["x"],
        env={"A": "b"},
        limits={"memory": "1GiB"},
        timeout=2.5,
        retries=3,
        key="k",
        queued_by="b",
        result={"n": [1, None]},
        exit_code=0,
        status="completed",
    )
    document = orjson.loads(orjson.dumps(written.to_dict()))
    assert Task.from_dict(document, job_name="job", where="") == written


DEEP: Any = "x"
for _ in range(3000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (DEEP, "it must not be nested more than 100 deep"),
        ({0: "a"}, "it must be JSON, whose names are text, and 0 is not"),
        (1 << 70, "it must be JSON, whose whole numbers have up to 64 bits"),
        ({"a": {1, 2}}, "it must be JSON, and a set is in it"),
        ([b"x"], "it must be JSON, and a bytes is in it"),
    ],
)
@pytest.mark.parametrize("field", ["x-mine", "arguments", "foreach", "result"])
def test_what_could_not_be_written_as_json_is_refused_by_name(field: str, value: Any, says: str) -> None:
    given = {"arguments": {"n": value}, "foreach": [value]}.get(field, value)
    with pytest.raises(JobError, match=f"task 'a', field '{field}': ") as refused:
        task(command=None, function="m:f", **{field: given})
    assert says in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("model", [Job, Task])
def test_no_field_takes_a_number_that_could_not_be_written(model: Any) -> None:
    for field in kinds(model):
        with pytest.raises(JobError, match=re.escape(field)):
            if model is Task:
                task(**{field: 1 << 70})
            else:
                Job.from_dict({"id": "1", field: 1 << 70}, name="job", where="job/state.json")


def test_fields_that_nobody_knows_stay() -> None:
    assert task(owner="me", more={"a": 1}).to_dict() == {**task().to_dict(), "owner": "me", "more": {"a": 1}}
    job = Job.from_dict({"id": "1", "colour": "red"}, name="job", where="job/state.json")
    assert orjson.loads(job.to_json())["colour"] == "red"


def test_the_fields_of_the_first_air_executor_come_first_and_always() -> None:
    assert list(task(retries=1).to_dict()) == [*FIRST, "retries"]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("command", 5, "it must be text, not 5"),
        ("command", "", "it must be text, and not empty"),
        ("command", "a\0b", "it must be text"),
        ("args", "x", "it must be a list of text"),
        ("args", [1], "it must be text"),
        ("dependencies", "b", "it must be a list of text"),
        ("status", "done", "it must be one of pending, running, completed, failed, skipped, cancelled"),
        ("created_at", "yesterday", "it must be a moment"),
        ("env", {"A": 1}, "it must be an object of text to text"),
        ("env", {"A=B": "1"}, "is not the name of an environment variable"),
        ("limits", {"memroy": "1GiB"}, "there is no limit 'memroy'; did you mean 'memory'?"),
        ("limits", {"cpus": 0}, "limits['cpus'] = 0 can not be applied: it must be a whole number, at least 1"),
        ("limits", {"timeout": 1}, "fields of the task itself"),
        ("timeout", -1, "it must be a number of seconds"),
        ("timeout", float("inf"), "it must be a number of seconds"),
        ("timeout", True, "it must be a number of seconds"),
        ("retries", 1.5, "it must be a whole number, at least 0"),
        ("shell", "yes", "it must be true or false"),
        ("function", "json", "it must be module:function"),
        ("arguments", [1], "it must be an object"),
        ("when", "never", "it must be one of success, failed, always"),
        ("when", "failed", "depends on nothing; for a failure of the job there is the job's on_failure"),
        ("retry_on", [0], "it must be a list of exit codes, each a whole number from 1 to 255"),
        ("retry_on", [75], "'retries' must say how often"),
        ("priority", "high", "it must be a whole number"),
    ],
)
def test_a_wrong_value_is_refused_with_file_task_and_field(field: str, value: Any, says: str) -> None:
    fields = {field: value, **({"command": None} if field == "function" else {})}
    with pytest.raises(JobError) as refused:
        task(**fields)
    assert str(refused.value).startswith(f"job/tasks.json, task 'a', field {field!r}: ")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"command": None}, "it needs a command or a function, and not both"),
        ({"function": "a:b"}, "it needs a command or a function, and not both"),
        ({"command": None, "function": "a:b", "args": ["x"]}, "args and shell are a command's"),
        ({"shell": True, "args": ["x"]}, "there are no args"),
        ({"dependencies": ["a"]}, "it depends on itself"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=r"job/tasks\.json, task 'a'") as refused:
        task(**fields)
    assert says in str(refused.value)


@pytest.mark.parametrize("document", [None, [], "task", 5, {"command": "true"}])
def test_what_is_no_task_is_refused(document: Any) -> None:
    with pytest.raises(JobError, match=r"job/tasks\.json"):
        Task.from_dict(document, job_name="job", where="job/tasks.json")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-a", ".a", "ü", "a\n", "x" * 201, None, 5])
def test_names_that_can_be_no_file_are_refused(name: Any) -> None:
    with pytest.raises(JobError):
        check_name(name)
    with pytest.raises(JobError):
        task(id=name)


@pytest.mark.parametrize("name", ["a", "my-job", "airflow-manual__2025-10-02T07:30:00+00:00", "1.2_3@x=y"])
def test_other_names_are_taken(name: str) -> None:
    assert check_name(name) == name


def tasks(**dependencies: list[str]) -> list[Task]:
    return [task(id=name, dependencies=others) for name, others in dependencies.items()]


def test_a_circle_is_refused_and_shown() -> None:
    with pytest.raises(JobError, match="a → c → b → a"):
        check_dependencies(set(), tasks(d=["a"], a=["c"], b=["a"], c=["b"]), "here")


def test_an_unknown_dependency_is_refused_by_name() -> None:
    with pytest.raises(JobError, match=r"here: task 'a' depends on 'nobody', which is not a task of the job"):
        check_dependencies(set(), tasks(a=["nobody"]), "here")


def test_long_chains_and_what_is_there_already_are_no_circles() -> None:
    chain = {f"t{n}": [f"t{n + 1}"] for n in range(20_000)}
    check_dependencies({"t20000"}, tasks(**chain), "here")
    check_dependencies(set(), tasks(a=["b", "c"], b=["d"], c=["d"], d=[]), "here")


def test_of_a_key_there_is_one_task_and_who_depends_on_its_double_depends_on_it() -> None:
    coming = [
        task(id="b", key="known"),
        task(id="c", key="new"),
        task(id="d", key="new"),
        task(id="e", dependencies=["b", "c", "d", "x"]),
    ]
    new, keys = new_tasks(coming, {"a", "x"}, {"known": "a"}, "here")
    assert list(new) == ["c", "e"]
    assert new["e"].dependencies == ["a", "c", "c", "x"]
    assert keys == {"new": "c"}


def test_the_wait_between_tries_doubles_up_to_an_hour() -> None:
    failed = task(retries=9, retry_delay=2)
    waits = []
    for failed.tries in (1, 2, 3, 20):
        waits.append(failed.wait_s())
    assert waits == [2, 4, 8, 3600]


def test_a_job_with_a_wrong_field_is_refused_with_its_name() -> None:
    with pytest.raises(JobError, match=r"job/state\.json, field 'max_runners': it must be a whole number, at least 1"):
        Job.from_dict({"id": "1", "max_runners": 0}, name="job", where="job/state.json")
    with pytest.raises(
        JobError, match="field 'state': it must be one of waiting, working, completed, failed, cancelled"
    ):
        Job.from_dict({"id": "1", "state": "done"}, name="job", where="job/state.json")


def test_states_know_their_end() -> None:
    assert [state.value for state in JobState if not state.is_end] == ["waiting", "working"]
    assert [status.value for status in TaskStatus if not status.is_end] == ["pending", "running"]
