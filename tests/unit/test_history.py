"""What a task uses over time: when it is looked at, what is kept, and what the file may look like."""

from __future__ import annotations

import itertools
import os
import select
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from air_executor.errors import RecordError
from air_executor.machine.gpu_memory import GpuMemory
from air_executor.runner import history
from air_executor.runner.history import MAX_POINTS, History, halved
from air_executor.runner.usage import Usage
from air_executor.runs import usage
from air_executor.runs.limits import parse
from air_executor.runs.store import RunStore
from air_executor.runs.usage import Point
from tests.support.waiting import wait_for
from tests.unit.documents import kept
from tests.unit.processes import result_of
from tests.unit.test_usage import MIB, hold, task

DAY_S = 86400.0


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(history, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        self.is_crowded = False
        monkeypatch.setattr(history.system, "is_crowded", lambda: self.is_crowded)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def written(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def live(clock: Clock, made: History, seconds: float, *, wakes_s: float = 5.0) -> list[float]:
    """Let a task run whose runner wakes up so often, and return when it was looked at."""
    looks, end_s = [], clock.now_s + seconds
    while clock.now_s < end_s:
        due_s = made.due_s()
        sleeps_s = wakes_s if due_s is None else min(wakes_s, max(0.001, due_s - clock.now_s))
        clock.now_s = min(end_s, clock.now_s + sleeps_s)
        if made.is_due():
            looks.append(clock.now_s)
            made.add(memory_bytes=len(looks), cpu_s=len(looks) / 10, processes=1)
    return looks


def test_a_task_that_ends_within_a_second_leaves_nothing(clock: Clock, tmp_path: Path) -> None:
    made = History(str(tmp_path / "usage.jsonl"))
    assert live(clock, made, 0.9) == []
    assert not made.is_begun and made.p95_bytes() is None
    assert list(tmp_path.iterdir()) == []


def test_on_a_crowded_machine_the_first_look_waits_and_the_others_do_not(clock: Clock, tmp_path: Path) -> None:
    made, clock.is_crowded = History(str(tmp_path / "usage.jsonl")), True
    assert [round(look - 1000) for look in live(clock, made, 6)] == [3, 4, 5, 6]
    clock.now_s = 1000.0
    made = History(str(tmp_path / "other.jsonl"))
    assert made.due_s() == 1001.0
    clock.now_s = 1001.0
    assert not made.is_due() and made.due_s() == 1003.0


def test_looks_are_a_second_apart_at_first_and_ten_later_and_then_no_reason_to_wake_up(
    clock: Clock, tmp_path: Path
) -> None:
    made = History(str(tmp_path / "usage.jsonl"))
    looks = live(clock, made, 10)
    assert [round(look - 1000) for look in looks] == list(range(1, 11))
    looks = live(clock, made, 200)
    gaps = [after - before for before, after in itertools.pairwise(looks)]
    assert max(gaps) <= 10.0 + 5.0
    assert made.due_s() is None


def test_a_days_file_has_few_points_without_a_gap_and_keeps_the_peak(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    made = History(str(path))
    live(clock, made, DAY_S / 2)
    made.add(memory_bytes=10 * MIB, cpu_s=500.0, processes=70)
    live(clock, made, DAY_S / 2)
    made.end(cpu_s=900.0, io=(5, 6))
    points = written(path)
    assert MAX_POINTS / 2 < len(points) <= MAX_POINTS
    assert points[-1]["at_s"] == pytest.approx(DAY_S, abs=20)
    assert sum(point["lasts_s"] for point in points) == pytest.approx(points[-1]["at_s"], abs=5)
    assert max(point["memory_bytes"] for point in points) == 10 * MIB
    assert max(point["processes"] for point in points) == 70
    assert (points[-1]["cpu_s"], points[-1]["read_bytes"], points[-1]["written_bytes"]) == (900.0, 5, 6)
    lengths = [point["lasts_s"] for point in points[2:-1]]
    assert max(lengths) < 3 * min(lengths)  # no part of the day is told at greater length than others


def test_an_expensive_look_is_taken_less_often(clock: Clock, tmp_path: Path) -> None:
    made = History(str(tmp_path / "usage.jsonl"))
    clock.now_s += 1
    made.add(memory_bytes=1, cpu_s=0.0, processes=1, cost_s=0.5)
    clock.now_s += 49
    assert not made.is_due()
    clock.now_s += 2
    assert made.is_due()


def test_a_task_that_can_not_be_seen_keeps_nobody_busy(clock: Clock, tmp_path: Path) -> None:
    made = History(str(tmp_path / "usage.jsonl"))
    for _ in range(5):
        clock.now_s = made.due_s() or clock.now_s + 60
        assert made.is_due()
        made.skip()
        assert not made.is_due() and (made.due_s() is None or made.due_s() >= clock.now_s + 1)
    assert not made.is_begun


def test_a_full_disk_costs_points_and_nothing_else(clock: Clock, tmp_path: Path) -> None:
    made = History(str(tmp_path / "missing" / "usage.jsonl"))
    live(clock, made, 4 * 3600)
    made.end(cpu_s=1.0, io=None)
    assert made.p95_bytes() is not None


def test_two_points_become_one() -> None:
    def point(at_s: float, memory: int, read: int | None = None) -> Point:
        return Point(at_s=at_s, lasts_s=1.0, memory_bytes=memory, cpu_s=at_s, processes=memory, read_bytes=read)

    one, other, odd = point(1.0, 5, 1), point(2.0, 3), point(3.0, 1)
    merged = Point(at_s=2.0, lasts_s=2.0, memory_bytes=5, cpu_s=2.0, processes=5, read_bytes=1)
    assert halved([one, other, odd]) == [merged, odd]


def test_a_percentile_is_one_of_the_time() -> None:
    def points(*values: tuple[float, int]) -> list[Point]:
        return [Point(at_s=0, lasts_s=lasts, memory_bytes=held, cpu_s=0, processes=1) for lasts, held in values]

    assert usage.memory_percentile(points((95.0, 10), (5.0, 999)), 0.95) == 10
    assert usage.memory_percentile(points((94.0, 10), (6.0, 999)), 0.95) == 999
    assert usage.memory_percentile(points((1.0, 7)), 0.5) == 7


def test_what_is_no_point_in_the_file_is_left_out(store: RunStore) -> None:
    run = kept(store)
    path = Path(store.path(run.id, usage.NAME))
    assert usage.read(store, run.id) == []
    good = Point(at_s=1.0, lasts_s=1.0, memory_bytes=1, cpu_s=0.0, processes=1)
    bad = [b"[]", b"\xff", b"{}", good.to_line().replace(b'"processes":1', b'"processes":"x"'), good.to_line()[:20]]
    path.write_bytes(good.to_line() + b"\n".join(bad))
    assert usage.read(store, run.id) == [good]
    path.unlink()
    os.symlink("/etc/passwd", path)
    with pytest.raises(RecordError):
        usage.read(store, run.id)


def test_a_real_task_is_measured_without_any_limit_and_shared_memory_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("air_executor.runner.usage._LOOK_S", 60.0)  # each look tells the exact sum
    path = tmp_path / "usage.jsonl"

    def run() -> list[int]:
        measured = Usage(parse(None), str(path))
        measured.expect_fork()

        def work(say: Any) -> Any:
            held = hold(60)
            for _ in range(3):
                if not os.fork():
                    time.sleep(600)
            say()
            return held

        with task(work, measured) as said:
            os.read(said, 1)
            looks = 0
            while looks < 3:
                time.sleep(0.02)
                looks += measured.measure()
        measured.end()
        return [measured.peak_bytes, measured.p95_bytes() or 0]

    peak, p95 = result_of(run)
    assert 60 * MIB <= peak < 110 * MIB and 0 < p95 <= peak  # four processes with 60 MiB each, that they share
    points = written(path)
    assert len(points) == 4 and points[1]["processes"] == 4
    assert max(point["memory_bytes"] for point in points) == peak


def test_a_task_that_rests_is_not_looked_at_again_until_it_has_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_LEAST_S", "_PART", "_FIRST_S", "_SHARE"):
        monkeypatch.setattr(history, name, 0.0)  # each look takes a sample
    path = tmp_path / "usage.jsonl"

    def run() -> int:
        go, going = os.pipe()

        def work(say: Any) -> Any:
            held = hold(20)
            say()
            os.read(go, 1)
            more = hold(40)
            if not os.fork():
                time.sleep(600)
            say()
            return [held, more]

        measured = Usage(parse(None), str(path))
        looks = []
        look = measured._family.look
        monkeypatch.setattr(measured._family, "look", lambda **how: looks.append(1) or look(**how))
        with task(work, measured) as said:
            os.read(said, 1)

            def looks_in(count: int) -> int:
                before = len(looks)
                for _ in range(count):
                    assert measured.measure()
                return len(looks) - before

            # On a busy machine it may stand still before it waits.
            wait_for(lambda: not looks_in(50), "the task to rest", every_s=0.001)
            os.write(going, b"+")
            os.read(said, 1)
            return looks_in(5)

    assert result_of(run) == 5  # with two processes there is always something to be seen
    points = written(path)
    before, after = points[-6], points[-1]
    assert before["processes"] == 1 and 20 * MIB <= before["memory_bytes"] < 40 * MIB
    assert after["processes"] == 2 and after["memory_bytes"] >= 60 * MIB
    assert [{**each, "at_s": 0, "lasts_s": 0} for each in points[-10:-6]] == [{**before, "at_s": 0, "lasts_s": 0}] * 4


def test_of_a_task_that_rests_few_points_are_written_and_none_is_missing(clock: Clock, tmp_path: Path) -> None:
    made = History(str(tmp_path / "usage.jsonl"))
    made.add(memory_bytes=7, cpu_s=1.0, processes=1)
    for _ in range(600):
        clock.now_s += 1.0
        if made.is_due():
            made.repeat(cost_s=0.0)
    made.end(cpu_s=1.0, io=None)
    points = written(tmp_path / "usage.jsonl")
    assert {point["memory_bytes"] for point in points} == {7} and 12 <= len(points) <= 24
    assert sum(point["lasts_s"] for point in points) == points[-1]["at_s"] == 600.0
    assert max(point["lasts_s"] for point in points) < 70.0


def test_a_repeated_sample_is_the_last_one_and_not_the_most_of_several(clock: Clock, tmp_path: Path) -> None:
    made = History(str(tmp_path / "usage.jsonl"))
    for size in [*([10] * MAX_POINTS), 100, 10]:
        made.add(memory_bytes=size, cpu_s=1.0, processes=1)
    for _ in range(2):
        clock.now_s += 100.0
        made.repeat(cost_s=0.0)
    assert [point["memory_bytes"] for point in written(tmp_path / "usage.jsonl")][-2:] == [100, 10]


def test_forks_of_a_task_without_limits_never_wait_for_its_runner(tmp_path: Path) -> None:
    def run() -> bool:
        measured = Usage(parse(None), str(tmp_path / "usage.jsonl"))
        measured.expect_fork()

        def work(say: Any) -> None:
            for _ in range(1000):  # more than a socket has room for
                if not (pid := os.fork()):
                    os._exit(0)
                os.waitpid(pid, 0)
            say()

        with task(work, measured) as said:
            # The runner looks at nothing meanwhile. If forks waited for it, this would take minutes.
            return bool(select.select([said], [], [], 300)[0])

    assert result_of(run) is True


def test_memory_of_gpus_is_asked_of_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"dev0": 100, "dev1": 200, "GPU-abc": 400}
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: f"dev{index}",
        nvmlDeviceGetMinorNumber=lambda device: {"dev0": 4, "dev1": 7}[device],
        nvmlDeviceGetHandleByUUID=lambda uuid: used[uuid] and uuid,
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=used[device]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    both, one, none = GpuMemory(["7", "GPU-abc"]), GpuMemory(["9", "4"]), GpuMemory([])
    wait_for(lambda: both.used_bytes() == 600, "the memory of two GPUs")
    wait_for(lambda: one.used_bytes() == 100, "the memory of the one that there is")
    assert none.used_bytes() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    missing = GpuMemory(["7"])
    missing.used_bytes()
    wait_for(lambda: all(thread.name != "gpus" for thread in threading.enumerate()), "the thread to end")
    assert missing.used_bytes() is None
