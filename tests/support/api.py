"""Airflow's REST API, as far as the tests need it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tests.support.waiting import wait_for

#: On SQLite, Airflow's API server now and then answers a call with 500: it commits its audit entry inside its event
#: loop, where it can wait for a lock whose holder needs that loop. Nothing has happened then. Airflow 3.3 says
#: "Database error", the older ones give no reason. Such a call is made again for so long, in seconds.
_ATTEMPTS_S = 60.0

ENDED = {"success", "failed"}


def quote(text: str) -> str:
    return urllib.parse.quote(text, safe="")


@dataclass(frozen=True)
class DagRun:
    """A run of a DAG, with what the API says of it."""

    api: Api
    dag_id: str
    run_id: str

    @property
    def path(self) -> str:
        return f"/dags/{quote(self.dag_id)}/dagRuns/{quote(self.run_id)}"

    @property
    def state(self) -> str:
        return self.api.get(self.path)["state"]

    def wait(self, timeout_s: float = 600.0) -> str:
        """Return the end state."""

        def ended() -> str | None:
            states = self._look("dag_run")
            if states and not states & ENDED:
                return None
            state = self.state
            return state if state in ENDED else None

        try:
            return wait_for(ended, f"the end of {self.dag_id}", timeout_s, every_s=0.3)
        except AssertionError as error:
            raise AssertionError(f"{error}; its tasks: {self.states()}") from None

    def _look(self, table: str, task_id: str | None = None) -> set[str | None]:
        """Return the states in the database, where it can be reached: that costs a tenth of a request to the API."""
        if self.api.look is None:
            return set()
        statement = f"SELECT state FROM {table} WHERE dag_id = :dag_id AND run_id = :run_id"
        values = {"dag_id": self.dag_id, "run_id": self.run_id}
        if task_id is not None:
            statement, values = f"{statement} AND task_id = :task_id", {**values, "task_id": task_id}
        try:
            return {row["state"] for row in self.api.look(statement, **values)}
        except SQLAlchemyError:
            return set()

    def instances(self) -> list[dict[str, Any]]:
        return self.api.get(f"{self.path}/taskInstances?limit=1000")["task_instances"]

    def states(self) -> dict[str, Any]:
        """Return the state of each task; of a mapped one a list in the order of the indexes."""
        states: dict[str, Any] = {}
        for ti in sorted(self.instances(), key=lambda ti: ti["map_index"]):
            if ti["map_index"] < 0:
                states[ti["task_id"]] = ti["state"]
            else:
                states.setdefault(ti["task_id"], []).append(ti["state"])
        return states

    def instance(self, task_id: str) -> dict[str, Any]:
        return next(ti for ti in self.instances() if ti["task_id"] == task_id)

    def wait_for_state(self, task_id: str, *states: str | None, timeout_s: float = 300.0) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            found = self._look("task_instance", task_id)
            if found and not found & set(states):
                return None
            ti = self.instance(task_id)
            return ti if ti["state"] in states else None

        return wait_for(there, f"{self.dag_id}.{task_id} to be {states}", timeout_s, every_s=0.2)

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        return self.api.get(f"{self.path}/taskInstances/{quote(task_id)}/xcomEntries/{key}?stringify=false")["value"]

    def log(self, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log as the UI shows it, as text."""
        path = f"{self.path}/taskInstances/{quote(task_id)}/logs/{try_number}?map_index={map_index}&full_content=true"
        return json.dumps(self.api.get(path)["content"])

    def events(self, task_id: str) -> list[dict[str, Any]]:
        """Return the audit log of a task."""
        found: list[dict[str, Any]] = []
        while True:
            query = {"dag_id": self.dag_id, "run_id": self.run_id, "task_id": task_id, "offset": len(found)}
            page = self.api.get(f"/eventLogs?{urllib.parse.urlencode({**query, 'limit': 100})}")
            found += page["event_logs"]
            if len(found) >= page["total_entries"]:
                return found

    def mark(self, task_id: str, state: str) -> None:
        self.api.call("PATCH", f"{self.path}/taskInstances/{quote(task_id)}", {"new_state": state})

    def begin_again(self) -> None:
        """Have the scheduler look at it again, although it has ended."""
        self.api.call("PATCH", self.path, {"state": "queued"})

    def clear(self, task_id: str) -> None:
        body = {
            "dry_run": False,
            "dag_run_id": self.run_id,
            "task_ids": [task_id],
            "only_failed": False,
            "only_running": False,
            "reset_dag_runs": True,
        }
        self.api.call("POST", f"/dags/{quote(self.dag_id)}/clearTaskInstances", body)


@dataclass(frozen=True)
class Api:
    """The REST API of an Airflow without authentication."""

    url: str
    look: Callable[..., list[dict[str, Any]]] | None = None
    """Queries its database, where that can be reached, with a statement and its values."""

    @cached_property
    def authorization(self) -> dict[str, str]:
        """What has to be sent where all are admins: nothing, or in Airflow 3.1 a token that everybody gets."""
        try:
            urllib.request.urlopen(f"{self.url}/api/v2/dags?limit=1", timeout=300).close()
            return {}
        except urllib.error.HTTPError:
            with urllib.request.urlopen(f"{self.url}/auth/token", timeout=300) as answer:
                return {"Authorization": f"Bearer {json.load(answer)['access_token']}"}

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(
            f"{self.url}/api/v2{path}",
            method=method,
            data=data,
            headers={"Content-Type": "application/json", **self.authorization, **(headers or {})},
        )
        deadline = time.monotonic() + _ATTEMPTS_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=300) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                message = error.read().decode()
                if error.code != 500 or time.monotonic() > deadline:
                    raise AssertionError(f"{method} {path}: {error.code} {message}") from None
            time.sleep(0.3)

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def dag_ids(self) -> set[str]:
        return {dag["dag_id"] for dag in self.get("/dags?limit=1000")["dags"]}

    def unpause(self, dag_id: str) -> None:
        """Have a DAG's runs run, once it is known. Nothing is written if they do already, see ``airflow_env``."""
        dag = wait_for(lambda: self._dag(dag_id), f"dag {dag_id!r} to be parsed", 400, every_s=0.3)
        if dag["is_paused"]:
            self.call("PATCH", f"/dags/{quote(dag_id)}", {"is_paused": False})

    def _dag(self, dag_id: str) -> dict[str, Any] | None:
        found = self.get(f"/dags?limit=1000&dag_id_pattern={quote(dag_id)}")["dags"]
        return next((dag for dag in found if dag["dag_id"] == dag_id), None)

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> DagRun:
        self.unpause(dag_id)
        body: dict[str, Any] = {"logical_date": None, "conf": conf or {}}
        if run_id is not None:
            body["dag_run_id"] = run_id
        run = self.call("POST", f"/dags/{quote(dag_id)}/dagRuns", body)
        return DagRun(self, dag_id, run["dag_run_id"])
