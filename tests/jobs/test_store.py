"""The files of a job: whole at every moment, small changes, and what others do to them."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.errors import JobChangedError, JobError, StateDirError
from air_executor.jobs.model import Job, JobState, Task, TaskStatus
from air_executor.jobs.names import LOG, OF_MANAGER
from air_executor.jobs.store import JobFiles, JobStore
from tests.jobs.conftest import Yard


def task(task_id: str, **fields: Any) -> Task:
    return Task.from_dict({"id": task_id, "command": "true", **fields}, job_name="job", where="test")


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path)


@pytest.fixture
def files(store: JobStore) -> JobFiles:
    return store.create(Job(id="1", name="job"), [task("a"), task("b", dependencies=["a"]), task("c")])


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_new_job_is_there_with_all_its_files(store: JobStore, files: JobFiles) -> None:
    assert store.names() == ["job"]
    assert sorted(os.listdir(files.path)) == [".gitignore", "state.json", "tasks.json"]
    assert orjson.loads((files.path / "state.json").read_bytes())["state"] == "waiting"
    assert [each["id"] for each in orjson.loads((files.path / "tasks.json").read_bytes())] == ["a", "b", "c"]


def test_a_job_without_tasks_is_one(store: JobStore) -> None:
    assert store.create(Job(id="1", name="empty"), []).tasks == {}
    assert (store.root / "empty" / "tasks.json").read_text() == "[]\n"


def test_a_second_job_of_a_name_is_refused_and_changes_nothing(store: JobStore, files: JobFiles) -> None:
    before = lines(files.path / "tasks.json")
    with pytest.raises(JobError, match=r"there is a job job already\. `--replace` begins it anew"):
        store.create(Job(id="2", name="job"), [])
    assert lines(files.path / "tasks.json") == before
    assert sorted(os.listdir(store.root)) == ["job"]


def test_a_change_is_one_line_and_is_read_back(store: JobStore, files: JobFiles) -> None:
    files.tasks["b"].status = TaskStatus.RUNNING
    files.commit(files.tasks["b"])
    assert len(lines(files.path / "journal.jsonl")) == 2
    assert store.open("job").tasks == files.tasks


def test_what_is_written_whole_differs_by_few_lines(files: JobFiles) -> None:
    before = lines(files.path / "tasks.json")
    files.tasks["b"].status = TaskStatus.FAILED
    files.tasks["b"].error = "why"
    files.commit(files.tasks["b"])
    files.write()
    changes = [line for line in difflib.ndiff(before, lines(files.path / "tasks.json")) if line[0] in "+-"]
    assert len(changes) == 4


def test_after_a_write_the_journal_begins_anew(store: JobStore, files: JobFiles) -> None:
    for number in range(3):
        files.tasks["a"].tries = number
        files.commit(files.tasks["a"])
    files.write()
    files.tasks["c"].tries = 7
    files.commit(files.tasks["c"])
    assert len(lines(files.path / "journal.jsonl")) == 2
    assert [each.tries for each in store.open("job").tasks.values()] == [2, 0, 7]


def test_a_line_that_somebody_died_over_does_not_count(store: JobStore, files: JobFiles) -> None:
    files.tasks["a"].tries = 1
    files.commit(files.tasks["a"])
    files.tasks["a"].tries = 2
    files.commit(files.tasks["a"])
    journal = files.path / "journal.jsonl"
    data = journal.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, len(data) - 10, len(data) - 1):
        journal.write_bytes(data[:cut])
        assert store.open("job").tasks["a"].tries == 1
    journal.write_bytes(b"")
    assert store.open("job").tasks["a"].tries == 0


def test_work_goes_on_after_somebody_died(store: JobStore, files: JobFiles) -> None:
    files.tasks["a"].tries = 1
    files.commit(files.tasks["a"])
    again = store.open("job")
    again.tasks["b"].tries = 5
    again.commit(again.tasks["b"])
    assert [each.tries for each in store.open("job").tasks.values()] == [1, 5, 0]


def test_tasks_that_are_checked_out_count_and_the_journal_does_not(store: JobStore, files: JobFiles) -> None:
    files.tasks["a"].status = TaskStatus.COMPLETED
    files.commit(files.tasks["a"])
    files.write()
    checkpoint = (files.path / "tasks.json").read_bytes()
    files.tasks["b"].status = TaskStatus.COMPLETED
    files.commit(files.tasks["b"])
    files.write()
    files.tasks["c"].status = TaskStatus.COMPLETED
    files.commit(files.tasks["c"])
    (files.path / "tasks.json").write_bytes(checkpoint)
    assert [each.status.value for each in store.open("job").tasks.values()] == ["completed", "pending", "pending"]


def test_a_death_between_the_two_files_and_the_journal_loses_nothing(
    store: JobStore, files: JobFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.tasks["a"].status = TaskStatus.COMPLETED
    files.commit(files.tasks["a"])
    monkeypatch.setattr(Job, "to_json", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.write()  # tasks.json is new, state.json is not, and the journal is that of the former tasks.json
    monkeypatch.undo()
    assert store.open("job").tasks["a"].status is TaskStatus.COMPLETED


def test_what_is_due_is_written_when_it_is_worth_its_while(files: JobFiles) -> None:
    files.write()
    assert files.due_s() is None
    files.tasks["a"].tries = 1
    files.commit(files.tasks["a"])
    due_s = files.due_s()
    assert due_s is not None
    files._due_s = 0.0
    files.write_if_due()
    assert files.due_s() is None
    assert orjson.loads((files.path / "tasks.json").read_bytes())[0]["tries"] == 1


def test_what_others_write_or_remove_is_noticed_and_our_own_is_not(files: JobFiles) -> None:
    files.set_state(JobState.WORKING)
    assert not files.was_changed()
    (files.path / "tasks.json").write_text("[]")
    assert files.was_changed()
    files.load()
    assert not files.was_changed()
    (files.path / "state.json").unlink()
    assert files.was_changed()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("tasks.json", "[", "tasks.json is not JSON"),
        ("tasks.json", "", "tasks.json is not JSON"),
        ("tasks.json", "{}", "job/tasks.json must be a list of tasks"),
        ("tasks.json", '[{"id": "a", "command": 5}]', "job/tasks.json, task 'a', field 'command'"),
        ("tasks.json", '[{"id":"a","command":"b"},{"id":"a","command":"b"}]', "there are two tasks 'a'"),
        ("state.json", "[]", "job/state.json: a job must be an object, not a list"),
        ("state.json", '{"state": 5}', "job/state.json, field 'state'"),
    ],
)
def test_files_that_can_not_be_understood_are_refused_and_left(
    store: JobStore, files: JobFiles, name: str, text: str, says: str
) -> None:
    (files.path / name).write_text(text)
    with pytest.raises(JobError) as refused:
        store.open("job")
    assert says in str(refused.value)
    assert (files.path / name).read_text() == text


def test_files_that_are_missing_are_named(store: JobStore, files: JobFiles) -> None:
    (files.path / "tasks.json").unlink()
    with pytest.raises(JobError, match=r"job/tasks\.json is missing"):
        store.open("job")
    with pytest.raises(JobError, match="there is no job nobody below"):
        store.open("nobody")
    with pytest.raises(JobError, match="cannot be a job's name"):
        store.open("../job")


def test_of_a_key_there_is_one_task(files: JobFiles) -> None:
    assert [each.id for each in files.add([task("d", key="k"), task("e", key="k"), task("f")], "here")] == ["d", "f"]
    assert files.add([task("g", key="k")], "here") == []
    assert files.keys == {"k": "d"}


def test_of_tasks_that_contradict_each_other_none_is_taken(files: JobFiles) -> None:
    with pytest.raises(JobError, match="here: there are two tasks 'a'"):
        files.add([task("d", key="k"), task("a")], "here")
    with pytest.raises(JobError, match="which is not a task of the job"):
        files.add([task("d"), task("e", dependencies=["x"])], "here")
    assert list(files.tasks) == ["a", "b", "c"]
    assert files.keys == {}


def test_what_is_asked_comes_in_its_order_and_what_can_not_be_understood_with_its_fault(
    store: JobStore, files: JobFiles
) -> None:
    store.ask("job", "queue", [{"id": "d"}])
    (files.path / "inbox" / "00.json").write_text("nonsense")
    store.ask("job", "cancel")
    asks = files.asks()
    assert [(ask.action, ask.tasks) for ask in asks] == [("", []), ("queue", [{"id": "d"}]), ("cancel", [])]
    assert "is not JSON" in (asks[0].fault or "")
    assert (files.path / "inbox" / "00.json").exists()  # who only looks renames nothing
    with pytest.raises(JobError, match="there is no job nobody"):
        store.ask("nobody", "cancel")


def test_a_disk_that_takes_nothing_is_an_error_and_changes_nothing(
    store: JobStore, files: JobFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.open("job").tasks

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    files.tasks["a"].tries = 1
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StateDirError, match="No space left"):
        files.commit(files.tasks["a"])
    with pytest.raises(StateDirError, match="No space left"):
        files.write()
    monkeypatch.undo()
    assert store.open("job").tasks == before
    files.commit(files.tasks["a"])
    files.close()
    assert store.open("job").tasks["a"].tries == 1


def test_ids_and_keys_are_known_without_reading_all_of_each_task(store: JobStore, files: JobFiles) -> None:
    [new] = files.add([task("d", key="k")], "here")
    files.commit(new)
    files.tasks["a"].status = TaskStatus.RUNNING
    files.commit(files.tasks["a"])
    assert store.files("job").outline() == ({"a", "b", "c", "d"}, {"k": "d"})
    assert files.outline() == store.files("job").outline()


def test_who_reads_while_the_files_are_written_sees_all_that_was_there(store: JobStore, files: JobFiles) -> None:
    def write() -> None:
        for number in range(300):
            files.commit(*files.add([task(f"t{number}")], "here"))
            if not number % 3:
                files.write()

    writer = os.fork()
    if not writer:
        code = 1
        try:
            write()
            code = 0
        finally:
            os._exit(code)
    seen, ended = 0, 0
    while not ended:
        ended, status = os.waitpid(writer, os.WNOHANG)
        now = store.open("job")
        assert list(now.tasks) == ["a", "b", "c", *(f"t{number}" for number in range(len(now.tasks) - 3))]
        assert seen <= len(now.tasks)
        seen = len(now.tasks)
    assert (status, seen) == (0, 303)


def test_files_that_somebody_has_changed_are_not_overwritten(store: JobStore, files: JobFiles) -> None:
    files.commit(*files.add([task("d")], "here"))
    (files.path / "tasks.json").write_text('[{"id": "mine", "command": "true"}]')
    with pytest.raises(JobChangedError):
        files.write_if_due()
    assert list(store.open("job").tasks) == ["mine"]


@pytest.mark.parametrize("name", OF_MANAGER)
def test_a_job_with_the_name_of_a_file_of_the_managers_is_left_alone(yard: Yard, name: str) -> None:
    job = {"name": name, "tasks": [{"id": "a", "command": "true"}]}
    (yard.folder / "job.json").write_text(json.dumps(job))
    assert f"'{name}' cannot be a job's name" in yard.call("submit", "job.json", code=2)
    yard.submit({"id": name, "command": "true"})  # a task may
    folder = yard.store.root / name
    shutil.copytree(yard.store.folder("job"), folder)  # as with a repository
    there = sorted(os.listdir(folder))
    for command in (("trust", name), ("run", name), ("job", name)):
        assert f"'{name}' cannot be a job's name" in yard.call(*command, code=2)
    assert f"'{name}' cannot be a job's name" in yard.call("jobs")
    assert f"{folder} is a folder, and the manager needs a file there" in yard.call("start", "--detach", code=2)
    if name != LOG:
        with pytest.raises(StateDirError, match="is a folder, and the manager needs a file there"):
            yard.finish()
    yard.call("run", "job")
    assert sorted(os.listdir(folder)) == there
    yard.call("remove", "--force", name)
