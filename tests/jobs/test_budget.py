"""Jobs on a machine with a budget: what has no room waits, without holding up anything else."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
import uuid
from typing import Any

import pytest

from air_executor.jobs.manager import Manager
from air_executor.jobs.model import JobState, TaskStatus
from air_executor.runs.budget import Budget, Need
from air_executor.runs.ledger import Ledger
from air_executor.runs.limits import Limits, MemoryRule
from air_executor.runs.record import Identity
from tests.jobs.conftest import Yard, wait_until
from tests.support.airflow_env import config
from tests.support.waiting import wait_for

MIB = 1 << 20


def manager(yard: Yard, *, memory: str = "1000MiB", over: str = "alone") -> Manager:
    options = config(yard.state_dir, memory_budget=memory, over_budget=over, budget_dir=str(yard.folder / "budget"))
    return Manager(options, poll_s=600.0, max_runners=32)


def ledger(yard: Yard) -> Ledger:
    found = Ledger(Budget(1000 * MIB), yard.folder / "budget")
    found.open()
    return found


def sized(name: str, mebibytes: int, command: str = "true", **more: object) -> dict[str, object]:
    return {"id": name, "command": command, "shell": True, "limits": {"memory": f"{mebibytes}MiB"}, **more}


def test_tasks_begin_as_there_is_room_for_them(yard: Yard) -> None:
    sizes = [300, 700, 450, 200, 350, 600, 250, 500, 150, 900]
    yard.submit(*(sized(f"t{number}", size, "sleep 0.5") for number, size in enumerate(sizes)), max_runners=32)
    done = wait_until(lambda: yard.store.open("job").job.state.is_end, "the job to end")
    manager(yard).serve(until=done)
    assert {task.status for task in yard.tasks().values()} == {TaskStatus.COMPLETED}
    changes = []
    for task in yard.tasks().values():
        record = yard.runs.read(task.run_id or "")
        memory = record.limits["memory"]
        changes += [(record.starting_at or record.queued_at or "", memory), (record.ended_at or "", -memory)]
    most = max(itertools.accumulate(change for _, change in sorted(changes)))
    assert 500 * MIB < most <= 1000 * MIB
    assert ledger(yard).claims() == []


def test_what_has_no_room_holds_up_no_other_task_and_no_other_job(yard: Yard) -> None:
    others = ledger(yard)
    assert others.admit(str(yard.folder / "other"), "of a scheduler", Need(800 * MIB), key="other")
    yard.submit(sized("large", 500), sized("fits", 100, "echo fits >> out"), name="one")
    yard.submit(sized("fits", 100, "echo two >> out"), name="two")

    room_given: list[bool] = []

    def gives_way() -> bool:
        if not room_given and len(yard.lines("out")) == 2 and yard.store.open("two").job.state.is_end:
            assert yard.tasks("one")["large"].status is TaskStatus.PENDING
            others.release(str(yard.folder / "other"))
            room_given.append(True)
        return yard.store.open("one").job.state.is_end

    manager(yard).serve(until=wait_until(gives_way, "both jobs to end"))
    assert yard.tasks("one")["large"].status is TaskStatus.COMPLETED
    assert sorted(yard.lines("out")) == ["fits", "two"]


def test_what_is_too_large_fails_at_once_if_so_wanted(yard: Yard) -> None:
    yard.submit(sized("huge", 2000), sized("small", 10))
    done = wait_until(lambda: yard.store.open("job").job.state.is_end, "the job to end")
    manager(yard, over="fail").serve(until=done)
    assert yard.store.open("job").job.state is JobState.FAILED
    huge = yard.tasks()["huge"]
    assert huge.error == (
        "it can't be handed to a runner: it needs 2000 MiB of memory, and all runs together may have 1000 MiB "
        "([air_executor] over_budget = fail)"
    )
    assert huge.tries == 1 and yard.tasks()["small"].status is TaskStatus.COMPLETED


def test_what_earlier_runs_have_held_counts_where_there_is_no_limit(yard: Yard) -> None:
    # Longer than three seconds: on a crowded machine nothing shorter is measured.
    hold = f"{sys.executable} -c \"import time; x = b'x' * (400 << 20); time.sleep(4)\""

    def claimed() -> int:
        yard.submit({"id": "a", "command": hold, "shell": True}, name="learns")
        found = [0]

        def is_over() -> bool:
            found.extend(claim.memory for claim in ledger(yard).claims())
            return yard.store.open("learns").job.state.is_end

        manager(yard).serve(until=wait_until(is_over, "the job to end"))
        return max(found)

    assert claimed() == 0
    yard.call("remove", "learns")
    assert 480 * MIB < claimed() < 600 * MIB


def test_status_and_the_doctor_say_what_waits(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__MEMORY_BUDGET", "1000MiB")
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__BUDGET_DIR", str(yard.folder / "budget"))
    yard.submit(sized("holds", 700, "until [ -e release ]; do sleep 0.05; done"), sized("waits", 500), max_runners=2)
    yard.start_manager()

    def waiting() -> list[str]:
        return [each["name"] for each in json.loads(yard.call("status", "--json"))["waiting"]]

    def shown() -> str:
        return " ".join(yard.call("status").split())

    def is_said() -> bool:
        text = shown()
        taken = "budget: 700 MiB of 1000 MiB taken, by 1 runs of this machine"
        return taken in text and "it needs 500 MiB of memory; 300 MiB of 1000 MiB are free" in text

    def diagnosis() -> tuple[bool, str]:
        found = {each["name"]: each for each in json.loads(yard.call("doctor", "--json"))}["budget"]
        return found["ok"], found["found"]

    wait_for(lambda: waiting() == ["job/waits"], "the second to wait")
    wait_for(is_said, "the status to say what is taken, and why the second waits", seen=shown)
    expected = (True, "memory 1000 MiB, CPUs off; 1 runs take 700 MiB, 1 wait")
    wait_for(lambda: diagnosis() == expected, "the doctor to say so", seen=diagnosis)
    (yard.folder / "release").touch()
    wait_for(lambda: yard.store.open("job").job.state.is_end, "the job to end")
    assert waiting() == []
    assert {task.status for task in yard.tasks().values()} == {TaskStatus.COMPLETED}


def test_a_ledger_that_cannot_be_used_is_said_and_holds_up_nothing(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    yard.submit(sized("a", 100), name="first")
    one = manager(yard)

    def spoil() -> bool:
        if (yard.folder / "budget").exists():
            shutil.rmtree(yard.folder / "budget")
            yard.submit(sized("b", 100), name="second")
        return yard.store.has("second") and yard.store.open("second").job.state.is_end

    one.serve(until=wait_until(spoil, "the second job to end"))
    assert yard.tasks("second")["b"].status is TaskStatus.COMPLETED
    assert "Looking whether the machine has room failed" in caplog.text


def test_what_is_only_learned_never_makes_a_task_too_large(yard: Yard) -> None:
    yard.runs.prepare()
    who = Identity(kind="job", workload_id=str(uuid.uuid4()), name="job/a", job_name="job", task_id="a")
    yard.runs.learned.note_seen(who, 950 * MIB)
    budget = Budget(1000 * MIB, 0.5, fails_large=True)
    need = budget.need(Limits(), yard.runs.learned, who)
    assert need == Need(1000 * MIB, 0.5) and budget.excess(need) is None
    assert budget.excess(budget.need(Limits(memory=1001 * MIB), yard.runs.learned, who)) is not None
    rule = MemoryRule(steps=(10 * MIB, 2000 * MIB))
    assert budget.need(Limits(memory_rule=rule), yard.runs.learned, who).memory == 10 * MIB


def test_many_that_find_no_room_are_tried_in_part(yard: Yard) -> None:
    others = ledger(yard)
    assert others.admit(str(yard.folder / "other"), "of a scheduler", Need(990 * MIB), key="other")
    for number in range(5):
        yard.submit(*(sized(f"t{index}", 500) for index in range(100)), name=f"job{number}", max_runners=100)
    asked: list[str] = []
    one = manager(yard)
    admit = one._runs.admit

    def counted(who: Identity, limits: dict[str, Any]) -> bool:
        asked.append(who.name)
        return admit(who, limits)

    one._runs.admit = counted  # type: ignore[method-assign]
    began_s = time.monotonic()
    one.serve(until=wait_until(lambda: len(asked) >= 400, "two rounds"))
    assert len(asked) <= 200 * (2 + time.monotonic() - began_s)


def test_a_manager_that_is_interrupted_waits_for_its_runs_though_something_waits_for_room(yard: Yard) -> None:
    stubborn = "trap 'sleep 2; exit' TERM; touch on; while :; do sleep 0.1; done"
    yard.submit(sized("runs", 600, stubborn), sized("waits", 600), max_runners=2)
    one = manager(yard)
    steps: list[None] = []
    step = one._step

    def counted() -> None:
        steps.append(None)
        step()

    def is_over() -> bool:
        if one._may_start and (yard.folder / "on").exists() and one._starts.has_roomless:
            one.interrupt()
            steps.clear()
        return one.has_let_go

    one._step = counted  # type: ignore[method-assign]
    one.serve(until=wait_until(is_over, "the run to end"))
    assert len(steps) < 100  # a loop without a pause makes thousands before the run has ended
