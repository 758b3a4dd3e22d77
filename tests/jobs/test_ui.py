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
    with server.stdout:
        yield json.loads(server.stdout.readline())["url"]
        server.terminate()
        server.wait(60)


def ask(url: str, path: str, **headers: str) -> tuple[int, Any]:
    method = headers.pop("method", "GET")
    request = urllib.request.Request(url.split("/#")[0] + path, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def token(url: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {url.partition('token=')[2]}"}


def test_only_who_has_the_token_and_names_this_machine_gets_anything(yard: Yard, url: str) -> None:
    yard.submit({"id": "a", "command": "true"})
    code, found = ask(url, "/api/jobs", **token(url))
    assert code == 200 and [job["name"] for job in found["jobs"]] == ["job"]
    assert ask(url, "/api/ended", **token(url)) == (200, {"runs": []})  # nothing has run yet
    for path in ("/api/runs", "/api/ended", "/api/jobs", "/api/jobs/job", "/api/instance", "/api/runs/0000"):
        assert ask(url, path)[0] == 401, path
        assert ask(url, path, Authorization="Bearer wrong")[0] == 401, path
        assert ask(url, path, Authorization="Bearer \u00e9")[0] == 401, path
        assert ask(url, path, **token(url), Host="evil.example:80")[0] == 403, path
    for path, detail in (("/api/jobs/absent", "no job"), ("/api/runs/0000", "no run"), ("/api/absent", "not found")):
        code, found = ask(url, path, **token(url))
        assert code == 404 and detail in found["detail"], path
    assert ask(url, "/static/..%2f..%2fserver.py")[0] == 404
    assert ask(url, "/api/runs/0000/stop", method="POST")[0] == 401
    assert "#" in url and "?" not in url  # so the token is sent to no server, and stands in no log


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
        row = page.locator("tbody tr", has_text="job/long")
        row.wait_for()
        row.locator("text=of 500 MiB").wait_for()
        assert "token" not in page.url and page.context.cookies() == []
        browser.picture(page, "ui-runners")
        page.reload()  # the token is kept for this tab
        row.wait_for()
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
        page.get_by_role("tab", name="Runners").click()
        row.get_by_role("button", name="Stop").click()
        row.get_by_role("button", name="Yes").click()
        page.get_by_text("Nothing runs.").wait_for()
        assert page.problems == []
    wait_for(lambda: yard.tasks()["long"].status.is_end, "the stopped task to end")


def test_a_run_is_stopped_by_name(yard: Yard, url: str) -> None:
    yard.submit({"id": "long", "command": "sleep 600", "shell": True})
    yard.start_manager()
    yard.runner_of("long")
    run_id = yard.tasks()["long"].run_id or ""
    code, found = ask(url, f"/api/runs/{run_id}/stop", method="POST", **token(url))
    assert (code, found) == (200, {"id": run_id})
    wait_for(lambda: yard.runs.read(run_id).state.is_end, "the run to end")
    record = yard.runs.read(run_id)
    assert record.state in (RunState.KILLED, RunState.FAILED) and "stopped in a browser, by" in (record.reason or "")
    code, found = ask(url, f"/api/runs/{run_id}/stop", method="POST", **token(url))
    assert code == 409 and "has ended already" in found["detail"]
