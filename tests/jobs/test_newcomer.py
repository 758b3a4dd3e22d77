"""What somebody meets who uses jobs for the first time."""

from __future__ import annotations

import json
import re
import signal

import pytest

from air_executor.cli import joblogs
from air_executor.jobs.store import JobStore
from tests.jobs.conftest import Yard
from tests.support.airflow_env import REPOSITORY
from tests.support.waiting import wait_for

GOOD = json.dumps([{"id": "a", "command": "true"}])


@pytest.mark.parametrize("name", ["nightly.1", "v1.2.3", "f.yaml"])
def test_a_job_whose_name_has_a_dot_is_run_by_its_name(yard: Yard, name: str) -> None:
    (yard.folder / "f.json").write_text(GOOD)
    yard.call("submit", "f.json", "--name", name)
    assert f"job {name} completed" in yard.call("run", name)
    assert f"job {name} completed" in yard.call("results", name)


def test_a_file_whose_name_has_dots_keeps_them(yard: Yard) -> None:
    (yard.folder / "nightly.v2.json").write_text(GOOD)
    assert "job nightly.v2 completed" in yard.call("run", "nightly.v2.json")


def test_what_is_neither_a_file_nor_a_job_is_said(yard: Yard) -> None:
    assert "'nightly.2' is neither a file, nor a job below" in yard.call("run", "nightly.2", code=2)
    assert "nightly.yaml cannot be read: No such file" in yard.call("run", "nightly.yaml", code=2)
    assert "x/nightly cannot be read: No such file" in yard.call("run", "x/nightly", code=2)


def test_a_job_without_its_manager_does_not_look_alive(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "sleep", "args": ["600"]})
    manager = yard.start_manager()
    runner = yard.runner_of("a")
    assert "no manager works on it" not in yard.call("jobs") + yard.call("job", "job")
    manager.send_signal(signal.SIGKILL)
    manager.wait()
    assert "no manager works on it: `air-executor start`" in yard.call("jobs")
    assert "no manager works on it: `air-executor start`" in yard.call("status")
    shown = yard.call("job", "job")
    assert "no manager works on it: `air-executor start`" in shown
    assert "its run" not in shown, "it runs on"
    assert json.loads(yard.call("jobs", "--json"))[0]["has_manager"] is False
    runner.kill()
    wait_for(lambda: "its run ended as" in yard.call("job", "job"), "the end to be seen", every_s=0.2)


def test_a_line_divides_the_tries_of_a_task(yard: Yard) -> None:
    script = "printf '%s' $AIR_EXECUTOR_TRY; [ $AIR_EXECUTOR_TRY = 3 ]"
    yard.submit({"id": "a", "command": script, "shell": True, "retries": 2, "retry_delay": 0})
    yard.finish()
    lines = re.sub(r"at 20\S+", "at NOW", yard.log("a")).splitlines()
    assert lines == ["1", "-- try 2 begins at NOW", "2", "-- try 3 begins at NOW", "3"]


def test_one_line_divides_a_job_that_is_run_again_from_its_former_run(yard: Yard) -> None:
    (yard.folder / "f.json").write_text(json.dumps([{"id": "a", "command": "echo", "args": ["said"]}]))
    yard.call("run", "f.json")
    yard.call("run", "f.json")
    first, line, second = yard.log("a", "f").splitlines()
    assert (first, second) == ("said", "said")
    assert line.startswith("-- generation 2, ")


def test_a_runner_is_called_so_in_a_bare_environment_too(yard: Yard) -> None:
    assert '"setproctitle' in (REPOSITORY / "pyproject.toml").read_text().partition("[project.optional")[0]
    yard.submit({"id": "a", "command": "sleep", "args": ["600"]})
    yard.start_manager()
    assert yard.runner_of("a").cmdline()[0].startswith("air-executor runner ")


def test_what_is_wrong_in_limits_is_said_in_the_words_of_a_job(yard: Yard) -> None:
    for limits, says in (
        ({"memoryy": 5}, "there is no limit 'memoryy'; did you mean 'memory'?"),
        ({"memory": "5q"}, "limits['memory'] = '5q' can not be applied: it must be a number of bytes"),
        ({"environment": {}}, "environment and timeout are fields of the task itself"),
    ):
        document = [{"id": "a", "command": "true", "limits": limits}]
        (yard.folder / "f.json").write_text(json.dumps(document))
        said = yard.call("submit", "f.json", code=2)
        assert "job f, task 'a', field 'limits': " in said
        assert says in said
        assert "executor_config" not in said
        assert "., not" not in said


def test_a_second_manager_does_not_claim_to_work(yard: Yard) -> None:
    yard.start_manager()
    said = yard.call("start", code=1)
    assert "a manager works here already" in said
    assert "working on the jobs" not in said
    assert str(yard.store.root) in said


def test_the_log_of_a_job_asks_for_the_task_and_takes_the_only_one(yard: Yard) -> None:
    tasks = [{"id": name, "command": "seq", "args": ["5"]} for name in ("a", "b")]
    yard.submit(*tasks)
    yard.submit(tasks[0], name="single")
    yard.finish()
    yard.finish("single")
    said = yard.call("logs", "job", code=2)
    assert "job is a job: name one of its tasks, as in `air-executor logs job TASK`: a, b" in said
    assert yard.call("logs", "single", "--tail", "2") == "4\n5\n"
    assert yard.call("logs", "job", "b", "--grep", "[135]", "--tail", "2") == "3\n5\n"
    assert yard.call("logs", "job", "b", "-f", "--grep", "[135]", "--tail", "2") == "3\n5\n"
    assert "there is no run 'jo'" in yard.call("logs", "jo", code=2)


def test_a_log_that_is_followed_costs_nothing_while_nothing_happens(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.submit({"id": "a", "command": "true"})
    opened: list[str] = []
    monkeypatch.setattr(JobStore, "open", lambda store, name: opened.append(name) or _open(store, name))
    has_ended = joblogs._end_of(yard.store, "job", "a")
    assert [has_ended() for _ in range(20)] == [False] * 20
    assert opened == ["job"]
    yard.finish()
    opened.clear()
    assert has_ended()
    assert has_ended()
    assert opened == ["job"]


_open = JobStore.open


def test_arguments_that_are_not_json_are_one_line(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true"})
    said = yard.call("queue", "--job", "job", "--function", "math:hypot", "--arguments", "{x", code=2)
    assert "--arguments must be JSON, not '{x'" in said
    assert len(said.splitlines()) == 1


def test_the_list_of_jobs_is_whole_lines_in_a_pipe(yard: Yard) -> None:
    name = "a-name-that-is-rather-long-but-allowed-" * 4
    yard.submit({"id": "a", "command": "false"}, name=name)
    yard.finish(name)
    rows = [line.split("\t") for line in yard.call("jobs").splitlines() if "\t" in line]
    assert rows[0] == ["JOB", "STATE", "DONE", "RUNNING", "FAILED", "NOT RUN", "UPDATED (UTC)", "REASON"]
    assert rows[1][:5] == [name, "failed", "0/1", "0", "1"]
    assert rows[1][7] == "1 of 1 tasks failed: a"
