"""The folders of single DAG runs, and what is asked for, without an Airflow."""

from __future__ import annotations

import configparser
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from air_executor.errors import StateDirError
from air_executor.pocket import folder as folders
from air_executor.pocket.folder import RunFolder, all_folders, claim, dags_dir, find
from air_executor.pocket.request import BusyError, DagError, Request, check, locate, parse_conf
from air_executor.pocket.result import DagResult
from air_executor.pocket.settings import environment, write_settings


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    (tmp_path / "my dag.py").touch()
    return check(Request(str(tmp_path / "my dag.py")))


def names(parent: Path) -> list[str]:
    return sorted(folder.name for folder in all_folders(parent))


def test_an_unfinished_run_is_claimed_again_and_a_finished_one_is_not(tmp_path: Path, request_: Request) -> None:
    parent = tmp_path / "dags"
    first, lock, goes_on = claim(parent, request_, restart=False)
    assert (first.name, goes_on, first.is_busy()) == ("my_dag-1", False, True)
    beside, other, goes_on = claim(parent, request_, restart=False)
    assert (beside.name, goes_on) == ("my_dag-2", False)
    other.release(keep_file=True)
    beside.remove()
    lock.release(keep_file=True)
    # What does not say which run it is may differ.
    again, lock, goes_on = claim(parent, dataclasses.replace(request_, parallelism=3, keep=True), restart=False)
    assert (again.path, goes_on, again.request().parallelism) == (first.path, True, 3)
    again.write("result.json", {"state": "success"})
    lock.release(keep_file=True)
    third, lock, goes_on = claim(parent, request_, restart=False)
    assert (third.name, goes_on) == ("my_dag-2", False)
    lock.release(keep_file=True)
    assert names(parent) == ["my_dag-1", "my_dag-2"]
    fourth, lock, goes_on = claim(parent, request_, restart=True)
    assert not goes_on
    assert third.path == fourth.path or not third.path.exists()


@pytest.mark.parametrize(
    "change",
    [{"conf": {"a": 1}}, {"dag_id": "x"}, {"tasks": ("a",)}, {"logical_date": "2026-01-01"}, {"on": "temporal"}],
)
def test_another_run_is_another_run(tmp_path: Path, request_: Request, change: dict[str, Any]) -> None:
    _, lock, _ = claim(tmp_path / "dags", request_, restart=False)
    lock.release(keep_file=True)
    _, _, goes_on = claim(tmp_path / "dags", dataclasses.replace(request_, **change), restart=False)
    assert not goes_on


def test_a_run_with_an_id_is_there_once(tmp_path: Path, request_: Request) -> None:
    named = dataclasses.replace(request_, run_id="mine")
    run, lock, _ = claim(tmp_path / "dags", named, restart=False)
    with pytest.raises(BusyError, match="run mine is running already, as my_dag-1"):
        claim(tmp_path / "dags", named, restart=True)
    lock.release(keep_file=True)
    other = dataclasses.replace(named, conf={"a": 1})
    with pytest.raises(DagError, match="run mine was begun with other options, as my_dag-1"):
        claim(tmp_path / "dags", other, restart=False)
    run.write("result.json", {"state": "failed"})
    with pytest.raises(DagError, match="run mine has ended, as my_dag-1; --restart begins it anew"):
        claim(tmp_path / "dags", named, restart=False)
    anew, _, goes_on = claim(tmp_path / "dags", named, restart=True)
    assert (anew.name, goes_on, anew.result()) == ("my_dag-1", False, None)


def test_a_folder_is_its_owners_alone_and_git_does_not_see_it(tmp_path: Path, request_: Request) -> None:
    run, _, _ = claim(tmp_path / "dags", request_, restart=False)
    write_settings(run, request_)
    for path in (run.path, run.home, run.logs, run.state_dir, run.home / "airflow.cfg", run.path / "request.json"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "dags" / ".gitignore").read_text() == "*\n"


def test_runs_are_found_by_name_and_the_newest_without_one(tmp_path: Path, request_: Request) -> None:
    with pytest.raises(DagError, match="no DAG was run here"):
        find(tmp_path / "dags", None)
    for number in (1, 2):
        run, lock, _ = claim(tmp_path / "dags", dataclasses.replace(request_, run_id=str(number)), restart=False)
        lock.release(keep_file=True)
        os.utime(run.path / "request.json", (number, number))
    assert find(tmp_path / "dags", None).name == "my_dag-2"
    assert find(tmp_path / "dags", "my_dag-1").name == "my_dag-1"
    with pytest.raises(DagError, match="there is no run 'other'"):
        find(tmp_path / "dags", "other")


def test_files_that_cannot_be_understood_are_named(tmp_path: Path, request_: Request) -> None:
    run, lock, _ = claim(tmp_path / "dags", request_, restart=False)
    lock.release(keep_file=True)
    (run.path / "request.json").write_text("{")
    with pytest.raises(DagError, match="request"):
        run.request()
    (run.path / "result.json").write_text("[1]")
    with pytest.raises(DagError, match=r"result\.json can't be understood"):
        run.result()
    other, _, goes_on = claim(tmp_path / "dags", request_, restart=False)  # it does no harm
    assert (other.name, goes_on) == ("my_dag-2", False)


def test_where_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIR_EXECUTOR_STATE_DIR", raising=False)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    (tmp_path / "airflow" / ".air-executor").mkdir(parents=True)
    inner = tmp_path / "airflow" / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert dags_dir() == inner / ".air-executor" / "dags"  # never Airflow's own
    (tmp_path / ".air-executor").mkdir(mode=0o700)
    assert dags_dir() == tmp_path / ".air-executor" / "dags"
    assert dags_dir(tmp_path / "x") == tmp_path / "x" / "dags"
    (tmp_path / ".air-executor").chmod(0o777)
    with pytest.raises(StateDirError, match="others may write"):
        dags_dir()


@pytest.mark.parametrize("text", ["{", "[]", "@nothing.json", "3"])
def test_a_configuration_that_is_none(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DagError, match=r"JSON|nothing\.json"):
        parse_conf(text)


def test_a_configuration_comes_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "conf.json").write_text('{"a": [1]}')
    assert parse_conf(f"@{tmp_path}/conf.json") == parse_conf('{"a": [1]}') == {"a": [1]}


def test_where_the_code_of_a_dag_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack" / "inner").mkdir(parents=True)
    (tmp_path / "pack" / "inner" / "__init__.py").touch()
    (tmp_path / "pack" / "flow.py").touch()
    found = locate(str(tmp_path / "pack" / "flow.py"))
    assert (found.bundle, found.path, found.variable) == (f"{tmp_path}/pack", f"{tmp_path}/pack/flow.py", None)
    assert locate(str(tmp_path / "pack")).path == f"{tmp_path}/pack"
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found = locate("pack.flow:dag")
    assert (found.bundle, found.path, found.variable) == (f"{tmp_path}", f"{tmp_path}/pack/flow.py", "dag")
    assert locate("pack.inner:dag").path == f"{tmp_path}/pack/inner/__init__.py"
    for wrong in ("pack.none:dag", "pack.flow", "none.py", "pack/flow:dag"):
        with pytest.raises(DagError, match="there is no"):
            locate(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connections": "none.yaml"}, "there is no file .*none.yaml"),
        ({"config_from": ("none.cfg",)}, "there is no file .*none.cfg"),
        ({"parallelism": 0}, "--parallelism must be 1 or more"),
        ({"on": "mars"}, "not on 'mars'"),
        ({"listen": "0.0.0.0"}, "--listen is for --on temporal"),
        ({"conf": {"a": object()}}, "conf is not JSON"),
    ],
)
def test_what_is_asked_for_is_checked_before_anything_is_made(
    request_: Request, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DagError, match=message):
        check(dataclasses.replace(request_, **changes))


def settings_of(run: RunFolder) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(run.home / "airflow.cfg")
    return parser


def test_what_matters_is_passed_on_and_what_is_the_runs_own_is_not(tmp_path: Path, request_: Request) -> None:
    (tmp_path / "users.cfg").write_text(
        "[core]\nexecutor = CeleryExecutor\ndags_folder = /elsewhere\nxcom_backend = mine.Backend\n"
        '[secrets]\nbackend = mine.Secrets\nbackend_kwargs = {"a": "100%%"}\n'
        "[database]\nsql_alchemy_conn = postgresql://users\n[logging]\nremote_logging = True\n"
        "base_log_folder = /var/log\n[air_executor]\nstate_dir = /var/lib\nkeep_days = 3\n"
    )
    env = {"AIRFLOW__CORE__XCOM_BACKEND": "from.Environment", "AIRFLOW__SCHEDULER__NUM_RUNS": "3"}
    request = dataclasses.replace(request_, config_from=(str(tmp_path / "users.cfg"), "env"))
    run, _, _ = claim(tmp_path / "dags", request, restart=False)
    write_settings(run, request, env)
    found = settings_of(run)
    assert found["core"]["executor"] == "air_executor.AirExecutor"
    assert found["core"]["dags_folder"] == str(tmp_path)
    assert found["core"]["xcom_backend"] == "from.Environment"  # the later one wins
    assert found["secrets"]["backend"] == "mine.Secrets" and found["secrets"]["backend_kwargs"] == '{"a": "100%"}'
    assert found["logging"]["remote_logging"] == "True" and found["logging"]["base_log_folder"] == str(run.logs)
    assert found["air_executor"]["keep_days"] == "3" and found["air_executor"]["state_dir"] == str(run.state_dir)
    assert found["database"]["sql_alchemy_conn"].startswith(f"sqlite:///{run.home}")
    assert "num_runs" not in found["scheduler"]
    secrets = {found[section][name] for section, name in (("core", "fernet_key"), ("api_auth", "jwt_secret"))}
    assert len(secrets) == 2
    # A run that goes on keeps its keys, and has the other options as they are asked for now.
    write_settings(run, dataclasses.replace(request, parallelism=7), env)
    again = settings_of(run)
    assert {again[section][name] for section, name in (("core", "fernet_key"), ("api_auth", "jwt_secret"))} == secrets
    assert again["core"]["parallelism"] == "7"


def test_the_environment_is_the_users_without_what_is_for_another_airflow(tmp_path: Path, request_: Request) -> None:
    (tmp_path / "more.env").write_text(
        "COLOUR=green\nBASE=${HOME_OF_DATA}/x\nAIRFLOW_ENV=dev\nAIRFLOW_CONFIG=/users.cfg\nAIRFLOW_HOME=/users\n"
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=postgresql://users\n"
    )
    run, _, _ = claim(tmp_path / "dags", request_, restart=False)
    given = {
        "PATH": "/bin",
        "MINE": "1",
        "HOME_OF_DATA": "/data",
        "AIRFLOW_HOME": "/users",
        "AIRFLOW__CORE__EXECUTOR": "X",
        "_AIRFLOW__AS_LIBRARY": "1",
        "AIR_EXECUTOR_STATE_DIR": "/users",
        "PYTEST_CURRENT_TEST": "x",
        "AIRFLOW_CONN_DB": "postgresql://x",
        "AIRFLOW_VAR_A": "1",
        "TEMPORAL_ADDRESS": "t:1",
    }
    env = environment(run, dataclasses.replace(request_, env_file=str(tmp_path / "more.env")), given)
    kept = {"MINE": "1", "HOME_OF_DATA": "/data", "AIRFLOW_CONN_DB": "postgresql://x", "AIRFLOW_VAR_A": "1"}
    assert env.pop("PATH").endswith(":/bin")
    assert env.pop("BASE").endswith("/x")
    assert env == {
        **kept,
        "TEMPORAL_ADDRESS": "t:1",
        "COLOUR": "green",
        "AIRFLOW_ENV": "dev",
        "AIRFLOW_HOME": str(run.home),
    }


def test_a_result_for_programs(tmp_path: Path, request_: Request) -> None:
    run, _, _ = claim(tmp_path / "dags", request_, restart=False)
    with pytest.raises(DagError, match="has not ended"):
        DagResult.of(run)

    def task(task_id: str, index: int, state: str, tries: int = 1) -> dict[str, Any]:
        return {"task_id": task_id, "map_index": index, "state": state, "try_number": tries, "start": None, "end": None}

    document = {
        "dag_id": "d",
        "run_id": "r",
        "state": "failed",
        "tasks": [task("a", -1, "success", 2), task("m", 0, "failed"), task("m", 1, "success")],
        "leaves": ["m"],
        "xcoms": [
            {"task_id": "a", "map_index": -1, "key": "return_value", "value": None},
            {"task_id": "m", "map_index": 1, "key": "return_value", "omitted_bytes": 9},
        ],
    }
    (run.path / "result.json").write_text(json.dumps(document))
    log = run.task_log("d", "r", "a", -1, 2)
    log.parent.mkdir(parents=True)
    log.write_text("the log")
    result = DagResult.of(run)
    assert not result.ok and result.states == {"a": "success", "m": ["failed", "success"]}
    assert result.xcom("a") is None and result.log("a") == "the log"
    for wrong in (lambda: result.xcom("a", "k"), lambda: result.xcom("m", map_index=1), lambda: result.log("m", 1)):
        with pytest.raises(KeyError):
            wrong()
    assert folders.age_s(run) < 3600
