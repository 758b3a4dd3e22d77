"""The files of the state directory break while tasks run: each task still runs once, and ends as it should."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import orjson
import psutil
import pytest

from air_executor.machine import system
from air_executor.runs import record as runs
from air_executor.runs.record import Identity, RunRecord, RunState
from tests.faults.conftest import Fly
from tests.support import machine
from tests.support.airflow_env import Airflow
from tests.support.flights import launchers, probe, start_scheduler
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[machine.SmallDisk]:
    disk = machine.SmallDisk(tmp_path_factory.mktemp("disk"))
    with disk.mounted() if os.geteuid() == 0 else contextlib.nullcontext():
        yield disk


@pytest.fixture(scope="module")
def options(disk: machine.SmallDisk) -> dict[str, str]:
    return {"AIRFLOW__AIR_EXECUTOR__STATE_DIR": str(disk.folder / "state")}


@machine.needs_root
@pytest.mark.parametrize(
    ("fault", "message"), [("full", "No space left on device"), ("read_only", "Read-only file system")]
)
def test_a_disk_that_takes_nothing_more_fails_new_work_alone(
    airflow: Airflow, fly: Fly, disk: machine.SmallDisk, fault: str, message: str
) -> None:
    flight = fly(f"disk-{fault}").begun()
    scheduler = airflow.processes["scheduler"]
    with getattr(disk, fault)():
        refused = airflow.api.trigger("shell", run_id=f"disk-{fault}-refused")
        assert refused.wait() == "failed"
        assert any(message in (event["extra"] or "") for event in refused.events("bash"))
        assert message in refused.log("bash")
        flight.release(1)
        wait_for(lambda: {row["map_index"]: row["state"] for row in flight.rows()}[1] == "success", "task 1 to end")
        os.kill(flight.record(2).pid or 0, signal.SIGKILL)
        wait_for(lambda: {row["map_index"]: row["state"] for row in flight.rows()}[2] != "running", "task 2 to fail")
    probe(airflow, f"disk-{fault}-later")
    assert scheduler.poll() is None
    flight.release()
    state = flight.run.wait()
    ends = {row["map_index"]: row["state"] for row in flight.rows()}
    # What died on that disk may have found no place for its second try; no other has lost anything.
    assert ends == {0: "success", 1: "success", 2: state, 3: "success", 4: "success"}
    second_try = ["begin 2 2", "end 2 2"] if state == "success" else []
    assert sorted(line for line in flight.effects if line.split()[1] == "2") == ["begin 2 1", *second_try]
    assert sorted(line for line in flight.effects if line.split()[1] != "2") == sorted(
        f"{word} {index} 1" for index in (0, 1, 3, 4) for word in ("begin", "end")
    )
    assert {row["try_number"] for row in flight.rows() if row["map_index"] != 2} == {1}


def damage(path: Path, kind: str) -> None:
    """Do to a record what files suffer."""
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "garbage":
        path.write_bytes(b"\x00\xff not a record")
    elif kind == "newer":
        path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "version": 99}))
    else:
        os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    ("kind", "restart"),
    [
        ("truncated", "never"),
        ("garbage", "before"),
        ("truncated", "after"),
        ("newer", "after"),
        pytest.param("foreign", "after", marks=machine.needs_root),
    ],
)
def test_a_task_survives_the_loss_of_its_record(airflow: Airflow, fly: Fly, kind: str, restart: str) -> None:
    flight = fly(f"record-{kind}-{restart}", 1).begun()
    record = flight.record()
    if restart == "before":
        airflow.stop("scheduler")
        job = start_scheduler(airflow)
        wait_for(lambda: [row["queued_by_job_id"] for row in flight.rows()] == [job], "the task to be taken over")
    damage(airflow.store.folder(record.id) / "state.json", kind)
    if restart == "after":
        airflow.stop("scheduler")
        start_scheduler(airflow)
    probe(airflow, f"record-{kind}-{restart}-probe")
    flight.assert_each_ran_once()
    wait_for(
        lambda: any(each.id == record.id and each.state is RunState.SUCCEEDED for each in airflow.records()),
        "the end to be on record",
    )


def test_the_scheduler_survives_the_loss_of_the_state_directory(airflow: Airflow, fly: Fly) -> None:
    flight = fly("state-removed", 1).begun()
    scheduler = airflow.processes["scheduler"]

    def is_removed() -> bool:
        shutil.rmtree(airflow.store.root, ignore_errors=True)  # a runner may write into it just then
        return not airflow.store.root.exists()

    wait_for(is_removed, "the state directory to be gone")
    later = airflow.api.trigger("shell", run_id="state-removed-later")
    assert later.wait() == "failed"
    assert str(airflow.store.root) in later.log("bash")
    flight.assert_each_ran_once()
    assert scheduler.poll() is None
    airflow.stop("scheduler")
    start_scheduler(airflow)
    probe(airflow, "state-made-anew")
    wait_for(lambda: len(launchers(airflow)) == 1, "the former launcher to end")


def running(pid: int, started: float, boot_id: str) -> RunRecord:
    """Return a record that says of a process that it is the runner of a live run."""
    run_id = str(uuid.uuid4())
    record = runs.queued(
        run_id, Identity(kind="task", workload_id=str(uuid.uuid4()), name="by hand"), limits={}, log_file=None
    )
    me = {"pid": pid, "pid_started": started, "host": system.host(), "boot_id": boot_id}
    return record.advance(RunState.STARTING, **me).advance(RunState.RUNNING)


def test_a_run_from_before_a_reboot_is_shown_as_lost(airflow: Airflow) -> None:
    record = running(os.getpid(), psutil.Process().create_time(), "an-earlier-boot")
    airflow.store.create(record)
    shown = airflow.run("air-executor", "show", record.id)
    assert "lost" in shown.stdout
    assert "rebooted" in " ".join(shown.stdout.split())
    assert airflow.store.read(record.id).state is RunState.RUNNING  # who looks writes nothing
    record = airflow.store.settle(airflow.store.read(record.id))
    assert record.state is RunState.LOST
    airflow.store.mark_reported(record)


@pytest.mark.parametrize("has_lock", [False, True], ids=["no-runner", "runner-elsewhere"])
def test_a_process_that_got_the_pid_of_a_runner_is_not_stopped(airflow: Airflow, has_lock: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as unrelated:
        started = psutil.Process(unrelated.pid).create_time()
        record = running(unrelated.pid, started - 1000, system.boot_id())
        lock = airflow.store.lock(record.identity.workload_id)
        if has_lock:
            assert lock.acquire(0)
        airflow.store.create(record)
        done = airflow.run("air-executor", "stop", record.id, check=False)
        assert done.returncode == 1
        # It ends by its own will: a signal would have ended it with another code.
        unrelated.communicate(b"\n")
        assert unrelated.returncode == 0
    lock.release()
    record = airflow.store.settle(airflow.store.read(record.id))
    assert record.state is RunState.LOST
    airflow.store.mark_reported(record)
