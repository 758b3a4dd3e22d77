"""Which tasks run, in which order, and what becomes of those that do not."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from air_executor.jobs import api, restart
from air_executor.jobs.manager.turns import Turns
from air_executor.jobs.model import Job, JobState, Task, TaskStatus
from air_executor.jobs.places import UNKNOWN, Places
from air_executor.jobs.schedule import ActiveJob
from air_executor.jobs.store import JobFiles, JobStore
from tests.jobs.conftest import Yard
from tests.support.waiting import wait_for


def active(folder: Path, *tasks: dict[str, Any], **job: Any) -> ActiveJob:
    document = {"id": "1", **job}
    files = JobStore(folder).create(
        Job.from_dict(document, name=str(job.get("name", "job")), where="job"),
        [Task.from_dict({"command": "true", **each}, job_name="job", where="job") for each in tasks],
    )
    return ActiveJob(files)


def end(job: ActiveJob, task_id: str, status: str) -> dict[str, str]:
    """Let a task end, and return what has become of others by that."""
    task = job.tasks[task_id]
    task.status = TaskStatus(status)
    return {each.id: each.status.value for each in job.follow_up(task)}


def turns(job: ActiveJob) -> list[str]:
    """Return the tasks whose turn it is, in order, and take them."""
    taken = []
    while job.ready:
        taken.append(job.ready.first())
        job.ready.pop()
    return taken


WHENS = [
    {"id": "a"},
    {"id": "b"},
    {"id": "success", "dependencies": ["a", "b"]},
    {"id": "failed", "dependencies": ["a", "b"], "when": "failed"},
    {"id": "always", "dependencies": ["a", "b"], "when": "always"},
]


def test_a_task_waits_for_all_and_runs_as_its_when_says(tmp_path: Path) -> None:
    job = active(tmp_path, *WHENS)
    assert turns(job) == ["a", "b"]
    assert end(job, "a", "completed") == {}
    assert turns(job) == []
    assert end(job, "b", "completed") == {"failed": "skipped"}
    assert turns(job) == ["success", "always"]
    assert job.tasks["failed"].error == "not run: it is for a failure, and none of a, b failed"
    assert not job.tasks["failed"].has_failed


def test_after_a_failure_the_rest_is_skipped_at_once_and_who_is_for_failures_waits_for_all(tmp_path: Path) -> None:
    job = active(tmp_path, *WHENS)
    turns(job)
    assert end(job, "a", "failed") == {"success": "skipped"}
    assert turns(job) == []
    assert end(job, "b", "completed") == {}
    assert turns(job) == ["failed", "always"]


def test_a_failure_reaches_who_asks_for_it_through_what_was_skipped_for_it(tmp_path: Path) -> None:
    job = active(
        tmp_path,
        {"id": "a"},
        {"id": "b", "dependencies": ["a"]},
        {"id": "c", "dependencies": ["b"]},
        {"id": "mail", "dependencies": ["c"], "when": "failed"},
        {"id": "after-mail", "dependencies": ["mail"]},
        {"id": "mail-too", "dependencies": ["mail"], "when": "failed"},
    )
    turns(job)
    assert end(job, "a", "failed") == {"b": "skipped", "c": "skipped"}
    assert turns(job) == ["mail"]
    assert job.tasks["c"].cause == "a"
    assert job.tasks["c"].error == "not run: it depends on b, which was skipped as a failed"
    assert end(job, "mail", "completed") == {"mail-too": "skipped"}
    assert turns(job) == ["after-mail"]


def test_what_was_skipped_with_no_failure_is_none(tmp_path: Path) -> None:
    job = active(
        tmp_path,
        {"id": "a"},
        {"id": "mail", "dependencies": ["a"], "when": "failed"},
        {"id": "b", "dependencies": ["mail"]},
        {"id": "c", "dependencies": ["b"], "when": "failed"},
    )
    turns(job)
    assert end(job, "a", "completed") == {"mail": "skipped", "b": "skipped", "c": "skipped"}


def test_a_failure_counts_whichever_of_several_ends_first(tmp_path: Path) -> None:
    tasks = [
        {"id": "a"},
        {"id": "mail", "dependencies": ["a"], "when": "failed"},
        {"id": "bad"},
        {"id": "both", "dependencies": ["mail", "bad"]},
        {"id": "tell", "dependencies": ["both"], "when": "failed"},
    ]
    for first, second in (("a", "bad"), ("bad", "a")):
        job = active(tmp_path, *tasks, name=first)
        turns(job)
        for task_id in (first, second):
            end(job, task_id, {"a": "completed", "bad": "failed"}[task_id])
        assert job.tasks["both"].cause == "bad"
        assert turns(job) == ["tell"]


@given(st.data())
def test_any_graph_ends_as_its_whens_say_in_whichever_order_tasks_end(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    ids = [f"t{number}" for number in range(count)]
    tasks: list[dict[str, Any]] = []
    for number, task_id in enumerate(ids):
        others = data.draw(st.lists(st.sampled_from(ids[:number]), unique=True)) if number else []
        whens = ["success", "always", "failed"] if others else ["success", "always"]
        tasks.append({"id": task_id, "dependencies": others, "when": data.draw(st.sampled_from(whens))})
    fates = {task_id: data.draw(st.sampled_from(["completed", "failed"])) for task_id in ids}
    expected: dict[str, str] = {}
    broken: dict[str, bool] = {}
    for task in tasks:  # in an order in which all are known that a task depends on
        others, is_broken = task["dependencies"], any(broken[each] for each in task["dependencies"])
        runs = {
            "success": all(expected[each] == "completed" for each in others),
            "failed": is_broken,
            "always": True,
        }[task["when"]]
        expected[task["id"]] = fates[task["id"]] if runs else "skipped"
        broken[task["id"]] = expected[task["id"]] == "failed" or (not runs and task["when"] == "success" and is_broken)
    files = JobFiles(Path("job"))
    files.job = Job.from_dict({"id": "1"}, name="job", where="job")
    shuffled = data.draw(st.permutations(tasks))
    files.add([Task.from_dict({"command": "true", **each}, job_name="job", where="job") for each in shuffled], "job")
    job = ActiveJob(files)
    running: list[str] = []
    while job.ready or running:
        running += turns(job)
        ending = data.draw(st.sampled_from(running))
        running.remove(ending)
        end(job, ending, fates[ending])
    assert {task.id: task.status.value for task in files.tasks.values()} == expected
    has_failed = "failed" in expected.values()
    assert job.outcome()[0] is (JobState.FAILED if has_failed else JobState.COMPLETED)
    again = [each["id"] for each in tasks if expected[each["id"]] == "failed"]
    again = data.draw(st.lists(st.sampled_from(again), unique=True, min_size=1)) if again else []
    restart.retry(files, again)
    pending = set(again)
    for each in tasks:  # in an order in which all are known that a task depends on
        pending |= {each["id"]} if pending & set(each["dependencies"]) else set()
    assert {task.id: task.status.value for task in files.tasks.values()} == {
        task_id: "pending" if task_id in pending else status for task_id, status in expected.items()
    }


def test_long_chains_are_skipped_whole(tmp_path: Path) -> None:
    chain = [{"id": "t0"}, *({"id": f"t{n}", "dependencies": [f"t{n - 1}"]} for n in range(1, 5000))]
    job = active(tmp_path, *chain)
    assert len(end(job, "t0", "failed")) == 4999


def test_what_the_files_say_is_decided_as_they_are_read(tmp_path: Path) -> None:
    job = active(
        tmp_path,
        {"id": "c", "dependencies": ["b"]},
        {"id": "b", "dependencies": ["a"]},
        {"id": "a", "status": "failed"},
    )
    assert {task.id for task in job.unwritten} == {"b", "c"}
    assert {task.status.value for task in job.unwritten} == {"skipped"}


def test_a_higher_priority_is_first_and_equals_keep_their_order(tmp_path: Path) -> None:
    tasks = [{"id": name, "priority": priority} for name, priority in zip("abcde", (0, -1, 5, 0, 5), strict=True)]
    assert turns(active(tmp_path, *tasks)) == ["c", "e", "a", "d", "b"]


def starts(queue: Turns, count: int) -> list[str]:
    """Let jobs start this many tasks in one round, and return whose they are."""
    started = []
    while len(started) < count and (job := queue.next()) is not None:
        job.ready.pop()
        started.append(job.name)
    queue.end_round()
    return started


def test_jobs_of_a_higher_priority_are_first_equals_in_turn_and_a_paused_one_not_at_all(tmp_path: Path) -> None:
    queue = Turns()
    two = ({"id": "a"}, {"id": "b"})
    for name, number in {"low": -1, "one": 0, "high": 3, "two": 0}.items():
        queue.update(active(tmp_path, *two, name=name, priority=number, max_runners=2))
    queue.update(active(tmp_path, *two, name="paused", priority=9, paused=True))
    assert starts(queue, 100) == ["high", "high", "one", "two", "one", "two", "low", "low"]
    assert not queue


def test_a_new_round_begins_with_the_job_that_was_opened_first(tmp_path: Path) -> None:
    queue = Turns()
    three = ({"id": "a"}, {"id": "b"}, {"id": "c"})
    jobs = [active(tmp_path, *three, name=name, max_runners=3) for name in ("one", "two")]
    for job in jobs:
        queue.update(job)
    assert [starts(queue, 1), starts(queue, 3)] == [["one"], ["one", "two", "one"]]
    queue.update(jobs[0])  # it can start nothing any more, and is not queued by that
    assert starts(queue, 100) == ["two", "two"]


def test_a_job_that_can_start_again_or_was_read_anew_has_one_turn_at_a_time(tmp_path: Path) -> None:
    queue = Turns()
    job = active(tmp_path, {"id": "a"}, {"id": "b"}, max_runners=2)
    queue.update(job)
    job.blocked_until_s = 1.0
    assert not queue
    job.blocked_until_s = 0.0
    queue.update(job)
    queue.update(job)
    again = ActiveJob(job.files)
    queue.update(again)
    assert starts(queue, 100) == ["job", "job"]
    assert (len(job.ready), len(again.ready)) == (2, 0)
    queue.remove("job")
    assert not queue


def test_the_places_of_runs_that_a_former_version_has_ordered_are_found_and_released() -> None:
    former = str(uuid.uuid5(uuid.NAMESPACE_URL, "air-executor:1/2"))
    places = Places("1", "job")
    assert places.find(former, 2) == UNKNOWN
    places.take("a", places.find(former, 3))
    assert [places.free(3), places.free(1)] == [0, 0]
    new = [places.workload_id(place) for place in range(3)]
    assert [places.find(each, 3) for each in new] == [0, 1, 2]
    assert set(places.workload_ids()) == {*new, former}
    assert not {*new, former} & {Places("1", "copy").workload_id(place) for place in range(3)}


# With real runners


def sh(task_id: str, script: str, **fields: Any) -> dict[str, Any]:
    return {"id": task_id, "command": script, "shell": True, **fields}


def statuses(yard: Yard) -> dict[str, str]:
    return {task.id: task.status.value for task in yard.tasks().values()}


def test_a_task_for_failures_runs_and_the_job_has_failed_all_the_same(yard: Yard) -> None:
    yard.submit(
        sh("bad", "exit 3"),
        sh("next", "echo next >> ran", dependencies=["bad"]),
        sh("mail", "echo mail >> ran", dependencies=["next"], when="failed"),
        sh("clean", "echo clean >> ran", dependencies=["next"], when="always"),
    )
    files = yard.finish()
    assert yard.lines("ran") == ["mail", "clean"]
    assert statuses(yard) == {"bad": "failed", "next": "skipped", "mail": "completed", "clean": "completed"}
    assert (files.job.state, files.job.error) == (JobState.FAILED, "1 of 4 tasks failed: bad")
    assert "skipped" in yard.call("results", "job", code=1)


@pytest.mark.parametrize(
    ("script", "retry_on", "tries"),
    [("exit 75", [75, 3], 3), ("exit 2", [75, 3], 1), ("kill -9 $$", [137], 3), ("kill -9 $$", [9], 1)],
)
def test_a_task_is_tried_again_only_after_the_exit_codes_that_it_names(
    yard: Yard, script: str, retry_on: list[int], tries: int
) -> None:
    yard.submit(sh("a", script, retries=2, retry_delay=0.01, retry_on=retry_on))
    assert yard.finish().tasks["a"].tries == tries


def test_a_task_that_fails_by_itself_as_its_job_is_cancelled_has_failed(yard: Yard) -> None:
    yard.submit(
        sh("a", "exit 3"),
        sh("b", "sleep 600", dependencies=["a"], when="always"),
        sh("c", "true", dependencies=["b"], when="always"),
    )
    yard.start_manager()
    yard.runner_of("b")
    yard.call("cancel", "job")
    done = api.wait("job", timeout_s=120, state_dir=yard.state_dir)
    assert done.job.state is JobState.CANCELLED
    assert statuses(yard) == {"a": "failed", "b": "cancelled", "c": "cancelled"}
    assert yard.call("results", "job", code=1)


def test_a_paused_job_starts_nothing_until_it_is_resumed(yard: Yard) -> None:
    yard.submit(sh("a", "until [ -e go ]; do sleep 0.02; done"), sh("b", "echo b >> ran"), name="job")
    yard.submit(sh("a", "until [ -e paused ]; do sleep 0.02; done"), name="other")
    yard.start_manager()
    yard.runner_of("a")
    yard.store.ask("job", "pause")
    wait_for(lambda: yard.store.open("job").job.paused, "the pause")
    (yard.folder / "go").touch()
    wait_for(lambda: statuses(yard)["a"] == "completed", "what runs to run on")
    (yard.folder / "paused").touch()
    api.wait("other", timeout_s=120, state_dir=yard.state_dir)
    assert statuses(yard)["b"] == "pending"
    assert "paused" in yard.call("jobs")
    yard.store.ask("job", "resume")
    assert api.wait("job", timeout_s=120, state_dir=yard.state_dir).job.state is JobState.COMPLETED


def test_files_of_a_job_with_all_states_are_read_as_they_were_written(tmp_path: Path) -> None:
    tasks = [{"id": each.value, "status": each.value} for each in TaskStatus if each is not TaskStatus.PENDING]
    files = JobFiles(active(tmp_path, *tasks).files.path)
    files.load()
    assert [task.status.value for task in files.tasks.values()] == [task["id"] for task in tasks]


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
def test_a_job_that_has_completed_stays_so_whatever_is_asked_of_it_late(yard: Yard, action: str) -> None:
    yard.submit(sh("a", "true"))
    yard.finish()
    yard.store.ask("job", action)
    yard.manager(only=frozenset({"job"})).apply()
    job = yard.store.open("job").job
    assert (job.state, job.cancelled, job.paused) == (JobState.COMPLETED, False, False)


def test_a_task_that_is_queued_for_a_failure_runs_after_it(yard: Yard) -> None:
    yard.submit(sh("a", "exit 1"))
    options = ("--id", "b", "--after", "a", "--when", "failed", "--priority", "3")
    assert yard.call("queue", "--job", "job", *options, "--", "touch", "told") == "b\n"
    assert yard.finish().tasks["b"].priority == 3
    assert statuses(yard) == {"a": "failed", "b": "completed"}
    assert (yard.folder / "told").exists()
