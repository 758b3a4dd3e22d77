"""Fails loudly when something of Airflow that is not its public interface, and that we use, has changed."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from airflow import settings
from airflow.executors import workloads
from airflow.executors.base_executor import BaseExecutor
from airflow.executors.local_executor import LocalExecutor
from airflow.jobs import scheduler_job_runner
from airflow.sdk.execution_time import comms, task_runner

from air_executor import AirExecutor
from air_executor.airflow import compat, warmup
from air_executor.errors import ProtocolError
from tests.support.airflow_env import REPOSITORY
from tests.unit.airflow_internals import INTERNALS, SOURCES, Internal, every, matters
from tests.unit.airflow_names import PROMISED, UsedNames, is_public
from tests.unit.processes import result_of

pytestmark = pytest.mark.core


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def task_workload(**changes: Any) -> Any:
    ti = {
        "id": str(uuid.uuid4()),
        "dag_version_id": str(uuid.uuid4()),
        "task_id": "t",
        "dag_id": "d",
        "run_id": "r",
        "try_number": 1,
        "map_index": -1,
        "pool_slots": 1,
        "queue": "default",
        "priority_weight": 1,
        "executor_config": {"air": {"nice": 1}, "other": object()},
        **changes,
    }
    return workloads.ExecuteTask.model_validate(
        {"token": "secret", "ti": ti, "dag_rel_path": "d.py", "bundle_info": {"name": "b"}, "log_path": "d/t.log"}
    )


def test_a_workload_survives_the_way_to_the_runner() -> None:
    workload = task_workload()
    document = compat.dump_workload(workload)
    again = compat.parse_workload("task", document)
    assert again.ti.id == workload.ti.id
    assert again.token == "secret"
    assert compat.key_of(again) == compat.key_of(workload)
    assert "executor_config" not in document["ti"]
    assert compat.executor_config(workload)["air"] == {"nice": 1}


def test_what_is_not_a_workload_is_refused() -> None:
    with pytest.raises(ProtocolError):
        compat.parse_workload("task", {"token": "t"})
    with pytest.raises(ProtocolError):
        compat.parse_workload("no such kind", {})
    with pytest.raises(ProtocolError):
        compat.kind_of(object())  # type: ignore[arg-type]


def test_identities_are_written_without_the_token() -> None:
    workload = task_workload()
    identity = compat.identity_of(workload, team="red")
    assert (identity.dag_id, identity.task_id, identity.dag_run_id, identity.team) == ("d", "t", "r", "red")
    assert identity.workload_id == str(workload.ti.id)
    assert "secret" not in repr(identity)


@pytest.mark.parametrize("internal", every(), ids=lambda each: each.path)
def test_what_is_used_of_airflow_is_there_and_as_it_was(internal: Internal) -> None:
    assert internal.value is not None or internal.name.startswith("_")
    if internal.takes is not None:
        wanted = internal.takes.split()
        assert [name for name in parameters(internal.function) if name in wanted] == sorted_like(internal, wanted)
    if internal.says is not None:
        assert internal.says in inspect.getsource(internal.value)


def sorted_like(internal: Internal, wanted: list[str]) -> list[str]:
    """Names of parameters that a call gives by their names may be in any order."""
    kinds = inspect.signature(internal.function).parameters
    by_name = [name for name in kinds if name in wanted and kinds[name].kind is inspect.Parameter.KEYWORD_ONLY]
    return [name for name in wanted if name not in by_name] + by_name


@pytest.mark.parametrize("internal", [each for each in every() if matters(each)], ids=lambda each: each.path)
def test_what_is_used_of_airflow_does_what_it_did(internal: Internal) -> None:
    known = SOURCES[internal.path].split()[{(3, 1): 0, (3, 2): 1, (3, 3): 2}[compat.AIRFLOW_VERSION]]
    assert internal.digest() == known, (
        f"Airflow has changed {internal.path}. Check what replaces, overrides or calls it, and then put "
        f"{internal.digest()} into SOURCES of tests/unit/airflow_internals.py."
    )


def test_every_internal_that_is_used_is_in_the_table() -> None:
    source = UsedNames()
    listed = {each.name for internals in INTERNALS.values() for each in internals}
    listed |= set(re.findall(r"\w+", " ".join(each.says or "" for all in INTERNALS.values() for each in all)))
    assert source.foreign_names() - listed == set()
    modules = {each.path.partition(":")[0] for internals in INTERNALS.values() for each in internals}
    assert {name for name in source.modules if not is_public(name)} - modules == set()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("supervisor._something(1)", "_something"),
        ("getattr(supervisor, '_something', None)", "_something"),
        (
            "class A(stock.ActivitySubprocess):\n    def _handle_request(self):\n        super()._handle_request()",
            "_handle_request",
        ),
        ("task_runner.something = 1", "something"),
        ("replaced(module, something=None)", "something"),
    ],
)
def test_a_use_of_an_internal_is_found(code: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(code)
    assert UsedNames([tmp_path / "x.py"]).foreign_names() == {name}


@pytest.mark.parametrize("code", ["from airflow.models.dag import DAG", "import_module('airflow.models.dag')"])
def test_a_use_of_a_module_that_is_not_public_is_found(code: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(code)
    assert [name for name in UsedNames([tmp_path / "x.py"]).modules if not is_public(name)] == ["airflow.models.dag"]


def test_every_internal_in_the_table_is_used() -> None:
    source = UsedNames()
    texts = source.text + PROMISED
    unused = {each.path for internals in INTERNALS.values() for each in internals if each.name not in texts}
    assert unused == set()


def test_every_internal_is_explained() -> None:
    headings = re.findall(r"^## (.*)$", (REPOSITORY / "docs" / "wishes.md").read_text(), re.MULTILINE)
    assert headings == list(INTERNALS)


def test_the_executor_promises_what_local_executor_promises() -> None:
    promises = {
        name
        for name in dir(LocalExecutor)
        if name.startswith("supports_") or name in ("is_local", "serve_logs", "is_production")
    }
    for name in promises:
        assert getattr(AirExecutor, name) == getattr(LocalExecutor, name), name


def test_every_method_that_an_executor_must_have_is_there() -> None:
    for name in ("start", "sync", "end", "terminate", "revoke_task", "try_adopt_task_instances", "_process_workloads"):
        assert getattr(AirExecutor, name) is not getattr(BaseExecutor, name), name


def test_states_of_every_kind_are_known() -> None:
    for kind in compat.workloads.CLASSES:
        states = compat.states_of(kind)
        assert {states.RUNNING, states.SUCCESS, states.FAILED}


def test_the_log_file_is_where_airflow_looks_for_it() -> None:
    from airflow.configuration import conf

    assert compat.log_file_of(task_workload()) == str(Path(conf.get("logging", "base_log_folder")) / "d" / "t.log")


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "http://localhost:8080/execution/"),
        ({"base_url": "/air"}, "http://localhost:8080/air/execution/"),
        ({"base_url": "https://airflow.example/x/"}, "https://airflow.example/x/execution/"),
        ({"base_url": "http://a", "execution_api_server_url": "http://b/execution/"}, "http://b/execution/"),
    ],
)
def test_the_execution_api_is_found_as_local_executor_finds_it(options: dict[str, str], url: str) -> None:
    assert compat.execution_api_url(lambda section, name: options.get(name)) == url


def test_the_scheduler_sleeps_in_one_place_which_can_be_replaced() -> None:
    source = inspect.getsource(scheduler_job_runner)
    assert re.findall(r"time\.sleep\(.*", source) == [
        "time.sleep(min(self._scheduler_idle_sleep_time, next_event or 0))"
    ]
    assert re.search(r"^import time$", source, re.MULTILINE)


def test_messages_are_validated_through_names_that_can_be_replaced() -> None:
    for module, calls in ((comms, ["ToTask", "ToTask"]), (task_runner, ["StartupDetails", "JsonValue", "JsonValue"])):
        assert re.findall(r"TypeAdapter\((\w+)\)", inspect.getsource(module)) == calls


def test_a_launcher_can_rehearse_what_tasks_do(capfd: pytest.CaptureFixture[str]) -> None:
    def warm() -> bool:
        warmup.warm_up(["json"])
        return settings.engine is None  # each fork would make a new one

    assert result_of(warm) is True  # in a child: this process stays as it is
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed
    assert "does not work here" not in printed


def test_a_scheduler_loads_nothing_that_only_runners_need() -> None:
    loaded = subprocess.check_output(
        [sys.executable, "-c", "import sys, air_executor.airflow.executor; print(*sys.modules)"], text=True, timeout=120
    ).split()
    ours = {name.removeprefix("air_executor.airflow.") for name in loaded if name.startswith("air_executor.airflow.")}
    assert "compat.workloads" in ours
    of_runners = {f"compat.{name}" for name in ("api", "execution", "logs", "rehearsing", "supervisor", "tokens")}
    assert ours & {*of_runners, "output", "patience", "quick_end", "supervision", "tasks", "warmup"} == set()
