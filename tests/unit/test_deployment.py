"""The files for containers and systemd are well formed, and say what the design wants of them."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.airflow_env import REPOSITORY

UNITS = sorted((REPOSITORY / "examples" / "systemd").glob("*.service"))


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run([tool("hadolint"), str(REPOSITORY / "docker" / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_follows_the_specification() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker/compose.yaml"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_unit_takes_tasks_with_it(unit: Path) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(unit)
    assert parser["Service"]["KillMode"] == "process"
    assert parser["Service"]["ExecStart"].startswith("/")
