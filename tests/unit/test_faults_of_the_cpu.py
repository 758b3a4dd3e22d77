"""Faults of the CPU end a process at once, also one that has read a DAG file, and it shows where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import deaths
from tests.support.airflow_env import REPOSITORY

pytestmark = pytest.mark.core

#: Forks, for each fault, a process that reads a DAG file as Airflow does it for a task, and has the fault.
PROCESSES = """
import json, os, resource
from air_executor.machine import system
from air_executor.airflow import rehearsal
from air_executor.airflow import supervision
from tests.support import deaths

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
system.show_faults()
rehearsal.rehearse()
ends = {}
for fault in deaths.FAULTS:
    pid = os.fork()
    if not pid:
        rehearsal.rehearse()
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))  # one that has the fault for ever ends otherwise
        os.dup2(os.open(fault.__name__, os.O_WRONLY | os.O_CREAT), 2)
        fault()
        os._exit(0)
    ends[fault.__name__] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def ends(folder: Path) -> dict[str, int]:
    """The exit codes of processes that had a fault, by its name."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "AIRFLOW_HOME": str(folder)}
    done = subprocess.run([sys.executable, "-c", PROCESSES], cwd=folder, env=env, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("fault", deaths.FAULTS, ids=lambda fault: str(fault.__name__))
def test_a_process_that_has_read_a_dag_file_dies_of_a_fault_and_shows_where(
    ends: dict[str, int], folder: Path, fault: deaths.Fault
) -> None:
    assert ends[fault.__name__] == -deaths.FAULTS[fault]
    shown = (folder / fault.__name__).read_text()
    assert "Fatal Python error" in shown
    assert "deaths.py" in shown


def test_a_handler_that_anything_else_sets_is_set() -> None:
    """Airflow's alone is left out: what tasks do is theirs."""
    code = "import signal; from air_executor.airflow import supervision; signal.signal(signal.SIGSEGV, signal.SIG_IGN);"
    code += "assert signal.getsignal(signal.SIGSEGV) is signal.SIG_IGN"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
