"""The services of the compose file, in the order in which they depend on each other, run a DAG on two workers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import hosts
from tests.support.airflow_env import REPOSITORY
from tests.support.compose import Compose
from tests.support.waiting import wait_for

REASON = hosts.why_not()

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(REASON is not None, reason=f"namespaces can't be made: {REASON}"),
]

#: What a user's browser would do, from inside the network.
CLIENT = """
import json, sys, urllib.request
def call(method, path, body=None, token=""):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request("http://api-server:8080" + path, method=method, data=data, headers=headers)
    return json.load(urllib.request.urlopen(request, timeout=60))
(user, password), = json.load(open(sys.argv[1])).items()
token = call("POST", "/auth/token", {"username": user, "password": password})["access_token"]
print(json.dumps(call(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), token)))
"""


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Compose]:
    docker = tmp_path / "docker"
    shutil.copytree(REPOSITORY / "docker", docker, ignore=shutil.ignore_patterns(".env"))
    subprocess.run([docker / "make-env", "temporal"], check=True, capture_output=True)
    assert (docker / ".env").stat().st_mode & 0o777 == 0o600
    again = subprocess.run([docker / "make-env", "local"], capture_output=True, text=True)
    assert again.returncode == 1 and "stays" in again.stderr
    env = dict(line.split("=", 1) for line in (docker / ".env").read_text().splitlines())
    made = Compose(docker / "compose.yaml", tmp_path / "containers", env)
    try:
        yield made
    finally:
        made.kill()


def test_every_service_says_how_it_is_and_a_dag_runs(compose: Compose) -> None:
    lasting = [name for name, service in compose.services.items() if service.get("restart") != "no"]
    lasting.remove("volumes")
    assert {"temporal", "worker-1", "worker-2", "scheduler"} < set(lasting) and "launcher" not in lasting
    compose.up()
    for name in lasting:
        wait_for(lambda name=name: compose.is_healthy(name), f"{name} to be healthy", every_s=1.0)  # type: ignore[misc]

    def call(method: str, path: str, body: Any = None) -> Any:
        passwords = str(compose.folder / "var" / "lib" / "air-executor" / "passwords.json")
        return json.loads(compose.run_inside(sys.executable, "-c", CLIENT, passwords, method, path, json.dumps(body)))

    def is_parsed() -> bool:
        return "example_dag" in str(call("GET", "/api/v2/dags"))

    wait_for(is_parsed, "the DAG to be parsed", every_s=1.0)
    call("PATCH", "/api/v2/dags/example_dag", {"is_paused": False})
    call("POST", "/api/v2/dags/example_dag/dagRuns", {"dag_run_id": "composed", "logical_date": None})

    def state() -> str:
        return str(call("GET", "/api/v2/dags/example_dag/dagRuns/composed")["state"])

    wait_for(lambda: state() in ("success", "failed"), "the DAG run to end", every_s=1.0)
    assert state() == "success"
    instances = call("GET", "/api/v2/dags/example_dag/dagRuns/composed/taskInstances")["task_instances"]
    assert {each["hostname"] for each in instances} <= {"worker-1", "worker-2", "localhost"}
    for name in ("worker-1", "worker-2"):
        environment = compose.services[name]["environment"]
        assert not {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__API_AUTH__JWT_SECRET"} & environment.keys()
        assert compose.stop(name) == 0
