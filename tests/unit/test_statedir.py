"""One rule for the state directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from air_executor.config import env_var
from air_executor.errors import ConfigError, StateDirError
from air_executor.jobs import api
from air_executor.runs.statedir import VARIABLE, locate
from tests.unit.conftest import Cli


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AIRFLOW", "AIR_EXECUTOR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "project" / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "deep" / "er")


def test_what_is_named_counts_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "project" / ".air-executor").mkdir()
    assert locate().path == tmp_path / "project" / ".air-executor"
    assert "nearest" in str(locate())
    monkeypatch.setenv(env_var("state_dir"), str(tmp_path / "airflows"))
    assert locate().path == tmp_path / "airflows"
    monkeypatch.setenv(VARIABLE, "named")
    assert locate().path == tmp_path / "project" / "deep" / "er" / "named"
    assert api.find_state_dir() == locate().path


def test_without_a_folder_it_is_airflows_and_without_airflow_a_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = tmp_path / "project" / "deep" / "er"
    assert locate().path == here / ".air-executor"
    home = tmp_path / "home" / "airflow"
    home.mkdir(parents=True)
    (home / "airflow.cfg").write_text("[core]\n")
    assert locate().path == home / ".air-executor"
    (home / "airflow.cfg").write_text(f"[air_executor]\nstate_dir = {tmp_path}/else\nkeep_runs = many\n")
    assert locate().path == tmp_path / "else", "whatever the other options are"
    (home / "airflow.cfg").write_text("[air_executor]\nstate_dir = relative\n")
    with pytest.raises(ConfigError, match="state_dir"):
        locate()


def test_a_stale_default_folder_of_airflow_is_not_taken_for_a_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "airflow"
    (home / ".air-executor").mkdir(parents=True)
    (home / "airflow.cfg").write_text(f"[air_executor]\nstate_dir = {tmp_path}/else\n")
    monkeypatch.setenv("AIRFLOW_HOME", str(home))
    monkeypatch.chdir(home)
    assert locate().path == tmp_path / "else"


def test_a_working_directory_that_is_gone_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StateDirError, match="was removed"):
        locate()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ["status", "runs", "jobs"])
def test_every_list_says_where_it_looks_and_can_be_told(cli: Cli, tmp_path: Path, command: str) -> None:
    done = cli.run(command)
    assert done.stderr == f"state directory {cli.env[env_var('state_dir')]} ({env_var('state_dir')})\n"
    assert "state directory" not in done.stdout, "it is no row"
    for arguments in ((command, "--state-dir", "other"), ("--state-dir", "other", command)):
        assert cli.run(*arguments).stderr == f"state directory {Path.cwd() / 'other'} ({VARIABLE})\n"
    assert not Path("other").exists()


def test_runs_and_jobs_are_looked_for_in_the_same_place(cli: Cli, tmp_path: Path) -> None:
    del cli.env[env_var("state_dir")]
    Path(".air-executor").mkdir()
    said = {cli.run(command).stderr for command in ("status", "runs", "jobs")}
    assert said == {f"state directory {Path.cwd() / '.air-executor'} (the nearest .air-executor)\n"}
