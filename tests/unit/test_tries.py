"""A try of a task instance begins when the one before has ended, with all that it has started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_compat import task_workload
from tests.unit.test_guard import Mood, World, _secret  # noqa: F401 (a fixture)


def workload(try_number: int, **changes: Any) -> Any:
    return task_workload(try_number=try_number, executor_config=None, **changes)


def queue(world: World, *workloads: Any) -> None:
    for each in workloads:
        world.executor.queue_workload(each, session=None)  # type: ignore[arg-type]
    world.loop()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Mood(0, 0.0), tmp_path)


def tries(world: World) -> list[tuple[int, int]]:
    """Return the map index and the number of each try that runs."""
    return sorted((r.identity.map_index or 0, r.identity.try_number or 0) for r in world.live())


@pytest.mark.usefixtures("_secret")
def test_a_try_waits_for_the_end_of_the_one_before(world: World) -> None:
    queue(world, workload(1))
    second = workload(2)
    queue(world, second)
    assert tries(world) == [(-1, 1)]
    assert second.ti.key in world.executor.running
    world.finish(*world.live())
    world.loop()
    assert tries(world) == [(-1, 2)]
    world.finish(*world.live())
    world.loop()
    assert second.ti.key in world.events
    assert not world.executor.running


@pytest.mark.usefixtures("_secret")
def test_other_work_does_not_wait(world: World) -> None:
    queue(world, workload(1, map_index=0))
    queue(world, workload(2, map_index=0), workload(1, map_index=1), workload(2, map_index=2), workload(1, run_id="s"))
    assert tries(world) == [(-1, 1), (0, 1), (1, 1), (2, 2)]


@pytest.mark.usefixtures("_secret")
def test_a_try_that_waits_can_be_revoked_and_is_not_adopted_twice(world: World) -> None:
    queue(world, workload(1))
    second = workload(2)
    queue(world, second)
    assert world.executor.try_adopt_task_instances([second.ti]) == []
    world.executor.revoke_task(ti=second.ti)
    world.finish(*world.live())
    world.loop()
    assert tries(world) == []
    assert not world.executor.running
