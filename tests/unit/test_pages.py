"""The pages: what is built is what its sources are, and what they ask for costs what is live."""

from __future__ import annotations

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
from air_executor.web import STATIC, documents
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
    found = documents.live(AllRuns(store.root), lambda _: True)
    assert [each["id"] for each in found] == [queued.id] and read == [queued.id]


def test_only_what_one_may_see_is_there(store: RunStore) -> None:
    records = [kept(store, state) for state in (RunState.QUEUED, RunState.SUCCEEDED, RunState.FAILED)]
    runs = AllRuns(store.root)
    assert documents.live(runs, lambda _: False) == documents.ended(runs, lambda _: False) == []
    wanted = records[1].identity.workload_id
    assert [each["id"] for each in documents.ended(runs, lambda who: who.workload_id == wanted)] == [records[1].id]


def test_a_run_has_its_measurements(store: RunStore) -> None:
    record = kept(store, RunState.SUCCEEDED)
    point = Point(at_s=1, lasts_s=1, memory_bytes=5, cpu_s=0.5, processes=1)
    Path(store.path(record.id), NAME).write_bytes(point.to_line())
    assert documents.run(AllRuns(store.root), record)["points"] == [vars(point)]


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
    own = kept(store, RunState.RUNNING)
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
    manager.may_view = True
    assert "version" in client.get("/api/runs").json()


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
