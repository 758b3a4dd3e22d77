"""Runs of this machine and of other hosts are found alike, and told apart."""

from __future__ import annotations

import dataclasses

import pytest

from air_executor.errors import RecordError
from air_executor.observe.everywhere import AllRuns
from air_executor.observe.query import observe_runs
from air_executor.runs.ordered import OrderedRuns
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.unit.documents import kept


@pytest.fixture
def ordered(store: RunStore) -> OrderedRuns:
    ordered = OrderedRuns.of(store.root)
    ordered.prepare()
    return ordered


def test_a_run_is_found_by_the_beginning_of_its_id(store: RunStore, ordered: OrderedRuns) -> None:
    one = kept(store, run_id="aaaa1111-0000-4000-8000-000000000001")
    other = kept(store, run_id="aaaa2222-0000-4000-8000-000000000002")
    remote = kept(ordered, run_id="aaaa3333-0000-4000-8000-000000000003")
    runs = AllRuns(store.root)
    assert runs.find("aaaa1") == one
    assert runs.find("AAAA2") == other
    assert runs.find(other.id) == other
    assert runs.find("aaaa3") == remote
    with pytest.raises(RecordError, match="3 runs start with 'aaaa'; give more of the id"):
        runs.find("aaaa")
    for nobody in ("", "b", "../", f"{one.id}0"):
        with pytest.raises(RecordError, match="there is no run"):
            runs.find(nobody)


def test_a_machine_that_orders_nothing_elsewhere_has_only_its_own(store: RunStore) -> None:
    one = kept(store)
    runs = AllRuns(store.root)
    assert list(runs.records()) == [one] and not runs.is_elsewhere(one.id)


def test_a_run_that_this_machine_has_itself_is_shown_once(store: RunStore, ordered: OrderedRuns) -> None:
    order = kept(ordered, RunState.QUEUED)
    mine = store.write(dataclasses.replace(order, host="here")) if store.create(order) is None else order
    runs = AllRuns(store.root)
    assert list(runs.records()) == [mine] == list(runs.open_records())
    assert not runs.is_elsewhere(order.id)


def test_what_a_host_tells_of_a_run_is_shown_and_never_taken_for_lost(store: RunStore, ordered: OrderedRuns) -> None:
    order = kept(ordered, RunState.QUEUED)
    ordered.note_host(order.id, "one")
    runs = AllRuns(store.root)
    (seen,) = observe_runs(runs)
    assert (seen.record.state, seen.record.host, seen.memory_bytes) == (RunState.RUNNING, "one", None)
    assert runs.settled(seen.record) == ordered.settle(seen.record) == seen.record
    ordered.note_host(order.id, "two")  # its order was lost with the first host
    assert ordered.read(order.id).host == "two"
    ended = ordered.write(ordered.read(order.id).advance(RunState.SUCCEEDED))
    ordered.note_host(order.id, "three")
    assert ordered.read(order.id) == ended
