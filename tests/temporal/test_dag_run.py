"""``air-executor dag run --on temporal``: no Airflow of one's own, and tasks on hosts."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from air_executor.machine import system
from air_executor.runs.store import RunStore
from tests.pocket.conftest import DAGS, Place
from tests.support.waiting import wait_for
from tests.temporal.conftest import Temporal


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / ".air-executor").mkdir(mode=0o700)
    return Place(tmp_path)


def test_a_dag_without_an_airflow_runs_on_workers(
    temporal: Temporal, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    shared = place.folder / "shared.cfg"
    shared.write_text("[api]\nsecret_key = a-key-that-hosts-and-this-machine-have\n[core]\nparallelism = 3\n")
    host, log = place.folder / "host", place.folder / "worker.log"
    host.mkdir()
    env = {name: value for name, value in place.env.items() if not name.startswith("AIRFLOW")}
    env |= {
        "AIRFLOW_HOME": str(host),
        "AIRFLOW_CONFIG": str(shared),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__AIR_EXECUTOR__STATE_DIR": str(host / "state"),
    }
    argv = ["worker", "--name", "far", "--slots", "4", "--no-logs"]
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "air_executor.cli", *argv],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
        )
    try:
        wait_for(lambda: "serving" in log.read_text(), "the worker")
        events = place.events(
            str(DAGS / "failing.py"), "--on", "temporal", "--config-from", str(shared), "--xcoms", code=1
        )
    finally:
        worker.terminate()
        worker.wait(240)
    assert {task["task_id"]: task["state"] for task in events[-1]["tasks"]} == {
        "apart": "success",
        "breaks": "failed",
        "never": "upstream_failed",
    }
    assert [(each["task_id"], each["value"]) for each in events[-1]["xcoms"]] == [("apart", 1)]
    assert sorted(record.identity.task_id for record in RunStore(host / "state").records()) == ["apart", "breaks"]
