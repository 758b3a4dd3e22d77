"""The demo's settings stand in its airflow.cfg, so that every command with its AIRFLOW_HOME finds them."""

from __future__ import annotations

import configparser
import importlib.util
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from air_executor import config
from tests.support.airflow_env import REPOSITORY


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("demo", REPOSITORY / "scripts" / "demo.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HOME", tmp_path / "a home")
    module.HOME.mkdir()
    return module


def test_airflow_finds_the_settings_without_the_demos_environment(demo: Any) -> None:
    demo.configure(8123)
    assert stat.S_IMODE((demo.HOME / "airflow.cfg").stat().st_mode) == 0o600
    code = (
        "from airflow.configuration import conf\n"
        "print(conf.get('core', 'executor'), conf.get('core', 'dags_folder'), conf.getboolean('core', 'load_examples'),"
        " conf.getboolean('core', 'dags_are_paused_at_creation'), conf.get('api', 'base_url'), conf.get('api', 'port'))"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    said = subprocess.check_output(
        [sys.executable, "-c", code], env={**env, "AIRFLOW_HOME": str(demo.HOME)}, text=True, timeout=120
    )
    dags = REPOSITORY / "examples" / "dags"
    assert said.splitlines()[-1] == (f"air_executor.AirExecutor {dags} False False http://localhost:8123 8123")


def test_secrets_stay_and_settings_follow(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (demo.HOME / "airflow.cfg").write_text("[core]\nfernet_key = mine\nexecutor = LocalExecutor\n[x]\ny = %(z)s\n")
    demo.configure(1)
    first = (demo.HOME / "airflow.cfg").read_text()
    demo.configure(2)
    second = (demo.HOME / "airflow.cfg").read_text()
    assert second == first.replace("localhost:1", "localhost:2").replace("port = 1", "port = 2")
    parser = configparser.RawConfigParser()
    parser.read_string(second)
    assert parser["core"]["fernet_key"] == "mine"
    assert parser["core"]["executor"] == "air_executor.AirExecutor"
    assert parser["x"]["y"] == "%(z)s"
    assert len({parser["api"]["secret_key"], parser["api_auth"]["jwt_secret"]} - {""}) == 2
    monkeypatch.setenv("AIRFLOW_HOME", str(demo.HOME))
    monkeypatch.delenv("AIRFLOW_CONFIG", raising=False)
    assert config.plain_getter("core")("dags_folder") == str(REPOSITORY / "examples" / "dags")


def test_what_the_user_has_set_for_another_airflow_stays_out(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW__CORE__EXECUTOR", "AIRFLOW_HOME", "AIRFLOW_CONFIG", "AIR_EXECUTOR_STATE_DIR"):
        monkeypatch.setenv(name, "another")
    monkeypatch.delenv("PATH")
    env = demo.environment()
    ours = {name: value for name, value in env.items() if name.startswith(("AIRFLOW", "AIR_EXECUTOR"))}
    assert ours == {"AIRFLOW_HOME": str(demo.HOME)}
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
