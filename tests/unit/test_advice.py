"""Which limits are advised, and when none is."""

from __future__ import annotations

import dataclasses

from air_executor.observe.advice import advise
from air_executor.runs.record import RunRecord, RunState
from tests.unit.documents import identity, record

MIB = 1 << 20


def run(peak: int, *, p95: int | None = 1, limit: int | None = None, **who: object) -> RunRecord:
    limits = {} if limit is None else {"memory": limit * MIB}
    made = record(RunState.SUCCEEDED, who=identity(**who))
    return dataclasses.replace(made, peak_memory_bytes=peak * MIB, p95_memory_bytes=p95, limits=limits)


def test_a_limit_is_the_most_and_a_fifth_from_five_runs_on() -> None:
    peaks = [100, 110, 120, 130]
    (few,) = advise(map(run, peaks))
    assert (few.task, few.runs, few.advised_bytes) == ("some_dag.some_task", 4, None)
    (enough,) = advise(map(run, [*peaks, 200]))
    assert (enough.p50_bytes, enough.p95_bytes, enough.max_bytes) == (120 * MIB, 200 * MIB, 200 * MIB)
    assert (enough.advised_bytes, enough.is_at_least, enough.limit_bytes) == (240 * MIB, False, None)


def test_it_is_rounded_up_to_what_people_write() -> None:
    assert [advise([run(peak)] * 5)[0].advised_bytes for peak in (1, 99, 1234, 12345)] == [
        size * MIB for size in (2, 120, 1500, 15000)
    ]


def test_what_was_killed_at_its_limit_would_have_held_more() -> None:
    (found,) = advise([*(run(100, limit=128) for _ in range(5)), run(129, limit=128)])
    assert found.is_at_least and found.limit_bytes == 128 * MIB and found.advised_bytes == 160 * MIB
    (survived,) = advise([run(129, limit=128), run(150, limit=256)])  # as after the first limit of a list
    assert not survived.is_at_least
    (quick,) = advise([run(129, limit=128, p95=None)])  # killed within a second
    assert (quick.runs, quick.is_at_least) == (1, True)


def test_what_was_not_measured_does_not_count_and_mapped_instances_are_one_task() -> None:
    found = advise([run(1, p95=None), run(10, map_index=0), run(20, map_index=1), run(30, task_id="other")])
    assert [(each.task, each.runs) for each in found] == [("some_dag.other", 1), ("some_dag.some_task", 2)]
    assert advise([]) == []
