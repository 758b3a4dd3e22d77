"""The README's Python sample runs as it stands, and shows what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.jobs.conftest import LONG_S, Yard
from tests.support.airflow_env import REPOSITORY


def test_the_sample_that_waits_for_a_job_shows_its_results(yard: Yard) -> None:
    text = (REPOSITORY / "README.md").read_text()
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
