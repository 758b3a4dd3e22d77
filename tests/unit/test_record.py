"""The record of a run: its states, and its document."""

from __future__ import annotations

import dataclasses
import uuid

import orjson
import pytest

from air_executor.errors import IllegalTransitionError, RecordError
from air_executor.runs.record import LATER, VERSION, RunRecord, RunState, check_id, queued
from tests.unit.documents import identity, record

LEGAL = {
    "queued": {"starting", "failed", "killed", "lost"},
    "starting": {"running", "failed", "killed", "lost"},
    "running": {"succeeded", "failed", "killed", "lost"},
    "succeeded": set(),
    "failed": set(),
    "killed": set(),
    "lost": set(),
}
MOMENTS = {"queued": "queued_at", "starting": "starting_at", "running": "running_at"}
PAIRS = [(before, after) for before in LEGAL for after in LEGAL]
SOME_ID = "6f1f6a0e-6a4c-4c1a-9a53-2b7f5d0c8e11"
NOT_IDS = ["", ".", "..", "../x", "/x", "x", "1", "\0", "a" * 31, "g" * 32, f"{SOME_ID}/..", f"../{SOME_ID}"]


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair[1] in LEGAL[pair[0]]])
def test_a_run_can_take_each_state_that_follows_and_the_moment_is_noted(before: str, after: str) -> None:
    old = record(RunState(before), ended_at=None)
    new = old.advance(RunState(after), reason="because")
    assert new.state is RunState(after)
    assert new.reason == "because"
    moment = MOMENTS.get(after, "ended_at")
    assert getattr(old, moment) is None
    assert getattr(new, moment).endswith("+00:00")
    assert old.state is RunState(before), "the former record is not touched"


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair[1] not in LEGAL[pair[0]]])
def test_a_run_can_take_no_other_state_and_the_error_names_both(before: str, after: str) -> None:
    old = record(RunState(before))
    with pytest.raises(IllegalTransitionError, match=f"{old.id} is {before} and can not become {after}"):
        old.advance(RunState(after))


@pytest.mark.parametrize("text", ["a" * 9000, "字" * 3000, "a" + "😀" * 2500, "\udc80" * 3000])
def test_a_long_reason_is_cut_by_its_bytes(text: str) -> None:
    ended = record(RunState.RUNNING).advance(RunState.FAILED, reason=text, exception=text)
    for said in (ended.reason, ended.exception):
        assert said is not None and said.endswith(" [shortened]")
        kept = said.removesuffix(" [shortened]")
        assert text.startswith(kept) and len(kept.encode()) <= 8000
    short = text[:2000]
    assert record(RunState.RUNNING).advance(RunState.FAILED, reason=short).reason == short


def test_ends_are_the_states_that_nothing_follows() -> None:
    assert {state.value for state in RunState if state.is_end} == {name for name in LEGAL if not LEGAL[name]}


@pytest.mark.parametrize("state", list(RunState))
def test_a_record_comes_back_from_its_document_as_it_was(state: RunState) -> None:
    full = record(
        state,
        who=identity(team="blue", queue="gpu", name='Grüße, "quoted"\n\u2028'),
        limits={"memory": 1 << 40, "environment": ["A", "B"], "timeout": 0.5},
        host="here",
        boot_id="boot",
        pid=1,
        pid_started=1.25,
        task_pid=2,
        log_file="log",
        outcome="success",
        delivered=True,
        exit_code=0,
        signal="SIGTERM",
        reason="ends with \\ and \u00e9",
        peak_memory_bytes=0,
        cpu_time_s=0.0,
    )
    assert RunRecord.from_json(full.to_json()) == full


def test_a_record_with_nothing_set_comes_back_as_it_was() -> None:
    bare = RunRecord(
        id=str(uuid.uuid4()),
        state=RunState.QUEUED,
        identity=identity(dag_id=None, task_id=None, dag_run_id=None, map_index=None, try_number=None),
    )
    assert RunRecord.from_json(bare.to_json()) == bare
    assert b"null" not in bare.to_json()


def test_a_document_is_always_in_the_same_order() -> None:
    one = record(RunState.FAILED, reason="why", exit_code=1, pid=5)
    other = dataclasses.replace(RunRecord.from_json(one.to_json()), pid=None, reason=None)
    other = dataclasses.replace(other, reason="why", pid=5)
    assert other.to_json() == one.to_json()
    names = list(orjson.loads(one.to_json()))
    assert names[:4] == ["version", "id", "state", "identity"]
    assert names[4:] == [field.name for field in dataclasses.fields(RunRecord) if field.name in names[4:]]


def test_a_document_is_made_for_reading() -> None:
    text = record().to_json().decode()
    assert text.startswith('{\n  "version": 1,\n  "id": ')
    assert text.endswith("}\n")


def changed(**changes: object) -> bytes:
    document = orjson.loads(record(RunState.RUNNING).to_json())
    return orjson.dumps({name: value for name, value in {**document, **changes}.items() if value is not ...})


def test_a_document_of_a_newer_version_is_refused_by_its_number() -> None:
    with pytest.raises(RecordError, match=f"version is {VERSION + 1}"):
        RunRecord.from_json(changed(version=VERSION + 1, something_new=1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"1",
        b'"text"',
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"\0" * 100,
        changed()[:-10],
        changed() + b"x",
        changed(version=...),
        changed(version=None),
        changed(version="1"),
        changed(id=...),
        changed(state=...),
        changed(state="sleeping"),
        changed(state=None),
        changed(state=[]),
        changed(identity=...),
        changed(identity=None),
        changed(identity="task"),
        changed(identity={}),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_what_is_not_a_document_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError):
        RunRecord.from_json(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queued_at", "yesterday"),
        ("queued_at", 5),
        ("ended_at", "2026-01-01T00:00:00"),
        ("reported_at", "9999-99-99"),
        ("pid", "abc"),
        ("pid", 0),
        ("pid", -1),
        ("task_pid", 0),
        ("task_pid", False),
        ("exit_code", True),
        ("pid_started", []),
        ("limits", 5),
        ("limits", None),
        ("gpus", "0"),
        ("log_file", 7),
        ("reason", {}),
        ("delivered", "yes"),
        ("cpu_time_s", "x"),
        ("peak_memory_bytes", 1.5),
        ("identity", {"kind": "task", "workload_id": SOME_ID, "name": 5}),
        ("identity", {"kind": "task", "workload_id": SOME_ID, "name": "n", "map_index": "first"}),
    ],
)
def test_a_field_of_another_type_is_refused_with_its_name(name: str, value: object) -> None:
    wrong = name if name != "identity" else "name|map_index"
    with pytest.raises(RecordError, match=wrong):
        RunRecord.from_json(changed(**{name: value}))


def test_what_another_version_has_written_into_a_document_is_kept_when_it_is_rewritten() -> None:
    document = orjson.loads(changed(colour="red", sizes={"a": [1]}))
    document["identity"]["planet"] = "Mars"
    document["limits"] = {"speed": 5, LATER: {"hue": 3}}
    one = RunRecord.from_json(orjson.dumps(document)).advance(RunState.SUCCEEDED, exit_code=0)
    rewritten = orjson.loads(one.to_json())
    assert (rewritten["colour"], rewritten["sizes"], rewritten["hue"]) == ("red", {"a": [1]}, 3)
    assert rewritten["identity"] == document["identity"]
    assert rewritten["limits"] == {"speed": 5}
    assert rewritten["state"] == "succeeded"
    assert RunRecord.from_json(one.to_json()) == one


@pytest.mark.parametrize("text", NOT_IDS)
def test_what_is_not_a_uuid_is_no_id(text: str) -> None:
    with pytest.raises(RecordError, match="is not a run or workload id"):
        check_id(text)
    with pytest.raises(RecordError):
        queued(text, identity(), limits={}, log_file=None)
    with pytest.raises(RecordError):
        RunRecord.from_json(changed(id=text))


@pytest.mark.parametrize("value", [None, 5, 1.5, [], {}, b"x" * 16])
def test_what_is_not_even_text_is_no_id(value: object) -> None:
    with pytest.raises(RecordError):
        check_id(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x", "../x"])
def test_a_workload_id_that_is_not_a_uuid_is_refused(text: str) -> None:
    document = orjson.loads(changed())
    document["identity"]["workload_id"] = text
    with pytest.raises(RecordError):
        RunRecord.from_json(orjson.dumps(document))


def test_an_id_in_another_spelling_becomes_the_canonical_one() -> None:
    run_id = str(uuid.uuid4())
    for spelling in (run_id, run_id.upper(), run_id.replace("-", ""), f"{{{run_id}}}", f"urn:uuid:{run_id}"):
        assert check_id(spelling) == run_id
        assert queued(spelling, identity(), limits={}, log_file=None).id == run_id


def test_a_label_says_what_ran_in_a_few_words() -> None:
    assert record().label == "some_dag.some_task"
    assert record(who=identity(map_index=0)).label == "some_dag.some_task[0]"
    assert record(who=identity(task_id=None, name="on_failure")).label == "some_dag.on_failure"
    assert record(who=identity(dag_id=None, name="connection test x")).label == "connection test x"
