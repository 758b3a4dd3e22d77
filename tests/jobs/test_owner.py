"""Names of jobs that tasks of Airflow make, and what is known of their makers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from air_executor.jobs.model import check_name
from air_executor.jobs.owner import Owner, Since

RUN = "manual__2025-10-02T07:30:00.123456+00:00"


def owner(dag_id: str = "load", task_id: str = "copy", run_id: str = RUN, **more: Any) -> Owner:
    return Owner(dag_id, task_id, run_id, **more)


def test_a_name_that_can_be_read_one_way_only_stays_as_it_is() -> None:
    assert owner().job_name() == f"load.copy.{RUN}"
    assert owner(map_index=3).job_name() == f"load.copy.{RUN}.3"


def test_no_two_owners_have_one_name() -> None:
    ids = ["a", "b", "a.b", "данные", "отчеты", "x" * 100, "x" * 100 + "y", "a b", "a/b", "a_b", "-a", ".a", "0"]
    runs = ["r", "r.1", "r.1.2", "1", "run " + "z" * 300, "run " + "z" * 301, "r@0123456789abcdef"]
    every = [
        owner(dag, task, run, map_index=index)
        for dag, task, run, index in itertools.product(ids, ids, runs, (-1, 0, 1, 2))
    ]
    names = {check_name(each.job_name()) for each in every}
    assert len(names) == len(every)


IDS = st.text(min_size=1, max_size=250) | st.text("ab.-_@0123456789", min_size=1, max_size=8)


@given(st.lists(st.tuples(IDS, IDS, IDS, st.integers(-1, 10_000)), min_size=2, max_size=2, unique=True))
def test_any_ids_make_names_that_are_files_and_different(places: list[tuple[str, str, str, int]]) -> None:
    one, other = (check_name(Owner(*place).job_name()) for place in places)
    assert one != other


def test_the_digest_of_one_is_nobodys_plain_name() -> None:
    replaced = owner("dag one").job_name()
    assert replaced.startswith("dag_one.copy.")
    dag, task, run = replaced.split(".", 2)
    assert owner(dag, task, run).job_name() != replaced


def test_what_is_shortened_keeps_something_of_each_part() -> None:
    name = owner("d" * 250, "t" * 250, "r" * 250, map_index=12).job_name()
    assert all(part in name for part in ("ddd", "ttt", "rrr", ".12@"))
    assert len(name) <= 200


@pytest.mark.parametrize(
    ("now", "since"),
    [
        ({"instance": "one"}, Since.NOTHING),
        ({"instance": "two", "try_number": 2}, Since.FAILED),
        ({"instance": "two", "try_number": 2, "max_tries": 3}, Since.CLEARED),
        ({"instance": "two", "try_number": 2, "clear_number": 1}, Since.CLEARED),
        ({"instance": "two", "try_number": 1}, Since.CLEARED),  # of a run that was deleted and made again
    ],
)
def test_a_further_try_is_told_from_a_clear(now: dict[str, Any], since: Since) -> None:
    former = owner(instance="one", max_tries=1)
    assert owner(**{"max_tries": 1, **now}).since(former) is since


def test_a_document_is_read_back_and_any_other_is_nobody() -> None:
    one = owner(map_index=2, try_number=3, max_tries=4, clear_number=5, instance="id")
    assert Owner.from_document(one.to_document()) == one
    for other in (None, [], {}, {"dag_id": 1, "task_id": 2, "run_id": 3}, {**one.to_document(), "map_index": "x"}):
        assert Owner.from_document(other) is None
