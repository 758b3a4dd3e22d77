"""The pages in Airflow's UI, in a real browser: who sees what, and who may stop a run."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from air_executor.airflow.pages import STOP_EVENT
from air_executor.runs.record import RunState
from tests.support import airflow_env, browser
from tests.support.airflow_env import Airflow
from tests.support.api import DagRun, quote
from tests.support.waiting import wait_for

USERS = {"ann": "admin", "bob": "user", "eve": "viewer"}

#: Returns the colour of an element's text as red, green and blue, however it is written.
COLOUR = """element => {
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = getComputedStyle(element).color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""

DAG = """
import os
import time
from pathlib import Path
from airflow.sdk import dag, task

@dag(schedule=None)
def watched():
    @task(executor_config={"air": {"memory": "500MiB"}})
    def long():
        held = b"x" * (100 << 20)
        while not (Path(os.environ["AIR_TEST_OUT"]) / "release").exists():
            time.sleep(0.1)

    @task
    def wrong():
        raise ValueError("on purpose")

    long()
    wrong()

watched()
"""


@dataclass
class Site:
    """An Airflow with users, a run of a DAG that goes on, and a browser."""

    airflow: Airflow
    run: DagRun
    tokens: dict[str, str]
    chromium: Any

    def ask(self, user: str | None, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
        """Ask the pages' app, with a user's cookie."""
        cookie = {} if user is None else {"Cookie": f"_token={self.tokens[user]}"}
        url = f"{self.airflow.url}/air-executor{path}"
        request = urllib.request.Request(url, method=method, headers={**cookie, **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def page(self, user: str, **options: Any) -> Any:
        """Open a page as a user."""
        return browser.page(self.chromium, storage_state=self._state(user), **options)

    def _state(self, user: str) -> dict[str, Any]:
        cookie = {"name": "_token", "value": self.tokens[user], "domain": "localhost", "path": "/"}
        more = {"expires": -1, "httpOnly": True, "secure": False, "sameSite": "Lax"}
        return {"cookies": [{**cookie, **more}], "origins": []}

    def tab(self, task_id: str) -> str:
        where = f"dags/watched/runs/{quote(self.run.run_id)}/tasks/{task_id}"
        return f"{self.airflow.url}/{where}/plugin/air-executor-run"


def log_in(env: Airflow, passwords: dict[str, str]) -> dict[str, str]:
    tokens = {}
    for user, password in passwords.items():
        request = urllib.request.Request(
            f"{env.url}/auth/token",
            data=json.dumps({"username": user, "password": password}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            tokens[user] = json.load(answer)["access_token"]
    return tokens


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if browser.CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with browser.browser() as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path, chromium: Any) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("pages") / "home"
    passwords = {user: f"{user}-password" for user in USERS}
    options = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
    }
    env = airflow_env.make(home, shared_dir, options, dags=[])
    (home / "passwords.json").write_text(json.dumps(passwords))
    (env.dags / "watched.py").write_text(DAG)
    env.start()
    try:
        tokens = log_in(env, passwords)
        env.api.__dict__["authorization"] = {"Authorization": f"Bearer {tokens['ann']}"}
        env.api.unpause("watched")
        run = env.api.trigger("watched")
        run.wait_for_state("long", "running")
        run.wait_for_state("wrong", "failed")

        def live() -> list[Any]:
            return [record for record in env.records("watched") if not record.state.is_end]

        wait_for(lambda: len(live()) == 1, "the other's runner to end")
        yield Site(env, run, tokens, chromium)
    finally:
        env.end()


@pytest.mark.core
def test_nobody_gets_anything_without_having_logged_in(site: Site) -> None:
    for path in ("/api/runs", "/api/ended", "/api/jobs", "/api/jobs/x", "/api/runs/0000"):
        assert site.ask(None, path)[0] == 401, path
    assert site.ask(None, "/api/instance?dag_id=watched&run_id=x&task_id=long")[0] == 401
    assert site.ask(None, "/api/runs/0000/stop", "POST", **{"X-Air-Executor": "1"})[0] == 401
    assert site.ask("eve", "/static/../../pyproject.toml")[0] == 404
    assert site.ask("eve", "/api/runs/0000")[0] == 404


@pytest.mark.core
def test_a_viewer_sees_what_runs_and_can_stop_nothing(site: Site) -> None:
    with site.page("eve") as page:
        page.goto(f"{site.airflow.url}/plugin/air-executor")
        row = page.locator("tbody tr", has_text="watched.long")
        row.wait_for()
        row.locator("text=of 500 MiB").wait_for()
        browser.picture(page, "airflow-runners")
        page.get_by_text("1 runner", exact=False).first.wait_for()
        assert row.get_by_role("button", name="Stop").count() == 0
        page.get_by_role("tab", name="Ended").click()
        page.locator("tbody tr", has_text="ValueError: on purpose").wait_for()
        assert page.problems == []
    code, live = site.ask("eve", "/api/runs")
    assert code == 200 and [each["may_stop"] for each in live["runs"]] == [False]
    stop = f"/api/runs/{live['runs'][0]['id']}/stop"
    assert site.ask("eve", stop, "POST", **{"X-Air-Executor": "1"})[0] == 403
    assert site.run.instance("long")["state"] == "running"


def test_the_page_is_dark_where_airflow_is(site: Site) -> None:
    with site.page("eve", color_scheme="dark") as page:
        page.goto(f"{site.airflow.url}/plugin/air-executor")
        row = page.locator("tbody tr", has_text="watched.long")
        row.wait_for()
        assert page.evaluate("document.documentElement.classList.contains('dark')")
        assert min(row.evaluate(COLOUR)) > 150  # light letters
        browser.picture(page, "airflow-runners-dark")


@pytest.mark.core
def test_who_may_edit_a_task_instance_stops_its_run_from_its_tab(site: Site) -> None:
    with site.page("bob") as page:
        page.goto(site.tab("wrong"))
        page.locator("section", has_text="ValueError: on purpose").wait_for()
        page.goto(site.tab("long"))
        card = page.locator("section", has_text="Try 1")
        card.wait_for()
        card.locator("canvas").first.wait_for()
        assert card.locator("canvas").count() == 2  # memory with its limit, CPU
        browser.picture(page, "airflow-tab")
        card.get_by_role("button", name="Stop").press("Enter")
        card.get_by_role("button", name="Yes").press("Enter")
        page.locator("section", has_text="stopped in Airflow's UI, by bob").wait_for()
        assert page.problems == []
    assert site.run.wait_for_state("long", "failed")["try_number"] == 1
    told = {each["event"]: each for each in site.run.events("long")}
    assert told[STOP_EVENT]["owner"] == "bob"
    record = next(each for each in site.airflow.ended_records("watched") if each.identity.task_id == "long")
    assert record.state in (RunState.KILLED, RunState.FAILED)
    code, said = site.ask("bob", f"/api/runs/{record.id}/stop", "POST", **{"X-Air-Executor": "1"})
    assert code == 409 and "has ended already" in said
    assert site.ask("bob", f"/api/runs/{record.id}/stop", "POST")[0] == 403  # as another site's form would


def test_a_thousand_runs_are_shown_and_filtered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    code, live = site.ask("eve", "/api/runs")
    assert code == 200
    _, ended = site.ask("eve", "/api/ended")
    many = [{**ended["runs"][0], "id": f"{number}", "label": f"crowd.task[{number}]"} for number in range(1000)]
    with site.page("eve") as page:
        page.route("**/air-executor/api/runs", lambda route: route.fulfill(json={**live, "runs": many}))
        page.goto(f"{site.airflow.url}/plugin/air-executor")
        wait_for(lambda: page.locator("tbody tr").count() == 1000, "a thousand rows")
        page.get_by_role("searchbox").fill("task[77")
        wait_for(lambda: page.locator("tbody tr").count() == 11, "eleven rows")
        assert page.problems == []


def test_a_path_below_which_airflow_is_served_is_kept(
    tmp_path: Path, shared_dir: Path, monkeypatch: pytest.MonkeyPatch, chromium: Any
) -> None:
    env = airflow_env.make(tmp_path / "home", shared_dir)
    env.url = env.env["AIRFLOW__API__BASE_URL"] = f"{env.url}/below/here"

    def is_healthy(_: Airflow) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{env.url}/api/v2/monitor/health", timeout=60):
            return True
        return False

    monkeypatch.setattr(Airflow, "is_healthy", is_healthy)
    env.store.prepare()  # no scheduler has made it
    try:
        env.start("api-server")
        with browser.page(chromium) as page:
            page.goto(f"{env.url}/")  # Airflow 3.1 logs everybody in here, and comes back to this page alone
            page.get_by_text("Admin", exact=True).first.wait_for()
            page.goto(f"{env.url}/plugin/air-executor")
            page.get_by_text("Nothing runs.").wait_for()  # what the API below that path has said
            page.get_by_role("tab", name="Jobs").click()
            page.get_by_text("There are no jobs.").wait_for()
            assert page.problems == []
    finally:
        env.end()
