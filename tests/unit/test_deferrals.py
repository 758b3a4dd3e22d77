"""Jobs of deferred tasks, as the executor looks after them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.airflow import deferrals
from air_executor.airflow.deferrals import Deferrals
from air_executor.jobs import api
from air_executor.jobs.notes import folder_of, remove_note, write_note
from air_executor.jobs.owner import Owner
from air_executor.jobs.store import JobStore


class Site:
    """A state directory with one job, whose task is deferred, and what the database says of that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instance = str(uuid.uuid4())
        self.owner = Owner("d", "t", "r", instance=self.instance)
        self.store = JobStore(folder)
        job, tasks, values = api.describe("job", [{"id": "a", "command": "true"}], folder, folder=folder)
        job.made_by = self.owner.to_document()
        self.store.create(job, tasks, values)
        write_note(folder, self.instance, str(folder), "job", self.owner)
        self.deferrals = Deferrals(folder)
        self.states: dict[str, str | None] = {self.instance: "deferred"}
        self.asked_for: list[list[str]] = []

    def states_of(self, instances: list[str]) -> dict[str, str | None]:
        self.asked_for.append(instances)
        return {each: self.states[each] for each in instances if each in self.states}

    def look(self) -> list[dict[str, Any]]:
        """Look when it is time, and return what is asked of the job."""
        self.deferrals._next_s = 0.0
        self.deferrals.look()
        return [orjson.loads(ask.path.read_bytes()) for ask in self.store.files("job").asks()]

    @property
    def notes(self) -> list[str]:
        return [path.name for path in folder_of(self.folder).iterdir()]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path / "state")
    monkeypatch.setattr(deferrals, "states_of", made.states_of)
    return made


@pytest.mark.parametrize("state", ["deferred", "scheduled", "queued", "running", None])
def test_a_task_that_waits_or_goes_on_keeps_its_job(site: Site, state: str | None) -> None:
    site.states[site.instance] = state
    assert site.look() == []
    assert site.notes == [f"{site.instance}.json"]


@pytest.mark.parametrize("state", ["failed", "success", "skipped", "removed"])
def test_a_task_that_was_marked_cancels_its_job(site: Site, state: str) -> None:
    site.look()
    site.states[site.instance] = state
    assert [(each["action"], each["owner"]) for each in site.look()] == [("cancel", site.owner.to_document())]
    assert site.notes == []


def test_a_task_that_is_gone_cancels_its_job_if_this_database_had_it(site: Site) -> None:
    site.look()
    site.states.clear()
    assert len(site.look()) == 1


def test_a_task_of_another_database_is_left_alone(site: Site) -> None:
    site.states.clear()
    assert site.look() == []
    assert site.notes == [f"{site.instance}.json"]


def test_a_task_that_was_resumed_is_not_asked_for(site: Site) -> None:
    site.look()
    remove_note(site.folder, site.instance)
    site.asked_for.clear()
    assert site.look() == []
    assert site.asked_for == []


def test_garbage_among_the_notes_hurts_no_other(site: Site) -> None:
    (folder_of(site.folder) / "x.json").write_bytes(b"\xff")
    (folder_of(site.folder) / f"{uuid.uuid4()}.json").mkdir()
    site.look()
    site.states[site.instance] = "failed"
    assert len(site.look()) == 1
