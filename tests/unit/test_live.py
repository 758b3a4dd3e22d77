"""The live runs of an executor: as quick with many as with few."""

from __future__ import annotations

from air_executor.airflow.live_runs import LiveRuns, Run


class Key:
    """A key that counts how often it is compared with another."""

    compared = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return hash(self.number)

    def __eq__(self, other: object) -> bool:
        Key.compared += 1
        return isinstance(other, Key) and self.number == other.number


def test_the_ends_of_many_runs_at_once_cost_as_much_as_they_are_many() -> None:
    runs = LiveRuns()
    for number in range(1000):
        runs[str(number)] = Run(Key(number), None)
    Key.compared = 0
    for number in range(1000):
        key = runs.pop(str(number)).key
        assert not runs.has_key(key)
        assert not runs.has_other_try(key)
    assert Key.compared < 10 * 1000  # each with each other would be half a million
    assert not runs


def test_a_workload_has_a_live_run_until_the_last_one_has_ended() -> None:
    runs = LiveRuns()
    runs["former"], runs["resumed"], runs["other"] = Run("a", None), Run("a", None), Run("b", None)
    assert runs.ids_of("a") == ["former", "resumed"]
    del runs["former"]
    assert runs.has_key("a")
    del runs["resumed"]
    assert not runs.has_key("a")
    assert runs.has_key("b")
