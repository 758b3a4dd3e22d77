"""The same job file a second time, and a corrected one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from air_executor.errors import JobExistsError
from air_executor.jobs import api
from air_executor.jobs.model import JobState
from tests.jobs.conftest import Yard
from tests.jobs.test_manager import sh


def write(yard: Yard, *tasks: dict[str, Any], **fields: Any) -> str:
    (yard.folder / "nightly.json").write_text(json.dumps({"tasks": tasks, **fields}))
    return "nightly.json"


def test_a_file_whose_job_has_ended_is_run_again_as_cron_does(yard: Yard) -> None:
    file = write(yard, sh("a", "echo ran >> ran; echo said"))
    for _ in range(3):
        assert "job nightly completed" in yard.call("run", file)
    assert yard.lines("ran") == ["ran"] * 3
    job = yard.store.open("nightly").job
    assert (job.generation, job.state) == (3, JobState.COMPLETED)
    log = yard.log("a", "nightly")
    said = re.sub(r"begun \S+", "begun", log).splitlines()
    assert [line for line in said if not line.startswith("-- try")] == [
        "said",
        "-- generation 2, begun",
        "said",
        "-- generation 3, begun",
        "said",
    ]


def test_after_a_failure_the_corrected_file_is_what_runs(yard: Yard) -> None:
    yard.call("run", write(yard, sh("a", "exit 3"), sh("old", "true")), code=1)
    assert "job nightly completed: 1 of 1" in yard.call("run", write(yard, sh("a", "true")))
    assert list(yard.tasks("nightly")) == ["a"]


def test_a_job_that_has_not_ended_goes_on_when_its_file_is_the_same(yard: Yard) -> None:
    file = write(yard, sh("a", "echo a >> ran"), sh("b", "echo b >> ran"))
    name = yard.call("submit", file).split()[0]
    first = yard.store.open(name).job
    yard.call("run", file)
    assert yard.store.open(name).job.id == first.id
    assert yard.store.open(name).job.generation == 1
    assert yard.lines("ran") == ["a", "b"]


def test_one_that_has_not_ended_is_left_when_the_file_is_another(yard: Yard) -> None:
    yard.call("submit", write(yard, sh("a", "echo old >> ran")))
    file = write(yard, sh("a", "echo new >> ran"))
    said = yard.call("run", file, code=2)
    assert len(said.splitlines()) == 1
    for word in ("nightly is waiting", "--replace", "--new-name", "air-executor run nightly"):
        assert word in said
    assert yard.lines("ran") == []
    yard.call("run", file, "--new-name")
    assert yard.lines("ran") == ["new"]
    assert yard.store.names() == ["nightly", "nightly-2"]
    yard.call("run", file, "--replace")
    assert yard.lines("ran") == ["new", "new"]
    assert "choose one" in yard.call("run", file, "--replace", "--new-name", code=2)


def test_a_job_that_runs_is_cancelled_when_it_is_replaced(yard: Yard) -> None:
    yard.call("submit", write(yard, sh("a", "sleep 600")))
    yard.start_manager()
    runner = yard.runner_of("a", "nightly")
    yard.call("submit", write(yard, sh("a", "true")), "--replace")
    assert not runner.is_running()
    assert api.wait("nightly", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED
    assert yard.store.open("nightly").job.generation == 2


def test_submit_refuses_a_name_that_is_taken_unless_told_what_to_do(yard: Yard) -> None:
    file = write(yard, sh("a", "true"))
    assert yard.call("submit", file).split()[0] == "nightly"
    said = yard.call("submit", file, code=2)
    assert "there is a job nightly already" in said
    assert "--replace" in said
    assert "--new-name" in said
    assert yard.call("submit", file, "--new-name").split()[0] == "nightly-2"
    assert json.loads(yard.call("submit", file, "--new-name", "--json"))["name"] == "nightly-3"


def test_a_running_manager_begins_the_next_generation(yard: Yard) -> None:
    yard.start_manager()
    file = write(yard, sh("a", "echo ran >> ran"))
    yard.call("run", file)
    yard.call("run", file)
    assert yard.lines("ran") == ["ran", "ran"]


def test_what_cannot_be_understood_can_be_replaced(yard: Yard) -> None:
    file = write(yard, sh("a", "echo ran >> ran"))
    yard.call("run", file)
    (yard.store.folder("nightly") / "tasks.json").write_text("[{")
    (yard.store.folder("nightly") / "state.json").write_text("{")
    assert "is not JSON" in yard.call("run", file, code=2)
    yard.call("run", file, "--replace")
    assert yard.lines("ran") == ["ran", "ran"]


def test_reset_is_a_generation_too(yard: Yard) -> None:
    yard.submit(sh("a", "echo said"))
    yard.finish()
    yard.call("reset", "job")
    yard.finish()
    assert yard.store.open("job").job.generation == 2
    assert "-- generation 2, begun" in yard.log("a")


def test_definitions_are_told_apart_by_what_they_say_not_by_how(yard: Yard) -> None:
    task = sh("a", "true")

    def submit(*tasks: dict[str, Any], **more: Any) -> str | None:
        return api.submit(
            "job", tasks, state_dir=yard.state_dir, folder=yard.folder, existing="replace", **more
        ).definition

    first = submit(task)
    assert submit(dict(reversed(task.items()))) == first
    assert submit({**task, "retries": 0}) == first
    others = [submit(sh("a", "false")), submit(task, sh("b", "true")), submit(task, env={"X": "1"})]
    assert len({first, *others}) == 4


def test_nothing_is_lost_when_a_process_dies_while_it_begins_a_job_anew(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.submit(sh("a", "true"))
    yard.finish()
    from air_executor.jobs.model import Job

    monkeypatch.setattr(Job, "to_json", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    definition = {"state_dir": yard.state_dir, "folder": yard.folder, "existing": "resume"}
    with pytest.raises(KeyboardInterrupt):
        api.submit("job", [sh("b", "echo b >> ran")], **definition)
    monkeypatch.undo()
    assert yard.store.open("job").job.state is JobState.COMPLETED
    api.submit("job", [sh("b", "echo b >> ran")], **definition)
    assert yard.finish().job.generation == 2
    assert yard.lines("ran") == ["b"]


def test_a_job_on_which_another_works_is_not_begun_anew(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    from air_executor.jobs import again

    monkeypatch.setattr(again, "_LOCK_S", 0.0)
    yard.submit(sh("a", "true"))
    yard.finish()
    lock = yard.store.open("job").lock()
    assert lock.acquire(timeout_s=0)
    try:
        with pytest.raises(JobExistsError, match="a manager works on job job"):
            yard.submit(sh("a", "true"), existing="resume")
    finally:
        lock.release(keep_file=True)
    yard.submit(sh("a", "true"), existing="resume")


def test_a_planted_job_with_the_same_definition_is_not_run(yard: Yard) -> None:
    """Whoever made a repository may say there that a job was submitted with any definition."""
    file = write(yard, sh("a", "true"))
    yard.call("submit", file)
    path: Path = yard.store.folder("nightly")
    tasks = json.loads((path / "tasks.json").read_text())
    tasks[0]["command"] = "touch planted"
    (path / "tasks.json").write_text(json.dumps(tasks))
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "id": "another"}))
    assert "air-executor trust nightly" in yard.call("run", file, code=2)
    assert not (yard.folder / "planted").exists()
