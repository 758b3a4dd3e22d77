"""The machine's ledger: who may begin, who waits, and what becomes of claims."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.errors import StateDirError
from air_executor.machine import room
from air_executor.runs import ledger as module
from air_executor.runs import line, pressure
from air_executor.runs.budget import Budget, Need
from air_executor.runs.ledger import Ledger
from air_executor.runs.lock import KernelLock
from air_executor.runs.usage import NAME, Point
from tests.support.waiting import wait_for

GIB = 1 << 30
MIB = 1 << 20


@dataclass
class Machine:
    """A machine with a ledger, whose clock and whose memory the test sets."""

    folder: Path
    now_s: float = 1000.0
    available: int = 100 * GIB
    stall: float = 0.0
    kills: int = 0

    def ledger(self, memory: int | None = GIB, cpus: float | None = None) -> Ledger:
        ledger = Ledger(Budget(memory, cpus), self.folder / "ledger")
        ledger.open()
        return ledger

    def lock(self, name: str) -> str:
        return str(self.folder / name)

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    def age(self, seconds: float) -> None:
        """Let time pass, as the times of the claims' files show it."""
        for path in (self.folder / "ledger" / "claims").iterdir():
            then_s = path.stat().st_mtime - seconds
            os.utime(path, (then_s, then_s))
        self.now_s += seconds


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)

    class Clock:
        time = staticmethod(lambda: machine.now_s)
        monotonic = staticmethod(lambda: machine.now_s)

    for each in (module, line, pressure):
        monkeypatch.setattr(each, "time", Clock)
    monkeypatch.setattr(line, "is_fresh", lambda moment_s, limit_s: machine.now_s - moment_s < limit_s)
    monkeypatch.setattr(room, "available_bytes", lambda: machine.available)
    monkeypatch.setattr(room, "memory_bytes", lambda: 100 * GIB)
    monkeypatch.setattr(room, "memory_stall", lambda: machine.stall)
    monkeypatch.setattr(room, "oom_kills", lambda: machine.kills)
    return machine


def ask(ledger: Ledger, machine: Machine, name: str, mebibytes: int = 0, cpus: float = 0.0) -> bool:
    need = Need(mebibytes * MIB, cpus)
    return ledger.admit(machine.lock(name), name, need, key=name)


def why(ledger: Ledger, name: str) -> str | None:
    waits = ledger.waits(name)
    return None if waits is None else waits.why


def test_no_more_begins_than_there_is_room_for(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "a", 500) and ask(ledger, machine, "b", 500)
    machine.pass_time(1)
    assert not ask(ledger, machine, "c", 25)
    assert why(ledger, "c") == "it needs 25 MiB of memory; 24 MiB of 1024 MiB are free"
    assert ask(ledger, machine, "d", 24)
    ledger.release(machine.lock("a"))
    machine.pass_time(1)
    assert ask(ledger, machine, "c", 25)
    assert why(ledger, "c") is None
    assert [claim.name for claim in ledger.claims()] == ["b", "d", "c"]


def test_cpus_are_counted_as_memory_is(machine: Machine) -> None:
    ledger = machine.ledger(None, 2.0)
    assert ask(ledger, machine, "a", cpus=1) and not ask(ledger, machine, "b", cpus=2)
    assert why(ledger, "b") == "it needs 2 CPUs; 1 of 2 are free"
    assert ask(ledger, machine, "c", 10**6, cpus=1)  # there is no budget for memory


def test_all_who_order_runs_share_it(machine: Machine) -> None:
    one, other = machine.ledger(), machine.ledger()
    assert ask(one, machine, "a", 600)
    assert not ask(other, machine, "b", 600)
    one.release(machine.lock("a"))
    assert ask(other, machine, "b", 600)
    assert not ask(one, machine, "a", 600)


def test_what_is_larger_than_the_budget_runs_alone(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "a", 100)
    assert not ask(ledger, machine, "huge", 3000)
    waits = "it needs 3000 MiB of memory, and all runs together may have 1024 MiB: it waits to run alone"
    assert why(ledger, "huge") == waits
    ledger.release(machine.lock("a"))
    assert ask(ledger, machine, "huge", 3000)
    assert not ask(ledger, machine, "b", 1)


def test_smaller_ones_overtake_but_not_for_ever(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "old", 600)
    assert not ask(ledger, machine, "large", 800)
    assert ask(ledger, machine, "small 1", 200)
    machine.pass_time(25)
    assert not ask(ledger, machine, "large", 800)
    # From now on, those that begin leave room for it: 224 MiB together.
    assert ask(ledger, machine, "small 2", 150)
    ledger.release(machine.lock("small 1"))
    assert not ask(ledger, machine, "small 3", 100)
    assert why(ledger, "small 3") == "large waits before it"
    assert ask(ledger, machine, "small 4", 70)
    ledger.release(machine.lock("old"))
    assert not ask(ledger, machine, "small 3", 100)
    assert ask(ledger, machine, "large", 800)


def test_room_is_left_to_what_has_waited_longest(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "old", 900)
    assert not ask(ledger, machine, "first", 600)
    machine.pass_time(1)
    assert not ask(ledger, machine, "second", 600)
    machine.pass_time(25)
    assert not ask(ledger, machine, "first", 600) and not ask(ledger, machine, "second", 600)
    ledger.release(machine.lock("old"))
    assert not ask(ledger, machine, "second", 600)
    assert why(ledger, "second") == "first waits before it"
    assert ask(ledger, machine, "first", 600)
    assert not ask(ledger, machine, "small", 400)  # the second's turn is next
    ledger.release(machine.lock("first"))
    assert ask(ledger, machine, "second", 600)


def test_small_ones_do_not_keep_a_machine_from_what_needs_all_of_it(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "old", 100) and not ask(ledger, machine, "huge", 3000)
    machine.pass_time(25)
    assert not ask(ledger, machine, "huge", 3000)
    ledger.release(machine.lock("old"))
    # Nothing runs, and the small one is asked first.
    assert not ask(ledger, machine, "small", 10)
    assert why(ledger, "small") == "huge waits before it"
    assert ask(ledger, machine, "huge", 3000)


def test_no_two_processes_wait_for_each_other(machine: Machine) -> None:
    """Whoever asks in whatever order: the one that has waited longest begins when there is room."""
    one, other = machine.ledger(), machine.ledger()
    assert ask(one, machine, "long", 10) and ask(one, machine, "old", 900)
    assert not ask(one, machine, "x", 600)
    machine.pass_time(1)
    assert not ask(other, machine, "w", 600)
    machine.pass_time(1)
    assert not ask(one, machine, "h", 600)
    machine.pass_time(25)
    assert not ask(one, machine, "x", 600) and not ask(other, machine, "w", 600) and not ask(one, machine, "h", 600)
    one.publish()
    machine.pass_time(2)
    one.release(machine.lock("old"))
    for _ in range(2):
        assert not ask(one, machine, "h", 600)
        assert not ask(other, machine, "w", 600)
        one.publish()
        other.publish()
        machine.pass_time(2)
    assert ask(one, machine, "x", 600)


def test_what_asks_no_more_has_no_right_to_room(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "old", 600) and not ask(ledger, machine, "large", 1000)
    machine.pass_time(25)
    assert not ask(ledger, machine, "large", 1000)
    assert not ask(ledger, machine, "small", 100)
    machine.pass_time(11)  # as when its DAG was paused
    assert ask(ledger, machine, "small", 100)
    assert len(ledger) == 0


def test_room_is_left_to_what_has_waited_longer_in_another_process(machine: Machine) -> None:
    one, other = machine.ledger(), machine.ledger()
    assert ask(one, machine, "old", 600) and not ask(one, machine, "large", 900)
    machine.pass_time(25)
    assert not ask(one, machine, "large", 900)
    one.publish()
    assert not ask(other, machine, "small", 200)
    assert why(other, "small") == "large waits before it"
    assert [each.name for each in other.waiting()] == ["large"]
    one.close()
    machine.pass_time(2)
    assert ask(other, machine, "small", 200)


def test_what_a_run_holds_counts_if_it_is_more_than_its_claim(machine: Machine) -> None:
    ledger = machine.ledger()
    held = KernelLock(machine.lock("grows"))
    assert held.acquire(0)
    run = machine.folder / "run"
    run.mkdir()
    assert ask(ledger, machine, "grows", 100)
    ledger.order(machine.lock("grows"), str(run), "grows", Need())
    point = Point(at_s=1, lasts_s=1, memory_bytes=700 * MIB, cpu_s=0, processes=1)
    (run / NAME).write_bytes(point.to_line() + b'{"half a line')
    machine.pass_time(2)
    assert not ask(ledger, machine, "b", 400)
    assert why(ledger, "b") == "it needs 400 MiB of memory; 324 MiB of 1024 MiB are free"
    (run / NAME).unlink()
    (run / NAME).mkdir()  # whatever is there
    machine.pass_time(2)
    assert ask(ledger, machine, "b", 400)
    held.release()


def test_a_claim_is_void_when_its_runner_has_died(machine: Machine) -> None:
    code = "import sys, time\nfrom air_executor.runs.lock import KernelLock\n"
    code += "lock = KernelLock(sys.argv[1])\nassert lock.acquire(0)\nprint(flush=True)\ntime.sleep(600)"
    runner = subprocess.Popen([sys.executable, "-c", code, machine.lock("a")], stdout=subprocess.PIPE)
    assert runner.stdout is not None and runner.stdout.readline()
    ledger = machine.ledger()
    assert ask(ledger, machine, "a", 1000)
    machine.age(1000)
    assert not ask(ledger, machine, "b", 1000)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    machine.pass_time(2)
    assert ask(ledger, machine, "b", 1000)
    # One whose runner is not born yet is given some time for it.
    machine.age(100)
    assert not ask(ledger, machine, "c", 1000)
    machine.age(100)
    assert ask(ledger, machine, "c", 1000)


def test_only_the_run_that_has_ended_gives_its_room_back(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "a", 1000)
    ledger.order(machine.lock("a"), "/second", "a", Need())
    ledger.release(machine.lock("a"), run="/first")
    assert not ask(ledger, machine, "b", 1000)
    ledger.release(machine.lock("a"), run="/second")
    assert ask(ledger, machine, "b", 1000)


def test_a_run_that_was_taken_over_counts(machine: Machine) -> None:
    ledger = machine.ledger()
    ledger.order(machine.lock("a"), "/run", "a", Need(1000 * MIB))
    assert not ask(ledger, machine, "b", 1000)


GARBAGE = [
    *(b"", b"{", b"[]", b"null", b'{"lock": 3}', b"\xff" * 1000, b"x" * (1 << 19)),
    b'{"lock": "l", "name": "n", "memory": "much", "cpus": 1, "at_s": 1e12}',
    b'[{"key": "k", "name": "n", "memory": [], "cpus": 1, "since_s": 0, "asked_s": 1e12, "why": ""}]',
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_the_folder_is_nobodys_claim(machine: Machine, garbage: bytes) -> None:
    ledger = machine.ledger()
    claims, waiting = machine.folder / "ledger" / "claims", machine.folder / "ledger" / "waiting"
    (claims / "0123").write_bytes(garbage)
    (claims / "a folder").mkdir()
    os.symlink("/etc/passwd", claims / "a link")
    life = KernelLock(waiting / "1-ab")
    assert life.acquire(0)
    (waiting / "1-ab.json").write_bytes(garbage)
    (waiting / "2-cd.json").write_bytes(garbage)
    assert ask(ledger, machine, "a", 1000) and not ask(ledger, machine, "b", 1000)
    assert [claim.name for claim in ledger.claims()] == ["a"]
    assert ledger.waiting() == []
    life.release()


def test_who_only_looks_changes_nothing(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "a", 1000) and not ask(ledger, machine, "b", 1000)
    ledger.publish()
    (machine.folder / "ledger" / "waiting" / "9-dead.json").write_text("[]")
    machine.age(1000)  # the claim is void
    before = sorted(str(path) for path in machine.folder.rglob("*"))
    looking = Ledger(Budget(GIB), machine.folder / "ledger")
    assert looking.is_there and looking.claims() == [] and looking.waiting() == []
    assert sorted(str(path) for path in machine.folder.rglob("*")) == before


def test_who_only_looks_follows_no_strangers_folders(machine: Machine) -> None:
    """Anybody can make a folder of that name in a place that all share."""
    ledger = machine.folder / "ledger"
    (ledger / "claims").mkdir(parents=True)
    (machine.folder / "mine").mkdir()
    (machine.folder / "mine" / "settings.json").write_text("{}")
    (ledger / "waiting").symlink_to(machine.folder / "mine")
    with pytest.raises(StateDirError, match="is a link, which is not followed"):
        assert Ledger(Budget(GIB), ledger).is_there
    assert (machine.folder / "mine" / "settings.json").exists()


def test_a_claim_outlives_its_scheduler_with_what_it_says(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "a", 1000)
    at_s = ledger.claims()[0].at_s
    machine.pass_time(5)
    successor = machine.ledger()
    successor.order(machine.lock("a"), "/run", "a", Need())  # it takes the run over, and knows no limit
    [claim] = successor.claims()
    assert (claim.memory, claim.at_s, claim.run) == (1000 * MIB, at_s, "/run")


def test_a_run_that_waits_for_its_launcher_keeps_its_room(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "a", 1000)
    machine.age(100)
    ledger.keep(machine.lock("a"))
    machine.age(100)
    assert not ask(ledger, machine, "b", 1000)


def test_its_own_claim_keeps_no_run_from_its_room(machine: Machine) -> None:
    """As when a scheduler was killed between the claim and the order."""
    assert ask(machine.ledger(), machine, "a", 1000)
    assert ask(machine.ledger(), machine, "a", 1000)


def test_two_schedulers_that_offer_the_same_task_do_not_hold_it_up(machine: Machine) -> None:
    one, other = machine.ledger(), machine.ledger()
    assert ask(one, machine, "old", 900) and not ask(one, machine, "large", 900)
    machine.pass_time(25)
    assert not ask(one, machine, "large", 900)
    one.publish()
    one.release(machine.lock("old"))
    machine.pass_time(2)
    assert ask(other, machine, "large", 900)


def test_a_claim_of_a_later_version_is_understood(machine: Machine) -> None:
    ledger = machine.ledger()
    assert ask(ledger, machine, "a", 1000)
    path = next((machine.folder / "ledger" / "claims").iterdir())
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "new": 1}))
    machine.pass_time(2)
    assert not ask(ledger, machine, "b", 1000)


def test_while_the_machine_lacks_memory_nothing_more_begins(machine: Machine) -> None:
    ledger = machine.ledger(50 * GIB)
    assert ask(ledger, machine, "a", 1024)
    machine.pass_time(2)
    machine.available = 5 * GIB
    # 3 % of the machine are left free, and what the first may still take.
    assert not ask(ledger, machine, "b", 1500)
    assert why(ledger, "b") == "it needs 1500 MiB of memory; the machine has 1024 MiB to spare"
    assert ask(ledger, machine, "c", 1000)
    machine.available = 50 * GIB
    machine.pass_time(2)
    machine.stall = 0.5
    machine.pass_time(2)
    assert not ask(ledger, machine, "b", 1)
    assert why(ledger, "b") == "the machine lacks memory: processes wait for it 50% of the time"
    machine.stall, machine.kills = 0.0, 1
    machine.pass_time(2)
    assert not ask(ledger, machine, "b", 1)
    assert why(ledger, "b") == "the kernel has just killed a process for lack of memory"
    machine.pass_time(11)
    assert ask(ledger, machine, "b", 1)


def test_somebody_always_runs(machine: Machine) -> None:
    ledger = machine.ledger()
    machine.available, machine.stall, machine.kills = 0, 1.0, 7
    assert ask(ledger, machine, "a", 500)
    assert not ask(ledger, machine, "b", 1)
    ledger.release(machine.lock("a"))
    assert ask(ledger, machine, "b", 1)


def test_another_users_folder_is_refused(machine: Machine) -> None:
    (machine.folder / "ledger").mkdir(mode=0o777)
    (machine.folder / "ledger").chmod(0o777)
    with pytest.raises(StateDirError, match="others may write"):
        machine.ledger()


def test_many_processes_never_claim_more_than_there_is(tmp_path: Path) -> None:
    code = """
import sys, time
from air_executor.runs.budget import Budget, Need
from air_executor.runs.ledger import Ledger
folder, who = sys.argv[1:]
ledger = Ledger(Budget(1000), folder)
ledger.open()
done = 0
while done < 30:
    lock = f"{folder}/{who}-{done}"
    if ledger.admit(lock, lock, Need(300), key=lock):
        taken = sum(claim.memory for claim in ledger.claims())
        assert taken <= 1000, taken
        ledger.release(lock)
        done += 1
"""
    folder = str(tmp_path / "ledger")
    processes = [subprocess.Popen([sys.executable, "-c", code, folder, str(number)]) for number in range(6)]
    assert [process.wait(300) for process in processes] == [0] * 6


def test_the_machine_says_what_it_has() -> None:
    assert 0 < room.available_bytes() <= room.memory_bytes()
    assert room.cpus() > 0
    assert (room.oom_kills() or 0) >= 0
    assert 0 <= (room.memory_stall() or 0.0) <= 1


V1 = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(os.geteuid() != 0 or not os.access(V1, os.W_OK), reason="no memory group of version 1 can be made")
def test_the_limit_of_a_control_group_of_version_1_counts() -> None:
    own = next(each for each in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in each)
    group = V1 / own.split(":", 2)[2].strip("/") / f"air-test-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(512 * MIB))
    code = "import os, sys, json; open(sys.argv[1] + '/tasks', 'w').write(str(os.getpid()))\n"
    code += "from air_executor.machine import room\nfrom air_executor.runs.budget import parse_memory\n"
    code += "held = bytearray(b'x') * (100 << 20)\n"
    code += "print(json.dumps([room.memory_bytes(), room.available_bytes(), parse_memory('auto')]))"
    try:
        said = subprocess.run(
            [sys.executable, "-c", code, str(group)], check=True, capture_output=True, text=True, timeout=60
        )
        there, available, budget = orjson.loads(said.stdout)
        assert there == 512 * MIB and 200 * MIB < available < 412 * MIB and budget == 256 * MIB
    finally:
        wait_for(lambda: not (group / "tasks").read_text(), "the group to be empty")
        group.rmdir()


def test_the_files_of_control_groups_of_version_2_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, where the limit is that of a group above."""
    inner = tmp_path / "pod" / "task"
    inner.mkdir(parents=True)
    (tmp_path / "pod" / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "pod" / "memory.current").write_text(f"{700 * MIB}\n")
    (tmp_path / "pod" / "memory.stat").write_text(f"anon 5\ninactive_file {60 * MIB}\nactive_file {40 * MIB}\n")
    (tmp_path / "pod" / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (tmp_path / "pod" / "memory.pressure").write_text("some avg10=12.50 avg60=0.00 avg300=0.00 total=5\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "pod" / "cpu.max").write_text("max 100000\n")
    folders = [inner, tmp_path / "pod", tmp_path]
    monkeypatch.setattr(room, "_folders", lambda controller: [] if controller else folders)
    assert room.memory_bytes() == GIB
    assert room.available_bytes() == 424 * MIB
    assert room.cpus() == min(1.5, len(os.sched_getaffinity(0)))
    assert room.oom_kills() == 2 and room.memory_stall() == 0.125


@pytest.mark.parametrize(
    ("text", "expected"), [("off", None), ("2GiB", 2 * GIB), ("auto", 90 * GIB), ("1.5 GB", 1_500_000_000)]
)
def test_a_memory_budget_is_a_size_or_what_there_is_less_a_reserve(
    machine: Machine, text: str, expected: int | None
) -> None:
    assert machine.available  # the machine has 100 GiB
    assert Budget.of(text, "off", "alone").memory == expected


def test_a_small_machine_keeps_half_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_bytes", lambda: 2 * GIB)
    assert Budget.of("auto", "off", "alone").memory == 2 * GIB - 512 * MIB


def test_times_are_of_one_clock(machine: Machine) -> None:
    ledger: Any = machine.ledger()
    assert ask(ledger, machine, "a", 1)
    assert ledger.claims()[0].at_s == machine.now_s != time.time()
