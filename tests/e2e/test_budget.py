"""More memory wanted than the machine's budget has: tasks stay scheduled until there is room for them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from air_executor.airflow.admission import WAITS_EVENT
from air_executor.runs.record import RunRecord
from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.flights import kill_scheduler, launcher, start_scheduler
from tests.support.waiting import wait_for

MIB = 1 << 20
BUDGET = 1024 * MIB

OPTIONS = {
    "AIRFLOW__AIR_EXECUTOR__MEMORY_BUDGET": "1GiB",
    "AIRFLOW__CORE__PARALLELISM": "16",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "0",
}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, shared_dir) -> Iterator[Airflow]:  # type: ignore[no-untyped-def]
    home = tmp_path_factory.mktemp("budget") / "home"
    options = {**OPTIONS, "AIRFLOW__AIR_EXECUTOR__BUDGET_DIR": str(home / "budget")}
    env = airflow_env.make(home, shared_dir, options, airflow_env.FEW)
    env.start()
    try:
        launcher(env)  # what is queued meanwhile would wait for it, too
        yield env
    finally:
        env.end()


def most_taken(records: list[RunRecord]) -> int:
    """Return the most bytes that the limits of runs at the same time allowed, without those that ran alone."""
    changes = []
    for record in records:
        if (memory := record.limits.get("memory") or 0) <= BUDGET:
            changes += [(record.running_at or "", memory), (record.ended_at or "", -memory)]
    return max(itertools.accumulate(change for _, change in sorted(changes)))


def overlap(one: RunRecord, other: RunRecord) -> bool:
    return (one.starting_at or "") < (other.ended_at or "") and (other.starting_at or "") < (one.ended_at or "")


def status(env: Airflow) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(env.run("air-executor", "status", "--json").stdout)
    return found


@pytest.mark.core
@pytest.mark.by_turns
def test_no_more_begins_than_there_is_room_for_and_what_is_too_large_runs_alone(env: Airflow) -> None:
    env.api.unpause("packed")
    run = env.api.trigger("packed")
    assert run.wait() == "success"
    records = env.ended_records("packed")
    assert [(record.state.value, record.identity.try_number) for record in records] == [("succeeded", 1)] * 9
    assert BUDGET / 2 < most_taken(records) <= BUDGET
    huge = next(record for record in records if record.identity.task_id == "huge")
    assert [each for each in records if each is not huge and overlap(each, huge)] == []
    wait_for(lambda: status(env)["budget"]["runs"] == 0, "all room to be given back")


def test_what_waits_stays_scheduled_says_why_and_outlives_its_scheduler(env: Airflow) -> None:
    env.api.unpause("line")
    run = env.api.trigger("line")
    wait_for((env.out / "holding").exists, "the first to hold its memory")

    def states() -> dict[str, str]:
        return {each["task_id"]: each["state"] for each in run.instances()}

    wait_for(lambda: states()["fits"] == states()["unknown"] == "success", "those that fit to run")

    def waiting() -> list[str]:
        return sorted(each["name"] for each in status(env)["waiting"])

    wait_for(lambda: waiting() == ["line.given_up", "line.waits"], "the others to wait")
    assert states() == {
        "holds": "running", "fits": "success", "unknown": "success", "given_up": "scheduled", "waits": "scheduled",
    }  # fmt: skip

    def is_shown() -> bool:
        shown = " ".join(env.run("air-executor", "status").stdout.split())
        free = "it needs 600 MiB of memory; 224 MiB of 1024 MiB are free"
        return "budget: 800 MiB of 1024 MiB taken" in shown and free in shown

    wait_for(is_shown, "what is free to be shown")
    [told] = wait_for(
        lambda: [each["extra"] for each in run.events("waits") if each["event"] == WAITS_EVENT], "the audit entry"
    )
    # Those of one priority are asked in no order: what fits may run at that moment.
    assert re.fullmatch("it needs 600 MiB of memory; (224|74) MiB of 1024 MiB are free", told)
    assert "stays scheduled: it needs 600 MiB" in env.log_of("scheduler")
    run.mark("given_up", "failed")
    wait_for(lambda: waiting() == ["line.waits"], "the one that was given up to wait no more")
    kill_scheduler(env)
    start_scheduler(env)
    wait_for(lambda: waiting() == ["line.waits"], "the next scheduler to let it wait, too")
    (env.out / "release").touch()
    assert run.wait() == "failed"
    assert states()["holds"] == states()["waits"] == "success"
    tries = {each["task_id"]: each["try_number"] for each in run.instances()}
    assert {tries[name] for name in ("holds", "waits", "fits", "unknown")} == {1}


def test_what_earlier_runs_have_held_counts_where_there_is_no_limit(env: Airflow) -> None:
    env.api.unpause("learns")
    assert env.api.trigger("learns").wait() == "success"
    first = env.ended_records("learns")
    assert any(overlap(one, other) for one, other in itertools.combinations(first, 2))  # nothing was known
    assert env.api.trigger("learns").wait() == "success"
    second = [record for record in env.ended_records("learns") if record.id not in {each.id for each in first}]
    # 400 MiB and a fifth, and what a task process has itself: two of them fit, three do not.
    begun = [(record.starting_at or "", 1) for record in second] + [(record.ended_at or "", -1) for record in second]
    assert max(itertools.accumulate(change for _, change in sorted(begun))) <= 2
