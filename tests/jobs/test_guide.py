"""The Python sample of the guide to jobs runs as it stands, and shows what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from air_executor.errors import JobError
from air_executor.jobs import api
from tests.jobs.conftest import LONG_S, Yard
from tests.support.airflow_env import REPOSITORY


def test_waiting_without_a_manager_says_so_once(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api, "_NO_MANAGER_S", 0.0)
    yard.submit({"id": "a", "command": "true"})
    with pytest.raises(JobError, match=r"job job is waiting after 0\.5 s"):
        api.wait("job", timeout_s=0.5, state_dir=yard.state_dir)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("air_executor")] == [
        "Nobody works on job job; begin with `air-executor start` or `air-executor run job`"
    ]


def test_the_sample_that_waits_for_a_job_shows_its_results(yard: Yard) -> None:
    text = (REPOSITORY / "docs" / "guides" / "jobs.md").read_text()
    [sample] = re.findall(r"```python\n(from air_executor\.jobs import submit, wait\n.*?)```", text, re.DOTALL)
    yard.start_manager()
    done = subprocess.run(
        [sys.executable, "-c", sample], env=yard.env, cwd=yard.folder, capture_output=True, text=True, timeout=LONG_S
    )
    assert done.stderr == ""
    said = re.search(r"# (completed .*)", sample)
    assert said
    assert done.stdout.strip() == said[1].replace("8", str(os.cpu_count()))
    assert yard.log("report", "nightly") == f"{os.cpu_count()} CPUs\n"
