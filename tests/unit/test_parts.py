"""The parts of the tests that commits take turns with: see ``scripts/test``."""

from __future__ import annotations

import pytest

from tests.conftest import outside_of, scope_of, takes_turns


def _names(items: list[pytest.Item]) -> set[str]:
    return {item.nodeid for item in items}


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_each_test_is_in_one_part_or_in_all(request: pytest.FixtureRequest, parts: int) -> None:
    items = request.session.items
    outside = [_names(outside_of(part, parts, items)) for part in range(parts)]
    for item in items:
        times = sum(item.nodeid not in names for names in outside)
        assert times == (1 if takes_turns(item) else parts), item.nodeid


def test_tests_that_share_an_airflow_are_in_the_same_part(request: pytest.FixtureRequest) -> None:
    outside = _names(outside_of(0, 2, request.session.items))
    of_scope: dict[str, set[bool]] = {}
    for item in request.session.items:
        if takes_turns(item):
            of_scope.setdefault(scope_of(item.nodeid), set()).add(item.nodeid in outside)
    assert all(len(answers) == 1 for answers in of_scope.values())
