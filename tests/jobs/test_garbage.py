"""Whatever stands in the files of a job hurts that job, file or request only: never the manager, never another job."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from air_executor import jsontext
from air_executor.errors import AirExecutorError, JobError
from air_executor.jobs import api, inbox, lookout
from air_executor.jobs.fields import kinds
from air_executor.jobs.manager import Manager, loop
from air_executor.jobs.manager.outcomes import Outcomes
from air_executor.jobs.model import Job, JobState, Task, TaskStatus
from air_executor.jobs.queue import MAX_TASK_BYTES, queue_in_job
from air_executor.jobs.store import JobStore
from air_executor.observe.jobs import summaries
from tests.support.airflow_env import config
from tests.support.pretend import PretendedBackend

#: This many steps a manager makes before it is decided that it does nothing more.
STEPS = 40


class Pretended:
    """A state directory, and managers whose tasks are no processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / ".air-executor"
        self.store = JobStore(self.state_dir)
        self.backend: PretendedBackend
        self.steps = 0
        self.held: set[str] = set()
        self.files: dict[str, dict[str, bytes]] = {}

    def submit(self, name: str, *tasks: dict[str, Any], **options: Any) -> None:
        api.submit(name, tasks, state_dir=self.state_dir, folder=self.folder, **options)

    def work(self, at: Callable[[int], None] = lambda _: None, steps: int = STEPS) -> Manager:
        """Let a manager make this many steps. ``at`` is called before each with its number."""

        options = config(self.state_dir)
        self.backend = PretendedBackend(options)
        self.backend.held, self.backend.files = self.held, self.files
        manager = Manager(options, poll_s=0.001, heeds_signals=False, backend=self.backend)
        count = iter(range(steps + 1))

        def until() -> bool:
            self.backend.held = self.held
            at(step := next(count))
            return step >= steps

        manager.serve(until=until)
        return manager

    def state(self, name: str) -> JobState:
        return self.store.open(name).job.state


@pytest.fixture(autouse=True)
def _pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LocalBackend", PretendedBackend)
    monkeypatch.setattr(lookout, "_LOOK_S", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no machine loses its power here
    for name in [each for each in os.environ if each.startswith("AIR_EXECUTOR_") and "PRIVATE" not in each]:
        monkeypatch.delenv(name)


@pytest.fixture
def pretended(tmp_path: Path) -> Pretended:
    return Pretended(tmp_path)


TWO = ({"id": "a", "command": "true"}, {"id": "b", "command": "true", "dependencies": ["a"]})

# Any bytes, at any moment


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MOMENTS = st.sampled_from(["0001-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00Z", "2026", "24:00"])
HUGE = st.sampled_from([2**63, 2**64 - 1, 2**64, 10**30, -1, 0, 10_000_000])
VALUES = (
    JSON | MOMENTS | HUGE | st.sampled_from([[], {}, "a", "b", ["a"], ["b"], ["x"], "running", "completed", "failed"])
)


def _dumps(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


def _task(fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": "a", "command": "true", **fields}


TASKS = st.dictionaries(st.sampled_from([*kinds(Task), "x-more"]), VALUES, max_size=4).map(_task)
JOBS = st.dictionaries(st.sampled_from([*kinds(Job), "x-more"]), VALUES, max_size=4)
ASKS = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["queue", "cancel", "retry", "reset", "pause", "resume", "dance"]) | JSON,
        "tasks": st.lists(TASKS | JSON | st.sampled_from(["a", "b"]), max_size=3) | JSON,
    }
)
DEEP = st.sampled_from([b"[" * 300 + b"]" * 300, b'{"a":' * 2000 + b"1" + b"}" * 2000, b"[" * 100_000])
DOCUMENTS = JSON | JOBS | TASKS | st.lists(TASKS, max_size=3) | ASKS
LINES = st.lists(DOCUMENTS.map(_dumps) | st.binary(max_size=20), max_size=4).map(
    lambda lines: b"\n".join([*lines, b""])
)
GARBAGE = st.binary(max_size=100) | DOCUMENTS.map(_dumps) | LINES | DEEP

IN_JOB = ["state.json", "tasks.json", "journal.jsonl", "inbox/1.json", "lock", ".gitignore", "logs/a.log", "logs/b.log"]
IN_RUN = ["queued.jsonl", "result.json"]


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from([*IN_JOB, *IN_RUN, "../manager.json"]), data=GARBAGE, moment=st.integers(0, 12))
@example(place="queued.jsonl", data=b"garbage\n", moment=0)
@example(place="queued.jsonl", data=b"5\n", moment=0)
@example(place="queued.jsonl", data=b'{"id": []}\n', moment=0)
@example(place="inbox/1.json", data=b'{"action": "retry", "tasks": [{}]}', moment=4)
@example(place="inbox/1.json", data=b'{"action": "queue", "tasks": "abc"}', moment=4)
@example(place="tasks.json", data=b'[{"id":"a","command":"b","retry_at":"0001-01-01T00:00:00"}]', moment=0)
@example(place="tasks.json", data=b'[{"id":"a","command":"b","tries":18446744073709551615}]', moment=0)
@example(place="tasks.json", data=b'[{"id":"a","command":"b","status":"running","tries":0,"run_id":"x"}]', moment=0)
@example(place="state.json", data=b'{"max_runners": 18446744073709551615}', moment=3)
@example(place="journal.jsonl", data=b"garbage", moment=3)
def test_any_bytes_in_any_file_at_any_moment_hurt_that_job_only(
    caplog: pytest.LogCaptureFixture, place: str, data: bytes, moment: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, caplog.at_level(logging.CRITICAL, "air_executor"):
        here = Pretended(Path(folder))
        here.submit("bad", *TWO)
        here.submit("good", *TWO)
        here.held = {"bad/b"}
        if place in IN_RUN:
            here.files["bad/a"] = {place: data}

        def at(step: int) -> None:
            if step == moment and place not in IN_RUN:
                path = here.store.root / "bad" / place
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
                here.store.announce("bad")
            if step == 14:
                here.backend.finish_all()

        here.work(at)
        assert here.state("good") is JobState.COMPLETED
        assert [label for label in here.backend.started if label.startswith("good/")] == ["good/a", "good/b"]
        # Nor does it end the next one, or who looks.
        here.submit("next", *TWO)
        here.held = set()
        here.work(steps=20)
        assert here.state("next") is JobState.COMPLETED
        assert {each.name for each in summaries(here.state_dir)} >= {"good", "next"}
        try:
            here.store.open("bad")
        except AirExecutorError as error:
            assert str(error)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "loop", "huge"])
@pytest.mark.parametrize(
    "place", ["state.json", "tasks.json", "journal.jsonl", "inbox/1.json", "lock", "inbox", "logs"]
)
def test_what_is_no_file_hurts_that_job_only(pretended: Pretended, place: str, kind: str) -> None:
    pretended.submit("bad", *TWO)
    pretended.submit("good", *TWO)
    path = pretended.store.root / "bad" / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    pretended.work()
    assert pretended.state("good") is JobState.COMPLETED
    assert {each.name for each in summaries(pretended.state_dir)} == {"bad", "good"}


@pytest.mark.parametrize("name", ["my job", ".hidden", "caf\udce9", "x" * 255, "a\nb"])
def test_a_folder_whose_name_is_no_jobs_hurts_nobody(pretended: Pretended, name: str) -> None:
    pretended.submit("good", *TWO)
    folder = pretended.store.root / name
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    (folder / "tasks.json").write_text("[]")
    pretended.work()
    assert pretended.state("good") is JobState.COMPLETED
    shown = [each.name for each in summaries(pretended.state_dir)]
    jsontext.dumps(shown).decode()
    assert len(shown) == (1 if name.startswith(".") else 2)


# What becomes of it


def test_a_task_that_leaves_garbage_as_what_it_queued_fails_and_says_which_line(pretended: Pretended) -> None:
    pretended.submit("job", *TWO)
    pretended.files["job/a"] = {"queued.jsonl": b'{"id": "c", "command": "true"}\nnonsense\n'}
    pretended.work()
    job = pretended.store.open("job")
    assert job.job.state is JobState.FAILED
    assert job.tasks["a"].status is TaskStatus.FAILED
    assert "queued.jsonl, line 2, is not JSON" in (job.tasks["a"].error or "")
    assert "c" not in job.tasks


def test_a_request_that_can_not_be_followed_says_so_to_who_asked(
    pretended: Pretended, caplog: pytest.LogCaptureFixture
) -> None:
    pretended.submit("job", *TWO)
    pretended.held = {"job/a"}
    folder = pretended.store.folder("job") / "inbox"
    asked: list[Path] = []

    def at(step: int) -> None:
        if step == 5:
            folder.mkdir(exist_ok=True)
            (folder / "1.json").write_text('{"action": "retry", "tasks": [{}]}')
            (folder / "2.json").write_bytes(b"\xff")
            asked.append(pretended.store.ask("job", "retry"))

    pretended.work(at)
    assert inbox.asks(folder) == []
    assert "tasks must be a list of ids" in str(inbox.refusal(folder / "1.json"))
    assert (folder / "2.json.unreadable").read_bytes() == b"\xff"
    assert "tasks of the job are running" in str(inbox.refusal(asked[0]))
    assert inbox.refusal(asked[0]) is None  # once
    assert "a request is refused" in caplog.text


def test_refused_requests_do_not_pile_up(pretended: Pretended) -> None:
    pretended.submit("job", *TWO)
    pretended.held = {"job/a"}
    pretended.work(lambda _: pretended.store.ask("job", "retry") and None, steps=150)
    assert len(os.listdir(pretended.store.folder("job") / "inbox")) <= 102


def test_an_error_that_nobody_thought_of_fails_the_job_and_says_where(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretended.submit("bad", *TWO)
    pretended.submit("good", *TWO)
    settle = Outcomes.record

    def fail(self: Outcomes, job: Any, task: Any, record: Any) -> None:
        if job.name == "bad":
            raise KeyError("nobody thought of this")
        settle(self, job, task, record)

    monkeypatch.setattr(Outcomes, "record", fail)
    pretended.work()
    assert pretended.state("good") is JobState.COMPLETED
    job = pretended.store.open("bad").job
    assert job.state is JobState.FAILED
    assert job.error == "its manager met an error: KeyError: 'nobody thought of this'"
    assert "Traceback" in caplog.text
    monkeypatch.setattr(Outcomes, "record", settle)
    # When it is mended, it goes on.
    pretended.store.ask("bad", "retry")
    pretended.work()
    assert pretended.state("bad") is JobState.COMPLETED


def test_what_the_journal_says_behind_a_spoilt_line_holds(
    pretended: Pretended, caplog: pytest.LogCaptureFixture
) -> None:
    pretended.submit("job", *TWO)
    files = pretended.store.open("job")
    for task_id in ("a", "b"):
        files.tasks[task_id].status = TaskStatus.COMPLETED
        files.commit(files.tasks[task_id])
    journal = files.path / "journal.jsonl"
    head, first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(head + first[:5] + b"\0\0" + first[7:] + second)
    files.abandon()
    assert [task.status.value for task in pretended.store.open("job").tasks.values()] == ["pending", "completed"]
    pretended.work()
    assert pretended.backend.started == ["job/a"]
    assert "its journal can't be understood in line 2" in caplog.text
    assert len(list(files.path.glob("journal.jsonl.unreadable-*"))) == 1
    assert pretended.state("job") is JobState.COMPLETED


@pytest.mark.parametrize(
    "line", [b'{"id":"c","command":"true","dependencies":["x"]}', b'{"id":"a","command":"true","dependencies":["b"]}']
)
def test_a_journal_with_dependencies_that_can_not_be_is_refused(pretended: Pretended, line: bytes) -> None:
    pretended.submit("job", *TWO)
    files = pretended.store.open("job")
    files.commit(files.tasks["b"])
    files.abandon()
    with (files.path / "journal.jsonl").open("ab") as journal:
        journal.write(line + b"\n")
    with pytest.raises(JobError, match=r"job/journal\.jsonl"):
        pretended.store.open("job")


def test_both_files_are_kept_when_somebody_spoils_them(pretended: Pretended) -> None:
    pretended.submit("job", *TWO)
    pretended.held = {"job/a"}
    folder = pretended.store.folder("job")

    def at(step: int) -> None:
        if step == 5:
            (folder / "state.json").write_text("{ mine")
        if step == 20:
            pretended.backend.finish_all()
            pretended.held = set()

    pretended.work(at, steps=60)
    [kept] = folder.glob("state.json.unreadable-*")
    assert kept.read_text() == "{ mine"
    assert pretended.state("job") is JobState.COMPLETED


def test_a_checkout_that_makes_the_files_anew_is_no_removal(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("air_executor.jobs.manager.active_jobs._BLOCKED_S", 600.0)
    pretended.submit("job", *TWO)
    pretended.held = {"job/a"}
    folder = pretended.store.folder("job")
    saved: list[bytes] = []

    def at(step: int) -> None:
        if step == 5:
            saved.append((folder / "state.json").read_bytes())
            (folder / "state.json").unlink()
        if step == 8:
            (folder / "state.json").write_bytes(saved[0])
            pretended.store.announce("job")
        if step == 10:
            assert pretended.backend._running
            pretended.backend.finish_all()
            pretended.held = set()

    pretended.work(at, steps=60)
    assert pretended.backend.started.count("job/a") == 1


def test_who_waits_for_a_job_that_can_not_be_understood_is_told(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_CHECK_S", 0.0)
    monkeypatch.setattr(api, "_LOOK_S", 0.0)
    pretended.submit("job", *TWO)
    (pretended.store.folder("job") / "tasks.json").write_text("[{")
    with pytest.raises(JobError, match=r"tasks\.json is not JSON"):
        api.wait("job", timeout_s=60, state_dir=pretended.state_dir)


# What is too large, or odd


def test_what_is_too_large_for_a_runner_is_refused_at_once_with_its_name(pretended: Pretended) -> None:
    large = {"id": "large", "function": "math:hypot", "arguments": {"x": "y" * (MAX_TASK_BYTES + 1)}}
    with pytest.raises(JobError, match=r"job job, task 'large': its command, arguments and variables take 4\.2 MB"):
        pretended.submit("job", large)
    pretended.submit("job", *TWO)
    with pytest.raises(JobError, match="task 'large'"):
        api.queue_tasks([large], job="job", state_dir=pretended.state_dir)


def test_what_is_too_large_in_a_file_fails_the_task_once(pretended: Pretended) -> None:
    pretended.submit("job", *TWO, {"id": "c", "command": "true"})
    path = pretended.store.folder("job") / "tasks.json"
    tasks = orjson.loads(path.read_bytes())
    tasks[0] |= {"args": ["x" * (9 << 20)], "retries": 3}
    path.write_bytes(orjson.dumps(tasks))
    pretended.work()
    job = pretended.store.open("job")
    assert job.job.state is JobState.FAILED
    assert "can't be handed to a runner: a message of" in (job.tasks["a"].error or "")
    assert (job.tasks["a"].tries, job.tasks["c"].status) == (1, TaskStatus.COMPLETED)


def test_garbage_among_what_a_task_has_queued_is_said_to_who_queues_more(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended.submit("job", *TWO)
    pretended.files["job/a"] = {"queued.jsonl": b"nonsense\n"}
    pretended.work()
    run_id = pretended.store.open("job").tasks["a"].run_id or ""
    variables = {"STATE_DIR": str(pretended.state_dir), "JOB": "job", "TASK": "a", "RUN": run_id}
    with pytest.raises(JobError, match=r"queued\.jsonl, line 1, is not JSON"):
        queue_in_job([{"command": "true"}], {f"AIR_EXECUTOR_{name}": value for name, value in variables.items()})
