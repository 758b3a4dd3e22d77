"""Results and items as inputs of tasks: what is put where, and that a shell never reads them as a program."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from air_executor.errors import JobError
from air_executor.jobs.model import JobState, Task, TaskStatus
from air_executor.jobs.placeholders import references
from air_executor.jobs.templates import fill, items
from tests.jobs.conftest import Yard


def task(**fields: Any) -> Task:
    document = {"id": "t", **fields}
    if "function" not in fields:
        document.setdefault("command", "true")
    return Task.from_dict(document, job_name="job", where="job")


def completed(task_id: str, result: Any) -> dict[str, Task]:
    return {task_id: task(id=task_id, status="completed", result=result)}


def item_of(value: Any, **fields: Any) -> Task:
    return task(item=value, index=0, queued_by="group", **fields)


def test_whose_result_is_used_is_a_dependency() -> None:
    uses = task(
        args=["${tasks.a.result} ${tasks.b.c.result}", "$${tasks.no.result}"],
        env={"A": "${tasks.d.result}"},
        dependencies=["x", "a"],
    )
    assert uses.dependencies == ["x", "a", "b.c", "d"]
    nested = task(function="m:f", arguments={"n": [{"deep": "${tasks.e.result}"}]})
    assert nested.dependencies == ["e"]
    assert task(foreach="${tasks.f.result}").dependencies == ["f"]
    assert references("echo ${HOME} ${tasks.a} ${tasks.a.error} $tasks") == []


def test_a_task_can_not_use_its_own_result() -> None:
    with pytest.raises(JobError, match="task 't': it depends on itself"):
        task(args=["${tasks.t.result}"])


def test_commands_get_text_and_functions_get_values() -> None:
    tasks = completed("a", {"n": [1, None]})
    filled = fill(task(args=["${tasks.a.result}", "x=${tasks.a.result}!"], env={"A": "${tasks.a.result}"}), tasks)
    assert filled.args == ['{"n":[1,null]}', 'x={"n":[1,null]}!']
    assert filled.env == {"A": '{"n":[1,null]}'}
    call = task(function="m:f", arguments={"n": "${tasks.a.result}", "text": ["<${tasks.a.result}>"], "k": 1})
    assert fill(call, tasks).arguments == {"n": {"n": [1, None]}, "text": ['<{"n":[1,null]}>'], "k": 1}
    assert fill(task(command="${tasks.a.result}"), completed("a", "plain text")).command == "plain text"


def test_only_our_two_forms_are_ours_and_both_can_be_escaped() -> None:
    texts = ["${item}", "${HOME}", "$item", "${tasks.a}", "${tasks.a.error}", "${}", "$$", "{item}"]
    assert fill(task(args=texts), {}).args == texts
    assert fill(item_of("x", args=["${item}", "$${item}", "$${tasks.a.result}", "${HOME}"]), {}).args == [
        "x",
        "${item}",
        "${tasks.a.result}",
        "${HOME}",
    ]
    assert fill(task(args=["$${item}", "$${tasks.a.result}"]), {}).args == ["$${item}", "${tasks.a.result}"]


def test_what_a_value_holds_is_not_filled_in_again() -> None:
    tasks = {**completed("secret", "s3cret"), **completed("a", "${tasks.secret.result}")}
    uses = item_of("${tasks.secret.result}", args=["${item}", "${tasks.a.result}"])
    assert fill(uses, tasks).args == ["${tasks.secret.result}"] * 2
    assert "secret" not in uses.dependencies


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        (completed("a", None), "it uses the result of a, which has none"),
        ({"a": task(id="a", status="failed")}, "it uses the result of a, which has not completed"),
        ({}, "it uses the result of a, which has not completed"),
        (completed("a", "x\0y"), r"\$\{tasks\.a\.result\} holds a zero byte"),
    ],
)
def test_a_result_that_is_not_there_is_said(tasks: dict[str, Task], says: str) -> None:
    with pytest.raises(JobError, match=says):
        fill(task(args=["${tasks.a.result}"]), tasks)


def test_items_are_a_list_or_a_result_that_is_one() -> None:
    assert items(task(foreach=[1, "a"]), {}) == [1, "a"]
    assert items(task(foreach="${tasks.a.result}"), completed("a", [1])) == [1]
    with pytest.raises(JobError, match=r'foreach needs a list, and \$\{tasks\.a\.result\} is \{"n":1\}'):
        items(task(foreach="${tasks.a.result}"), completed("a", {"n": 1}))


def in_shell(script: str, value: str) -> str:
    filled = fill(item_of(value, command=script, shell=True), completed("a", value))
    done = subprocess.run(
        ["/bin/sh", "-c", filled.command or ""], env={**os.environ, **filled.env}, capture_output=True, check=True
    )
    return os.fsdecode(done.stdout)


PLACES = [
    "printf %s ${item}",
    'printf %s "${item}"',
    "printf %s '${item}'",
    'printf %s "$(printf %s "${item}")"',
    'printf %s "$(printf %s ${item})"',
    "# don't mind\nprintf %s ${item}",
    'X="a)b"; printf %s ${item}',
    "case x in x) printf %s ${item};; esac",
    'printf %s "$((1+2))" >/dev/null; printf %s ${tasks.a.result}',
    'printf %s \\"${item} | tail -c +2',
    "(printf %s ${item})",
    'printf "%s" "${tasks.a.result}"',
]


@pytest.mark.parametrize("script", PLACES)
@pytest.mark.parametrize(
    "value",
    ["a b", "it's", 'say "x"', "$(echo hacked)", "`echo hacked`", "*", "a\nb  c", "\\", "${HOME}", "; echo hacked"],
)
def test_in_a_shell_a_value_is_one_word_within_any_quotes(script: str, value: str) -> None:
    assert in_shell(script, value) == value


@given(
    value=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30).map(
        lambda text: text.rstrip("\n")
    )
)
def test_in_a_shell_any_text_stays_what_it_is(value: str) -> None:
    assert in_shell('printf %s ${item}; printf %s "${item}"', value) == value * 2


def test_in_a_here_document_the_variable_helps() -> None:
    assert in_shell("cat <<END\nit's $AIR_EXECUTOR_ITEM\nEND", "$(echo hacked)") == "it's $(echo hacked)\n"


# With real runners


def sh(task_id: str, script: str, **fields: Any) -> dict[str, Any]:
    return {"id": task_id, "command": script, "shell": True, **fields}


def test_results_of_commands_and_functions_reach_the_next_tasks(yard: Yard) -> None:
    (yard.folder / "more.py").write_text("def double(n, names):\n    return {'double': 2 * n, 'names': names}\n")
    yard.submit(
        {"id": "last", "command": "echo", "args": ["${tasks.double.result}", "${tasks.text.result}"]},
        {
            "id": "double",
            "function": "more:double",
            "arguments": {"n": "${tasks.number.result}", "names": ["${tasks.text.result}"]},
        },
        sh("number", "echo 21 > $AIR_EXECUTOR_RESULT"),
        sh("text", "echo 'a  b' > $AIR_EXECUTOR_RESULT"),
    )
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert files.tasks["double"].result == {"double": 42, "names": ["a  b"]}
    assert yard.log("last") == '{"double":42,"names":["a  b"]} a  b\n'


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("head -c 70000 /dev/zero > $AIR_EXECUTOR_RESULT", "its result has 70000 bytes"),
        ("mkfifo $AIR_EXECUTOR_RESULT", "its result is no file"),
        ("mkdir $AIR_EXECUTOR_RESULT", "its result cannot be read from"),
        ("ln -s /etc/passwd $AIR_EXECUTOR_RESULT", "its result cannot be read"),
        ("printf 'a\\0b' > $AIR_EXECUTOR_RESULT", "its result holds a zero byte"),
        (f"echo '{'[' * 120}{']' * 120}' > $AIR_EXECUTOR_RESULT", "its result cannot be kept: it must not be nested"),
        ("echo '[123456789012345678901234]' > $AIR_EXECUTOR_RESULT", "its result holds 123456789012345678901234"),
    ],
)
def test_a_result_that_can_not_be_kept_fails_its_task_and_no_other(yard: Yard, script: str, says: str) -> None:
    yard.submit(sh("a", script), sh("b", "true"))
    files = yard.finish()
    assert (files.tasks["a"].status, files.tasks["b"].status) == (TaskStatus.FAILED, TaskStatus.COMPLETED)
    assert says in (files.tasks["a"].error or "")


@pytest.mark.parametrize(
    "text",
    [b"1.10", b"12e45", b"123456789012345678901234", b"1e5", b"-0", b"caf\xe9.txt", b"007", b"true", b"21", b"1.5"],
)
def test_what_a_command_has_written_reaches_the_next_one_as_it_was(yard: Yard, text: bytes) -> None:
    (yard.folder / "text").write_bytes(text)
    yard.submit(
        sh("a", "cat text > $AIR_EXECUTOR_RESULT"),
        {"id": "b", "command": "printf", "args": ["%s", "${tasks.a.result}"]},
    )
    assert yard.finish().job.state is JobState.COMPLETED
    assert yard.store.files("job").log_file("b").read_bytes() == text


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('bad\\0byte')", "bad\\x00byte"),
        ("return [float('nan')]", "more:it returned what is not JSON: nan"),
        ("return {'a': (1, float('-inf'))}", "more:it returned what is not JSON: -inf"),
        ("value = []\n    for _ in range(150): value = [value]\n    return value", "its result cannot be kept"),
    ],
)
def test_whatever_a_function_raises_or_returns_the_job_stays_readable(yard: Yard, body: str, says: str) -> None:
    (yard.folder / "more.py").write_text(f"def it():\n    {body}\n")
    yard.submit({"id": "a", "function": "more:it"}, sh("b", "true"))
    assert yard.finish().tasks["b"].status is TaskStatus.COMPLETED
    assert says in (yard.tasks()["a"].error or "")
    assert "1 of 2 tasks failed: a" in yard.call("results", "job", code=1)


def test_a_task_whose_input_is_missing_fails_and_says_so_and_is_not_tried_again(yard: Yard) -> None:
    yard.submit(sh("a", "true"), sh("b", "echo ${tasks.a.result}", retries=3))
    task = yard.finish().tasks["b"]
    assert (task.status, task.tries, task.error) == (TaskStatus.FAILED, 1, "it uses the result of a, which has none")


def test_the_result_of_an_unknown_task_is_refused_at_submit(yard: Yard) -> None:
    with pytest.raises(JobError, match="task 'a' depends on 'nobody', which is not a task of the job"):
        yard.submit(sh("a", "echo ${tasks.nobody.result}"))


def test_a_task_that_is_queued_from_inside_may_use_results_of_others(yard: Yard) -> None:
    queue = yard.command("queue", "--", "echo", "$${tasks.number.result}")
    yard.submit(
        sh("number", "echo 21 > $AIR_EXECUTOR_RESULT"),
        {"id": "more", "command": queue[0], "args": queue[1:], "env": yard.env},
    )
    files = yard.finish()
    [queued] = [task for task in files.tasks.values() if task.queued_by == "more"]
    assert (queued.status, yard.log(queued.id)) == (TaskStatus.COMPLETED, "21\n")
