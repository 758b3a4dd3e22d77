"""Single tasks, executed by real launchers and runners in a second each: there is no Airflow but what they import."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.airflow.rehearsal import CONTEXT
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import Identity, RunRecord, RunState, queued
from air_executor.runs.store import RunStore
from tests.support.airflow_env import REPOSITORY, config
from tests.support.execution_api import FakeApi, Told
from tests.support.waiting import wait_for

DAGS = REPOSITORY / "tests" / "dags"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task instance that was ordered."""

    quick: Quick
    run_id: str
    ti_id: str
    log_file: Path

    @property
    def told(self) -> Told:
        """What the execution API was told."""
        return self.quick.api.told[self.ti_id]

    @property
    def record(self) -> RunRecord:
        return self.quick.store.read(self.run_id)

    def wait(self) -> RunRecord:
        """Wait for the end, and return the record."""
        wait_for(lambda: self.run_id in self.quick.take_ends(), "the end of the task")
        return self.quick.ended[self.run_id]

    def begun(self) -> RunRecord:
        """Wait until the task process executes it."""
        return wait_for(lambda: self.record if self.record.state is RunState.RUNNING else None, "the task to begin")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        return [orjson.loads(line) for line in self.log_file.read_bytes().splitlines()]

    @property
    def text(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def said(self, level: str | None = None) -> list[str]:
        """The events in its log, of one level if it is given."""
        return [str(line["event"]) for line in self.log if level in (None, line.get("level"))]


class Quick:
    """A launcher with an execution API."""

    def __init__(self, folder: Path, api: FakeApi, **options: Any) -> None:
        self.folder, self.api = folder, api
        self.out = folder / "out"
        self.out.mkdir()
        self.store = RunStore(folder / "state")
        self.options = config(self.store.root, **{"stop_grace_seconds": 1.0, "launcher_idle_seconds": 600.0, **options})
        self.backend = LocalBackend(self.options)
        assert self.backend.open(f"test.{uuid.uuid4()}")
        self.ended: dict[str, RunRecord] = {}

    def start(
        self,
        file: str,
        dag_id: str,
        task_id: str,
        *,
        air: Any = None,
        try_number: int = 1,
        log_file: Path | None = None,
        **context: Any,
    ) -> Task:
        """Order a task.

        :param file: below ``tests/dags``.
        :param log_file: its log; by default one of its own.
        :param context: what the execution API says of it, beside what it says of all.
        """
        ti_id, run_id = str(uuid.uuid4()), str(uuid.uuid4())
        log_file = log_file or self.folder / "logs" / f"{dag_id}.{task_id}.{run_id}.log"
        instance: dict[str, Any] = {
            "id": ti_id,
            "dag_version_id": str(uuid.uuid4()),
            "dag_id": dag_id,
            "task_id": task_id,
            "run_id": "quick",
            "map_index": -1,
            "try_number": try_number,
            "queue": "default",
            "pool_slots": 1,
            "priority_weight": 1,
        }
        workload = {
            "ti": instance,
            "dag_rel_path": file,
            "bundle_info": {"name": "tests", "version": None},
            "token": "",
            "log_path": str(log_file),
        }
        of_run = {**CONTEXT["dag_run"], "dag_id": dag_id, "run_id": "quick", **context.pop("dag_run", {})}
        self.api.contexts[ti_id] = {"dag_run": of_run, **context}
        who = Identity(
            kind="task",
            workload_id=ti_id,
            name=f"{dag_id}.{task_id}",
            dag_id=dag_id,
            task_id=task_id,
            dag_run_id="quick",
            map_index=-1,
            try_number=try_number,
        )
        request = RunRequest(
            id=run_id, identity=who, workload=workload, air=air, server=self.api.url, log_file=str(log_file)
        )
        self.backend.order(request, queued(run_id, who, limits={}, log_file=str(log_file)))
        return Task(self, run_id, ti_id, log_file)

    def run(self, file: str, dag_id: str, task_id: str, **more: Any) -> Task:
        """Execute a task to its end."""
        task = self.start(file, dag_id, task_id, **more)
        task.wait()
        return task

    def take_ends(self) -> dict[str, RunRecord]:
        """Take what has ended, after a short wait for news; return all that has ended so far."""
        fd = self.backend.fileno()
        select.select([] if fd is None else [fd], [], [], 0.05)
        self.ended.update({record.id: record for record in self.backend.take_ends()})
        return self.ended


@contextmanager
def quick(folder: Path, airflow: Mapping[str, str] | None = None, **options: Any) -> Iterator[Quick]:
    """A launcher in an Airflow home of its own, which ends with the context. Processes are left to the caller.

    :param airflow: settings of Airflow, as variables.
    """
    bundle = {
        "name": "tests",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(DAGS)},
    }
    settings = {
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(folder / "bundles"),
        # The server is a thread of this process, which may be busy: nothing is to be asked twice.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "120",
        "AIR_TEST_OUT": str(folder / "out"),
        "PYTHONPATH": str(REPOSITORY),
        "NO_PROXY": "*",
        **(airflow or {}),
    }
    with pytest.MonkeyPatch.context() as patched, FakeApi().serving() as api:
        for name in [name for name in os.environ if name.startswith(("PYTEST_", "AIRFLOW_"))]:
            patched.delenv(name)
        for name, value in settings.items():
            patched.setenv(name, value)
        made = Quick(folder, api, **options)
        yield made
        made.backend.close()
