"""What an executor makes of what it sees of its workflows in Temporal."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.client import WorkflowQueryFailedError

from air_executor.runs.ordered import OrderedRuns
from air_executor.runs.record import Identity, queued
from air_executor.temporal import cards
from air_executor.temporal.asking import Beat, Known, RunStatus, Seen
from air_executor.temporal.dag_runs import DagRuns
from air_executor.temporal.execution import AGAIN
from air_executor.temporal.link import Link, Order, Signal
from air_executor.temporal.settings import Settings
from air_executor.temporal.watch import LiveRun, Watch

WHO = Identity(
    kind="task", name="t", workload_id=str(uuid.UUID(int=1)), dag_id="d", dag_run_id="r", task_id="t", try_number=1
)
ROOT = cards.workflow_id(WHO)
NEXT = f"{ROOT}~2"


@dataclass
class Execution:
    """An execution of a workflow: the runs that it has, those of them that it offers, and its successor."""

    id: str
    runs: set[str] = field(default_factory=set)
    is_open: bool = True
    next_id: str | None = None
    beats: dict[str, Beat] = field(default_factory=dict)
    is_mute: bool = False
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    takeovers: int = 0
    others: set[str] = field(default_factory=set)
    """The runs that another executor follows."""


class FakeLink:
    """Temporal, with these workflows. The last execution of each is the one that counts."""

    queue = "executor"
    is_away = False

    def __init__(self, **executions: Execution) -> None:
        self.workflows = {{"root": ROOT, "next": NEXT}[name]: each for name, each in executions.items()}
        self.sent: list[Any] = []
        self.unserved: set[str] = set()
        self.asked: list[list[str]] = []

    async def look(self, workflow_id: str, execution: str) -> Seen | None:
        found = self.workflows.get(workflow_id)
        if found is None or found.id != execution:
            return None
        has_it = found.runs - found.ends.keys() if found.is_open else set[str]()
        return Seen(found.is_open, has_it, found.beats, found.takeovers)

    async def known(self, workflow_id: str, execution: str | None = None) -> Known | None:
        found = self.workflows.get(workflow_id)
        if found is None or execution not in (None, found.id):
            return None
        if found.is_mute:
            raise WorkflowQueryFailedError("it can't be replayed")
        return Known(found.runs, found.next_id)

    async def status(self, workflow_id: str, execution: str, run_ids: list[str]) -> list[RunStatus]:
        found = self.workflows[workflow_id]
        assert execution == found.id and run_ids
        self.asked.append(run_ids)
        return [
            RunStatus(each, "another" if each in found.others else self.queue, found.ends.get(each))
            for each in run_ids
            if each in found.runs
        ][:2]

    async def execution(self, workflow_id: str) -> str | None:
        return None if (found := self.workflows.get(workflow_id)) is None else found.id

    async def served(self, queues: set[str]) -> set[str]:
        return queues - self.unserved

    def send(self, message: Any) -> None:
        self.sent.append(message)


@dataclass
class Seeing:
    watch: Watch
    live: dict[str, LiveRun]
    link: FakeLink
    dag_runs: DagRuns = field(default_factory=DagRuns)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    waits: list[tuple[str, str | None]] = field(default_factory=list)

    def look(self) -> None:
        asyncio.run(self.watch.look())


@pytest.fixture
def see() -> Callable[..., Seeing]:
    def make(live: dict[str, LiveRun], verdict: str = AGAIN, **executions: Execution) -> Seeing:
        def end(ends: list[dict[str, Any]]) -> None:
            for each in ends:
                seeing.ends[each["id"]] = each["end"]
                live.pop(each["id"])

        def is_on(run_id: str, host: str) -> None:
            seeing.hosts[run_id] = host

        link, dag_runs = FakeLink(**executions), DagRuns()
        watch = Watch(
            cast(Link, link),
            Settings("nowhere", "default", "airflow", ("a key",)),
            lambda: dict(live),
            end,
            is_on,
            lambda run_id, why: seeing.waits.append((run_id, why)),
            dag_runs.add_successor,
            lambda *_: verdict,
            lambda *_: True,
        )
        seeing = Seeing(watch, live, link, dag_runs)
        return seeing

    return make


def followed(*run_ids: str) -> dict[str, LiveRun]:
    """Return runs that were ordered in the first execution of the DAG run's workflow."""
    order = Order(ROOT, {}, {}, 0, lambda _: None)
    return {run_id: LiveRun(WHO, ROOT, order, execution="one", is_followed=True) for run_id in run_ids}


def adopted(*run_ids: str) -> dict[str, LiveRun]:
    """Return such runs of an executor that has taken them over."""
    return {run_id: dataclasses.replace(run, order=None) for run_id, run in followed(*run_ids).items()}


def test_a_run_that_was_passed_on_is_looked_for_where_it_is(see: Callable[..., Seeing]) -> None:
    beat = Beat(1.0, "host-1")
    seeing = see(
        followed("here", "there", "on its way"),
        root=Execution("one", {"here"}, next_id=NEXT),
        next=Execution("two", {"there"}, beats={"there": beat}),
    )
    seeing.look()
    assert seeing.dag_runs.workflow_id(WHO) == NEXT  # later orders need no way round
    assert {run_id: run.workflow_id for run_id, run in seeing.live.items()} == {
        "here": ROOT,
        "there": NEXT,  # where a request to stop it goes from now on
        "on its way": ROOT,
    }
    seeing.look()
    assert seeing.hosts == {"there": "host-1"} and seeing.live["there"].last_beat_s() == 1.0
    assert not seeing.ends and not seeing.link.sent


def test_a_run_outlives_the_workflow_that_has_passed_it_on(see: Callable[..., Seeing]) -> None:
    seeing = see(
        adopted("here", "there"),
        root=Execution("one", {"here"}, is_open=False, next_id=NEXT),
        next=Execution("two", {"there"}),
    )
    seeing.look()
    assert seeing.ends.keys() == {"here"} and "terminated or cancelled" in seeing.ends["here"]["reason"]
    assert seeing.link.sent == [Signal(NEXT, "follow", ["executor", ["there"]])]
    seeing.look()
    assert seeing.live.keys() == {"there"}


def test_an_end_that_was_not_told_is_taken_from_a_workflow_that_is_over(see: Callable[..., Seeing]) -> None:
    told = {run_id: {"state": "succeeded", "reason": run_id} for run_id in ("a", "b", "c")}
    seeing = see(followed(*told, "alive"), root=Execution("one", {*told, "alive"}, is_open=False, ends=told))
    seeing.look()
    assert len(seeing.ends) == 2  # a workflow does not say everything at once
    seeing.look()
    assert seeing.ends.pop("alive")["state"] == "killed"
    assert seeing.ends == told


@pytest.mark.parametrize("is_open", [True, False])
def test_a_run_that_another_has_taken_over_is_left_to_it(see: Callable[..., Seeing], is_open: bool) -> None:
    ends = {run_id: {"state": "failed", "reason": run_id} for run_id in ("theirs, ended", "mine, ended")}
    live = followed("theirs", "mine", *ends) | adopted("mine, asked for")
    live["mine, asked for"].is_followed = False  # the signal is on its way
    others = {"theirs", "theirs, ended", "mine, asked for"}
    root = Execution("one", set(live), is_open, ends=ends, takeovers=1, others=others)
    seeing = see(live, root=root)
    for _ in range(3):
        seeing.look()
    taken = {run_id for run_id, end in seeing.ends.items() if end.get("is_taken")}
    assert taken == {"theirs", "theirs, ended"}
    if is_open:
        assert seeing.live.keys() == {"mine", "mine, ended", "mine, asked for"}
        asked = len(seeing.link.asked)
        seeing.look()
        assert len(seeing.link.asked) == asked, "once for each takeover"
        root.takeovers, root.others = 2, {*others, "mine"}
        seeing.look()
        assert seeing.ends["mine"] == {"is_taken": True}
    else:
        assert not seeing.live and seeing.ends["mine, ended"] == ends["mine, ended"]
        assert [seeing.ends[run_id]["state"] for run_id in ("mine", "mine, asked for")] == ["killed"] * 2


def test_a_run_is_ordered_again_where_its_order_went(see: Callable[..., Seeing]) -> None:
    order = Order(ROOT, {}, {}, 0, lambda _: None)
    seeing = see({"run": LiveRun(WHO, NEXT, order, execution="two")})  # Temporal's data were lost
    seeing.look()
    assert seeing.link.sent == [order] and not seeing.ends
    assert (seeing.live["run"].workflow_id, seeing.live["run"].execution) == (ROOT, None)


def test_a_run_is_found_in_a_workflow_that_its_own_does_not_know_of(see: Callable[..., Seeing]) -> None:
    """The first workflow was executed anew, or could not begin a successor again, or can't be asked."""
    for is_mute in (False, True):
        seeing = see(
            followed("there"),
            root=Execution("one", is_open=False, is_mute=is_mute),
            next=Execution("two", {"there"}),
        )
        seeing.look()
        assert seeing.live["there"].workflow_id == NEXT and not seeing.ends


@pytest.mark.parametrize("is_taken_over", [True, False])
def test_a_run_that_no_workflow_has_was_never_ordered(see: Callable[..., Seeing], is_taken_over: bool) -> None:
    """Its scheduler died before it could order it, or the workflow was terminated before it could pass it on."""
    live = adopted("lost")
    if is_taken_over:
        live["lost"].execution = None
    seeing = see(live, root=Execution("one", {"another"}, is_open=False))
    seeing.look()
    seeing.look()
    assert seeing.ends["lost"]["state"] == "lost" and seeing.ends["lost"]["unwanted"]  # it was given back to Airflow


def test_an_executor_that_begins_orders_where_the_former_did() -> None:
    dag_runs = DagRuns()
    for workflow_id in (f"{ROOT}~10", ROOT, f"{ROOT}~9", f"{ROOT}~x"):
        dag_runs.add("d", "r", workflow_id)
    assert dag_runs.workflow_id(WHO) == f"{ROOT}~10"
    other = Identity(
        kind="task",
        name="t",
        workload_id=str(uuid.UUID(int=1)),
        dag_id="d",
        dag_run_id="r~7",
        task_id="t",
        try_number=1,
    )
    dag_runs.add("d", "r~7", cards.workflow_id(other))  # a run's own id may look like that
    assert dag_runs.workflow_id(other) == f"{ROOT}~7"
    assert dag_runs.remove("d", "r") == {f"{ROOT}~10", ROOT, f"{ROOT}~9", f"{ROOT}~x"}
    assert dag_runs.workflow_id(WHO) == ROOT


def test_who_waits_is_told_once_for_each_reason(see: Callable[..., Seeing]) -> None:
    order = Order(ROOT, {}, {}, 0, lambda _: None)
    seeing = see({"run": LiveRun(WHO, ROOT, order)}, root=Execution("one", {"run"}))
    away = "Temporal can't be reached; the order waits until it can"
    unserved = "no worker serves queue default: air-executor worker --queues default"

    def told(*, is_away: bool = False, queues: Collection[str] = ()) -> list[str | None]:
        seeing.link.is_away, seeing.link.unserved = is_away, set(queues)
        seeing.waits.clear()
        seeing.look()
        seeing.look()
        assert {run_id for run_id, _ in seeing.waits} <= {"run"}
        return [why for _, why in seeing.waits]

    assert told(is_away=True) == [away]
    seeing.live["run"].execution = "one"
    assert told() == [None]
    assert told(queues={"airflow.default"}) == [unserved]
    assert told() == [None]
    seeing.live["run"].execution = None
    assert told(is_away=True) == [away]
    seeing.live["run"].execution = "one"
    seeing.link.workflows[ROOT].beats = {"run": Beat(1.0, None)}  # of a worker that does not say its host
    assert told(queues={"airflow.default"}) == [None], "what runs does not wait for a worker"


def test_a_record_says_why_its_run_waits_until_it_begins(tmp_path: Path) -> None:
    store = OrderedRuns.of(tmp_path)
    store.prepare()
    store.create(record := queued(str(uuid.uuid4()), WHO, limits={}, log_file=None))
    assert store.note_wait(record.id, "no worker serves queue a")
    assert store.read(record.id).reason == "it waits: no worker serves queue a"
    assert store.note_wait(record.id, None) and store.read(record.id).reason is None
    store.note_wait(record.id, "no worker serves queue a")
    store.note_host(record.id, "host-1")
    assert not store.note_wait(record.id, "too late")
    assert store.read(record.id).reason is None and store.read(record.id).host == "host-1"
