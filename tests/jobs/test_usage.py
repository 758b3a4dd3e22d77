"""What the tasks of a job have used is measured, kept and shown."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime

from air_executor.runs import usage
from air_executor.runs.record import RunRecord
from tests.jobs.conftest import LONG_S, Yard

MIB = 1 << 20

#: Holds 80 MiB for some seconds in one process of two.
_HOLDS = "import os, time; held = b'x' * (80 << 20); os.fork() or time.sleep(5.2); time.sleep(5.2)"


def test_a_try_after_an_end_for_lack_of_memory_has_the_next_limit(yard: Yard) -> None:
    limits = {"memory": ["60MiB", "300MiB"]}
    until = "600 if os.environ['AIR_EXECUTOR_TRY'] == '1' else 1"
    needs = f"import os, time; held = b'x' * (100 << 20); time.sleep({until})"
    yard.submit({"id": "grows", "command": sys.executable, "args": ["-c", needs], "limits": limits, "retries": 2})
    task = yard.finish().tasks["grows"]
    assert (task.status.value, task.tries) == ("completed", 2)
    records = sorted(yard.runs.records(), key=lambda record: record.queued_at or "")
    assert [record.limits["memory"] for record in records] == [60 * MIB, 300 * MIB]
    assert [record.state.value for record in records] == ["killed", "succeeded"]


def test_another_failure_keeps_the_limit(yard: Yard) -> None:
    limits = {"memory": ["200MiB", "300MiB"]}
    yard.submit({"id": "fails", "command": "false", "limits": limits, "retries": 1})
    assert yard.finish().tasks["fails"].tries == 2
    assert [record.limits["memory"] for record in yard.runs.records()] == [200 * MIB, 200 * MIB]


def test_a_limit_is_learned_from_runs_and_kept_between_its_bounds(yard: Yard) -> None:
    # Longer than three seconds: on a crowded machine nothing shorter is measured.
    task = {"id": "t", "command": sys.executable, "args": ["-c", _HOLDS.replace("5.2", "4")]}
    bounds = {"floor": "10MiB", "ceiling": "2GiB"}
    for number in range(6):
        yard.submit(
            {**task, "limits": {"memory": {"auto": bounds}}}, name="again", existing="replace" if number else "refuse"
        )
        yard.finish("again")
    records = sorted(yard.runs.records(), key=lambda record: record.queued_at or "")
    assert [record.state.value for record in records] == ["succeeded"] * 6
    assert [record.limits["memory"] for record in records[:5]] == [2048 * MIB] * 5  # the ceiling: too little is known
    most = max(record.peak_memory_bytes or 0 for record in records[:5])
    assert records[5].limits["memory"] == int(most * 1.2)


def shown(yard: Yard, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "air_executor.cli", *arguments]
    return subprocess.run(command, cwd=yard.folder, capture_output=True, text=True, timeout=LONG_S)


def lasted_s(record: RunRecord) -> float:
    """For how long a run has lasted, with what its runner did before its command began."""
    began, ended = (datetime.fromisoformat(moment or "") for moment in (record.starting_at, record.ended_at))
    return (ended - began).total_seconds()


def test_a_task_is_measured_over_time_and_a_short_one_is_not(yard: Yard) -> None:
    yard.submit(
        {"id": "holds", "command": sys.executable, "args": ["-c", _HOLDS]},
        {"id": "short", "command": "true"},
    )
    yard.finish()
    records = {record.identity.task_id: record for record in yard.runs.records()}
    holds, short = records["holds"], records["short"]
    assert 80 * MIB < (holds.p95_memory_bytes or 0) <= (holds.peak_memory_bytes or 0) < 140 * MIB
    found = json.loads(shown(yard, "usage", holds.id, "--json").stdout)
    assert max(point["processes"] for point in found["points"]) == 2
    assert max(point["memory_bytes"] for point in found["points"]) == holds.peak_memory_bytes
    plot = shown(yard, "usage", holds.id[:13]).stdout
    assert "memory: " in plot and "█" in plot and "processes: 2 at most" in plot
    advice = {each["task"]: each for each in json.loads(shown(yard, "advise", "--json").stdout)}
    assert (advice["job/holds"]["runs"], advice["job/holds"]["advised_bytes"]) == (1, None)
    if lasted_s(short) < 1.0:  # on a busy machine even this one may last long enough to be measured
        assert short.p95_memory_bytes is None and not usage.read(yard.runs, short.id)
        missing = shown(yard, "usage", short.id)
        assert missing.returncode == 2 and "no measurements" in missing.stderr and "job/short" in missing.stderr
        assert advice.keys() == {"job/holds"}
    assert "a limit is advised from 5 measured runs on" in shown(yard, "advise").stdout
