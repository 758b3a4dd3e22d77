"""The pages: what is built is what its sources are, and what they ask for costs what is live."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api import security
from airflow.models.dag import DagModel
from fastapi.testclient import TestClient

from air_executor.airflow import pages
from air_executor.observe.everywhere import AllRuns
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from air_executor.runs.usage import NAME, Point
from air_executor.web import STATIC, documents, index
from tests.unit.documents import kept

SOURCES = Path(__file__).parents[2] / "ui"


def test_what_was_built_is_of_these_sources() -> None:
    """As ``ui/build.mjs`` computes it."""
    names = ["package-lock.json", "build.mjs", *sorted(f"src/{path.name}" for path in (SOURCES / "src").iterdir())]
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\n".encode() + (SOURCES / name).read_bytes())
    first = (STATIC / "air_executor.js").read_text().partition("\n")[0]
    assert f"sources {digest.hexdigest()}" in first, "build it anew: cd ui && npm ci && npm run build"


def test_the_licences_of_what_is_in_it_are_there() -> None:
    wanted = json.loads((SOURCES / "package.json").read_text())["dependencies"]
    text = (STATIC / "LICENSES.txt").read_text()
    for name, version in wanted.items():
        assert re.search(rf"^{name} {re.escape(version)} \((MIT|Apache-2.0)\)$", text, re.MULTILINE), name
    assert "resolved" not in (SOURCES / "package-lock.json").read_text()


def test_a_poll_reads_what_is_live_and_no_other_record(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(30):
        kept(store, RunState.SUCCEEDED)
    queued = kept(store, RunState.QUEUED)
    store.mark_open()
    for record in list(store.open_records()):
        if record.state.is_end:
            store.mark_reported(record)
    read: list[str] = []
    former = RunStore.read

    def counted(self: Any, run_id: str) -> Any:
        read.append(run_id)
        return former(self, run_id)

    monkeypatch.setattr(RunStore, "read", counted)
    found = documents.live(AllRuns(store.root), lambda _: True, lambda _: True)
    assert [each["id"] for each in found] == [queued.id] and read == [queued.id]


def test_ended_runs_are_read_once_and_then_those_that_changed(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_FRESH_S", 0.0)
    others = [kept(store, RunState.SUCCEEDED) for _ in range(30)]
    runs = AllRuns(store.root)
    wanted = others[0].identity.workload_id
    assert [each["id"] for each in documents.ended(runs, lambda who: who.workload_id == wanted)] == [others[0].id]
    read: list[str] = []
    former = RunStore.read

    def counted(self: Any, run_id: str) -> Any:
        read.append(run_id)
        return former(self, run_id)

    monkeypatch.setattr(RunStore, "read", counted)
    new = kept(store, RunState.FAILED)
    assert [each["id"] for each in documents.ended(runs, lambda who: who.workload_id == wanted)] == [others[0].id]
    assert sorted(read) == sorted([new.id, others[0].id])


def test_a_state_directory_without_runs_has_none(tmp_path: Path) -> None:
    runs = AllRuns(tmp_path / "absent")
    assert documents.ended(runs, lambda _: True) == documents.live(runs, lambda _: True, lambda _: True) == []


def test_who_waits_is_told_to_who_may_know_the_dag(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        {"name": "own.task", "dag_id": "own", "why": "other.task waits before it"},
        {"name": "other.task", "dag_id": "other", "why": "it needs 5 MiB"},
    ]
    monkeypatch.setattr(documents, "_machine", lambda _: {"waiting": both})
    found = documents.machine(AllRuns(store.root), lambda dag_id: dag_id == "own")
    assert found["waiting"] == [{"name": "own.task", "dag_id": "own", "why": "another waits before it"}]


def test_a_task_instance_has_all_its_runs(store: RunStore) -> None:
    """Also of a try that was deferred, or rescheduled: each part of it is a run."""
    first, second, other = (kept(store, RunState.SUCCEEDED) for _ in range(3))
    who = dataclasses.replace(first.identity, dag_run_id="r", map_index=3)
    for number, record in enumerate((first, second)):
        store.write(dataclasses.replace(record, identity=who, queued_at=f"2026-01-0{number + 1}T00:00:00+00:00"))
    found = documents.instance(AllRuns(store.root), who.dag_id or "", "r", who.task_id or "", 3, lambda _: True)
    assert [each["id"] for each in found] == [second.id, first.id] and other.id not in found


def test_only_what_one_may_see_is_there(store: RunStore) -> None:
    records = [kept(store, state) for state in (RunState.QUEUED, RunState.SUCCEEDED, RunState.FAILED)]
    runs = AllRuns(store.root)
    assert documents.live(runs, lambda _: False, lambda _: True) == documents.ended(runs, lambda _: False) == []
    wanted = records[1].identity.workload_id
    assert [each["id"] for each in documents.ended(runs, lambda who: who.workload_id == wanted)] == [records[1].id]


def test_a_run_has_its_measurements(store: RunStore) -> None:
    record = kept(store, RunState.SUCCEEDED)
    point = Point(at_s=1, lasts_s=1, memory_bytes=5, cpu_s=0.5, processes=1)
    Path(store.path(record.id), NAME).write_bytes(point.to_line())
    assert documents.run(AllRuns(store.root), record, lambda _: True)["points"] == [vars(point)]


# In Airflow: who may see what


class Manager:
    """An auth manager of which a test says what it allows."""

    def __init__(self) -> None:
        self.dag_ids: set[str] = set()
        self.may_view = self.may_edit = False
        self.asked: list[Any] = []

    def get_authorized_dag_ids(self, *, user: Any, method: str) -> set[str]:
        assert method == "GET"
        return self.dag_ids

    def is_authorized_view(self, *, access_view: AccessView, user: Any) -> bool:
        return self.may_view and access_view is AccessView.JOBS

    def is_authorized_connection(self, *, method: str, user: Any) -> bool:
        return False

    def is_authorized_dag(self, *, method: str, access_entity: DagAccessEntity, details: Any, user: Any) -> bool:
        self.asked.append((method, access_entity, details.id))
        return self.may_edit or (method == "GET" and details.id in self.dag_ids)


@pytest.fixture
def manager(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> Manager:
    found = Manager()
    monkeypatch.setattr(pages, "get_auth_manager", lambda: found)
    monkeypatch.setattr(security, "get_auth_manager", lambda: found)
    monkeypatch.setattr(DagModel, "get_team_name", lambda *_, **__: None, raising=False)  # there is no database
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STATE_DIR", str(store.root))
    return found


@pytest.fixture
def client(manager: Manager) -> TestClient:
    app = pages.make_app()
    app.dependency_overrides[security.get_user] = lambda: SimpleNamespace(get_name=lambda: "bob")
    return TestClient(app)


def test_a_user_sees_the_runs_of_their_dags_alone(store: RunStore, manager: Manager, client: TestClient) -> None:
    own = kept(store, RunState.QUEUED)
    dag_id = own.identity.dag_id or ""
    for path in ("/api/runs", "/api/ended"):
        assert client.get(path).json()["runs"] == []
    assert client.get(f"/api/runs/{own.id}").status_code == 404
    assert client.get("/api/jobs").json()["jobs"] == [] and client.get("/api/jobs/x").status_code == 403
    instance = f"/api/instance?dag_id={dag_id}&run_id=r&task_id=t"
    assert client.get(instance).status_code == 403
    manager.dag_ids = {dag_id}
    assert client.get(f"/api/runs/{own.id}").json()["id"] == own.id
    found = client.get("/api/runs").json()
    assert found["launchers"] == [] and "version" not in found  # what belongs to no dag is not theirs
    assert [each["may_stop"] for each in found["runs"]] == [False]
    manager.may_edit = True
    assert [each["may_stop"] for each in client.get("/api/runs").json()["runs"]] == [True]
    manager.may_view = True
    assert "version" in client.get("/api/runs").json()


def test_a_connections_name_is_for_who_may_read_connections(
    store: RunStore, manager: Manager, client: TestClient
) -> None:
    manager.may_view = True
    record = kept(store, RunState.FAILED)
    test: Any = {"dag_id": None, "task_id": None, "dag_run_id": None, "map_index": None}
    identity = dataclasses.replace(record.identity, kind="connection_test", name="connection test secret", **test)
    store.write(dataclasses.replace(record, identity=identity))
    assert client.get("/api/ended").json()["runs"] == []


def test_a_reason_with_any_bytes_is_shown(store: RunStore, manager: Manager, client: TestClient) -> None:
    record = kept(store, RunState.FAILED)
    store.write(dataclasses.replace(record, reason="no folder \udcff"))
    manager.dag_ids = {record.identity.dag_id or ""}
    assert client.get("/api/ended").json()["runs"][0]["reason"].startswith("no folder")


def test_only_who_may_edit_the_task_instance_stops_its_run(
    store: RunStore, manager: Manager, client: TestClient
) -> None:
    run = kept(store, RunState.SUCCEEDED)
    manager.dag_ids = {run.identity.dag_id or ""}
    path, header = f"/api/runs/{run.id}/stop", {pages.HEADER: "1"}
    assert client.post(path).status_code == 403  # as a form of another site would
    assert client.post(path, headers=header).status_code == 403
    assert manager.asked[-1] == ("PUT", DagAccessEntity.TASK_INSTANCE, run.identity.dag_id)
    manager.may_edit = True
    said = client.post(path, headers=header)
    assert said.status_code == 409 and "has ended already" in said.json()["detail"]
    assert client.get(path).status_code == 405


def test_an_api_server_without_the_state_directory_says_so(
    manager: Manager, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STATE_DIR", "/nowhere/at-all")
    said = client.get("/api/runs")
    assert said.status_code == 503 and "/nowhere/at-all is not here" in said.json()["detail"]


def test_other_processes_of_airflow_import_nothing_for_the_pages() -> None:
    code = "import air_executor.airflow.plugin, sys; print('air_executor.airflow.pages' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split()[-1] == "False"
