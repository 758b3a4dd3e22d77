"""Fails loudly when something of Airflow that is not its public interface, and that we use, has changed."""

from __future__ import annotations

import inspect
import re
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
from airflow.sdk.execution_time import supervisor as stock

from air_executor import AirExecutor
from air_executor.airflow import compat, warmup
from air_executor.errors import ProtocolError
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


def test_the_supervisor_has_the_methods_that_are_overridden() -> None:
    assert parameters(stock.WatchedSubprocess._service_subprocess) == [
        "self",
        "max_wait_time",
        "raise_on_timeout",
        "expect_signal",
    ]
    assert {"signal_to_send", "escalation_delay", "force"} <= set(parameters(stock.WatchedSubprocess.kill))
    for name in ("_register_pipe_readers", "_on_child_started", "_monitor_subprocess", "_send_heartbeat_if_needed"):
        assert callable(getattr(stock.ActivitySubprocess, name)), name
    assert isinstance(stock.ActivitySubprocess.final_state, property)
    fields = {field.name for field in stock.ActivitySubprocess.__attrs_attrs__}
    assert {"_exit_code", "_terminal_state", "_last_heartbeat_attempt", "_open_sockets", "selector"} <= fields
    assert stock.MIN_HEARTBEAT_INTERVAL > 0
    assert stock.SERVER_TERMINATED


def test_a_task_process_that_was_forked_ahead_can_be_given_its_workload() -> None:
    # Airflow's own class, also where ours has taken its place.
    activity = next(cls for cls in stock.ActivitySubprocess.__mro__ if cls.__module__ == stock.__name__)
    assert {"what", "client", "logger"} <= set(parameters(activity.start))
    fields = {field.name for field in activity.__attrs_attrs__}
    assert {"id", "client", "process_log", "start_time", "subprocess_logs_to_stdout"} <= fields


def test_a_task_process_sets_its_logs_up_through_the_function_that_is_replaced() -> None:
    assert parameters(stock._configure_logs_over_json_channel) == ["log_fd"]
    assert "_configure_logs_over_json_channel(log_fd)" in inspect.getsource(stock._fork_main)
    from airflow.sdk.log import load_remote_log_handler

    assert parameters(load_remote_log_handler) == []


def test_airflow_notes_when_a_task_has_ended_and_for_how_long_its_process_may_live_on() -> None:
    import attrs
    from airflow.sdk.execution_time import supervisor as stock

    assert attrs.fields_dict(stock.ActivitySubprocess)["_task_end_time_monotonic"].default is None
    source = inspect.getsource(stock.ActivitySubprocess._handle_process_overtime_if_needed)
    assert "(time.monotonic() - self._task_end_time_monotonic) > TASK_OVERTIME_THRESHOLD" in source


def test_airflow_looks_its_supervisor_up_by_name() -> None:
    if compat.AIRFLOW_VERSION >= (3, 3):
        from airflow.sdk.execution_time import coordinator

        source = inspect.getsource(coordinator._PythonCoordinator.execute_task)
        assert "from airflow.sdk.execution_time.supervisor import ActivitySubprocess" in source
    else:
        assert "ActivitySubprocess.start(" in inspect.getsource(stock.supervise)


def test_supervising_takes_the_arguments_that_are_given() -> None:
    supervise = getattr(stock, "supervise_task", None) or stock.supervise
    given = {"ti", "dag_rel_path", "bundle_info", "token", "server", "log_path"}
    if compat.AIRFLOW_VERSION >= (3, 2):
        given.add("sentry_integration")
    assert given <= set(parameters(supervise))


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
