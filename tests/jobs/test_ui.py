"""``air-executor ui``: pages in a browser without Airflow, for who has the token."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from air_executor.runs.record import RunState
from tests.jobs.conftest import Yard
from tests.support import browser
from tests.support.waiting import wait_for


@pytest.fixture
def url(yard: Yard) -> Iterator[str]:
    """The address of the pages, with the token."""
    server = subprocess.Popen(yard.command("ui", "--json"), env=yard.env, cwd=yard.folder, stdout=subprocess.PIPE)
    assert server.stdout is not None
    yield json.loads(server.stdout.readline())["url"]
    server.terminate()
    server.wait(60)


def ask(url: str, path: str, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(url.split("/?")[0] + path, headers=headers, method=headers.pop("method", "GET"))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_only_who_has_the_token_and_names_this_machine_gets_anything(yard: Yard, url: str) -> None:
    yard.submit({"id": "a", "command": "true"})
    cookie = f"air_executor_token={url.partition('token=')[2]}"
    code, found = ask(url, "/api/jobs", Cookie=cookie)
    assert code == 200 and [job["name"] for job in found["jobs"]] == ["job"]
    for path in ("/", "/api/runs", "/api/ended", "/api/jobs", "/api/jobs/job", "/static/air_executor.js", "/?token=x"):
        assert ask(url, path)[0] == 401, path
        assert ask(url, path, Cookie="air_executor_token=wrong")[0] == 401, path
        assert ask(url, path, Cookie=cookie, Host="evil.example:80")[0] == 403, path
    assert ask(url, "/api/jobs/absent", Cookie=cookie) == (404, {"detail": ANY_TEXT})
    assert ask(url, "/static/..%2f..%2fsetup.py", Cookie=cookie)[0] == 404
    assert ask(url, "/api/runs/0000/stop", method="POST", Cookie=cookie)[0] == 403  # as a form of another page would


class _AnyText(str):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and bool(other)

    __hash__ = str.__hash__


ANY_TEXT = _AnyText()


@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no chromium here")
def test_a_browser_shows_what_runs_and_stops_it(yard: Yard, url: str) -> None:
    yard.submit(
        {"id": "long", "command": "sleep 600", "shell": True, "limits": {"memory": "500MiB"}},
        {"id": "short", "command": "echo"},
        {"id": "wrong", "command": "exit 3", "shell": True},
        {"id": "after", "command": "true", "dependencies": ["wrong"]},
        max_runners=2,
    )
    yard.start_manager()
    wait_for(lambda: yard.tasks()["wrong"].status.is_end, "the failing task to end")
    yard.runner_of("long")
    with browser.browser() as chromium, browser.page(chromium) as page:
        page.goto(url)
        assert "token" not in page.url
        row = page.locator("tbody tr", has_text="job/long")
        row.wait_for()
        row.locator("text=of 500 MiB").wait_for()
        browser.picture(page, "ui-runners")
        page.keyboard.press("Tab")
        page.get_by_role("tab", name="Runners").press("ArrowRight")
        assert page.get_by_role("tab", name="Ended").get_attribute("aria-selected") == "true"
        ended = page.locator("tbody tr", has_text="job/wrong")
        ended.wait_for()
        assert "failed" in ended.inner_text()
        page.get_by_role("tab", name="Jobs").click()
        page.get_by_role("button", name="job").click()
        tree = page.get_by_role("region", name="Job job")
        tree.locator("li li", has_text="after").wait_for()  # below the one that it waits for
        browser.picture(page, "ui-jobs")
        assert page.problems == []


def test_a_run_is_stopped_by_name(yard: Yard, url: str) -> None:
    yard.submit({"id": "long", "command": "sleep 600", "shell": True})
    yard.start_manager()
    yard.runner_of("long")
    run_id = yard.tasks()["long"].run_id or ""
    cookie = f"air_executor_token={url.partition('token=')[2]}"
    code, found = ask(url, f"/api/runs/{run_id}/stop", **{"method": "POST", "Cookie": cookie, "X-Air-Executor": "1"})
    assert (code, found) == (200, {"id": run_id})
    wait_for(lambda: yard.runs.read(run_id).state.is_end, "the run to end")
    record = yard.runs.read(run_id)
    assert record.state in (RunState.KILLED, RunState.FAILED) and "stopped in a browser, by" in (record.reason or "")
    code, found = ask(url, f"/api/runs/{run_id}/stop", **{"method": "POST", "Cookie": cookie, "X-Air-Executor": "1"})
    assert code == 409 and "has ended already" in found["detail"]
