"""The doctor tells what will happen, whatever the set-up is."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.cli import doctor
from air_executor.config import env_var
from air_executor.jobs import api
from air_executor.runs.lock import KernelLock
from tests.unit.conftest import Cli


def found(cli: Cli, name: str, **env: str) -> dict[str, Any]:
    cli.env |= env
    checks = cli.run("doctor", "--json", code=1).stdout
    return next(check for check in orjson.loads(checks) if check["name"] == name)


@pytest.mark.parametrize(
    "value",
    [
        "air_executor.AirExector",
        "air_executor.executer.AirExecutor",
        "my_air_executor.Executor",
        "air_executor.config.Config",
        "LocalExecutor",
        "LocalExecutor,air:air_executor.AirExector",
        "air_executor.AirExecutor,CeleryExecutorr",
        "air_executor.AirExecutor,air:air_executor.AirExecutor",
        "air:",
        "",
    ],
)
def test_an_executor_that_is_not_ours_or_is_misspelt_is_not_ok(cli: Cli, value: str) -> None:
    check = found(cli, "executor", AIRFLOW__CORE__EXECUTOR=value)
    assert not check["ok"], check
    assert "air_executor.AirExecutor" in check["remedy"] or "configured so" in check["remedy"]


@pytest.mark.parametrize(
    "value",
    [
        "air_executor.AirExecutor",
        "air_executor.airflow.executor.AirExecutor",
        "LocalExecutor,air:air_executor.AirExecutor",
        "air_executor.AirExecutor,LocalExecutor",
    ],
)
def test_every_way_to_name_the_executor_is_ok(cli: Cli, value: str) -> None:
    assert found(cli, "executor", AIRFLOW__CORE__EXECUTOR=value)["ok"]


@pytest.mark.parametrize(
    ("below", "variable"),
    [
        ("/proc/foo", env_var("state_dir")),
        ("/proc/self/foo/deeper", "AIR_EXECUTOR_STATE_DIR"),
        ("/dev/null/foo", env_var("state_dir")),
        ("{file}/foo", "AIR_EXECUTOR_STATE_DIR"),
        ("{dangling}", env_var("state_dir")),
    ],
)
def test_a_state_directory_that_can_not_be_made_is_not_ok(cli: Cli, tmp_path: Path, below: str, variable: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    path = below.format(file=tmp_path / "file", dangling=tmp_path / "dangling")
    check = found(cli, "state directory", **{variable: path})
    assert not check["ok"], check
    assert path in check["found"]


def test_one_that_can_be_made_is_not_made(cli: Cli, tmp_path: Path) -> None:
    check = found(cli, "state directory", **{env_var("state_dir"): str(tmp_path / "new" / "er")})
    assert check["ok"]
    assert "created when needed" in check["found"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "state"]


def test_a_launcher_that_nobody_has_started_is_not_promised(cli: Cli, tmp_path: Path) -> None:
    check = found(cli, "launcher", **{env_var("launcher"): "service"})
    assert not check["ok"]
    assert "air-executor launcher" in check["remedy"]
    assert not found(cli, "launcher", **{env_var("state_dir"): str(tmp_path / "new")})["ok"]


def test_a_module_to_import_ahead_that_is_not_there_is_named(cli: Cli) -> None:
    check = found(cli, "options", **{env_var("preload"): "auto,json,no_such_module.part,-torch"})
    assert not check["ok"]
    assert check["found"].endswith("not installed here: no_such_module.part")


def test_what_is_set_and_is_no_option_is_named(cli: Cli) -> None:
    file = Path(cli.env["AIRFLOW_HOME"]) / "airflow.cfg"
    file.write_text("[DEFAULT]\nx = 1\n[air_executor]\nlauch = 5\nkeep_day = 5\nsomething_else = 5\n")
    check = found(cli, "options")
    assert not check["ok"]
    words = "keep_day (did you mean keep_days?), lauch (did you mean launch?), something_else"
    assert check["found"].endswith(f"not an option: {words}")
    file.write_text("[DEFAULT]\nx = 1\n[air_executor]\nkeep_days = 5\n")
    assert found(cli, "options")["ok"]
    assert "not an option: lauch" in found(cli, "options", **{env_var("lauch"): "5"})["found"]


@pytest.fixture
def folder_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AIRFLOW_HOME", "AIRFLOW_CONFIG", "AIR_EXECUTOR_STATE_DIR", env_var("state_dir")):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "project" / ".air-executor").mkdir(mode=0o700, parents=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_a_folder_of_jobs_needs_no_airflow(folder_of_jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    checks = {check.name: check for check in doctor.examine()}
    assert [check for check in checks.values() if not check.ok] == []
    assert str(folder_of_jobs / ".air-executor") in checks["state directory"].found
    assert "jobs work without it" in checks["airflow"].found
    assert "executor" not in checks
    monkeypatch.setenv("AIRFLOW_HOME", str(folder_of_jobs))
    monkeypatch.chdir("/")
    assert not next(check for check in doctor.examine() if check.name == "airflow").ok, "there it is needed"


def test_jobs_that_wait_for_a_manager_are_told(folder_of_jobs: Path) -> None:
    api.submit("nightly", [{"command": "true"}])
    check = next(check for check in doctor.examine() if check.name == "jobs")
    assert not check.ok
    assert "nightly" in check.found
    assert "air-executor start" in check.remedy
    lock = KernelLock(folder_of_jobs / ".air-executor" / "jobs" / "nightly" / "lock")
    assert lock.acquire(0)
    assert next(check for check in doctor.examine() if check.name == "jobs").ok, "somebody runs it"
    lock.release()
    (folder_of_jobs / ".air-executor" / "jobs" / "nightly" / "tasks.json").write_text("[")
    check = next(check for check in doctor.examine() if check.name == "jobs")
    assert "1 of 1 can't be read" in check.found
