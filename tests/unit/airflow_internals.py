"""Every internal of Airflow that AirExecutor uses: the table behind ``test_compat.py`` and ``docs/wishes.md``.

An internal is what Airflow's documentation does not call its public interface: names that begin with an underscore,
modules below ``airflow.sdk.execution_time``, tables, and everything that is replaced.

When Airflow changes one, look at the difference, adapt the code that uses it, and then the table::

    .venv/bin/python -m tests.unit.airflow_internals      # prints the digests of the Airflow that is installed
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import attrs

from air_executor.airflow.compat import AIRFLOW_VERSION

_SUPERVISOR = "airflow.sdk.execution_time.supervisor"
_RUNNER = "airflow.sdk.execution_time.task_runner"
_COMMS = "airflow.sdk.execution_time.comms"
_SCHEDULER = "airflow.jobs.scheduler_job_runner"
_TI = "airflow.models.taskinstance:TaskInstance"


@dataclass(frozen=True)
class Internal:
    """One internal."""

    path: str
    """``module``, ``module:name.of.it`` or, for a field of an attrs class, ``module:Class#field``."""
    takes: str | None = None
    """Names of parameters that it must have, in this order among others; for what is called, overridden or replaced."""
    says: str | None = None
    """A piece of its source."""
    since: tuple[int, int] = (3, 1)
    before: tuple[int, int] = (9, 9)

    @property
    def is_here(self) -> bool:
        """Whether the Airflow that is installed should have it."""
        return self.since <= AIRFLOW_VERSION < self.before

    @property
    def name(self) -> str:
        """By which it is used."""
        return self.path.replace("#", ".").replace(":", ".").rpartition(".")[2]

    @cached_property
    def value(self) -> Any:
        """What it is, as Airflow has it, also where ours has taken its place.

        :raises AttributeError: it is gone.
        """
        module, _, rest = self.path.partition(":")
        found = self._found(importlib.import_module(module), rest)
        if str(getattr(getattr(found, "__func__", found), "__module__", None)).startswith("air_executor."):
            found = self._found(_copy_of(module), rest)
        return found

    @staticmethod
    def _found(module: Any, rest: str) -> Any:
        found = module
        owner, _, field = rest.partition("#")
        for name in filter(None, owner.split(".")):
            found = inspect.getattr_static(found, name) if inspect.isclass(found) else getattr(found, name)
            if inspect.isclass(found) and found.__module__.startswith("air_executor."):
                found = next(cls for cls in found.__mro__ if cls.__module__ == module.__name__)
        return attrs.fields_dict(found)[field] if field else found

    @property
    def function(self) -> Callable[..., Any]:
        """The function that it is, without decorators."""
        value = self.value
        if isinstance(value, property):
            value = value.fget
        return inspect.unwrap(getattr(value, "__func__", value))  # type: ignore[no-any-return]

    def digest(self) -> str:
        """Return a digest of its source; comments and blank lines do not count."""
        lines = [line.rstrip() for line in inspect.getsource(self.function).splitlines()]
        kept = [line for line in lines if line and not line.lstrip().startswith("#")]
        return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]


@cache
def _copy_of(module: str) -> Any:
    """Return a module executed anew, in which nothing is replaced."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.loader
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def _all(module: str, names: str, **more: Any) -> list[Internal]:
    return [Internal(f"{module}:{name}", **more) for name in names.split()]


#: By the headings of docs/wishes.md.
INTERNALS: dict[str, list[Internal]] = {
    "A supervisor of one's own": [
        Internal(f"{_SUPERVISOR}:ActivitySubprocess"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess.start", takes="cls what client target logger"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess._on_child_started", takes="self ti dag_rel_path bundle_info"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess._monitor_subprocess", takes="self"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess._send_heartbeat_if_needed", takes="self"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess._handle_heartbeat_failures", takes="self exc"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess._handle_request", takes="self msg log req_id"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess._send_new_log_fd", takes="self req_id"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess.update_task_state_if_needed", takes="self"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess.wait", takes="self"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess.final_state", takes="self"),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess._handle_process_overtime_if_needed", takes="self"),
        Internal(f"{_SUPERVISOR}:WatchedSubprocess.start", takes="cls target logger"),
        Internal(f"{_SUPERVISOR}:WatchedSubprocess._register_pipe_readers", takes="self stdout stderr requests logs"),
        Internal(
            f"{_SUPERVISOR}:WatchedSubprocess._service_subprocess",
            takes="self max_wait_time raise_on_timeout expect_signal",
        ),
        Internal(f"{_SUPERVISOR}:WatchedSubprocess._check_subprocess_exit", takes="self"),
        Internal(f"{_SUPERVISOR}:WatchedSubprocess._cleanup_open_sockets", takes="self"),
        Internal(f"{_SUPERVISOR}:WatchedSubprocess._on_socket_closed", takes="self sock"),
        Internal(f"{_SUPERVISOR}:WatchedSubprocess.kill", takes="self signal_to_send escalation_delay force"),
        *_all(
            _SUPERVISOR,
            "ActivitySubprocess#id ActivitySubprocess#pid ActivitySubprocess#client ActivitySubprocess#process_log "
            "ActivitySubprocess#start_time ActivitySubprocess#subprocess_logs_to_stdout ActivitySubprocess#selector "
            "ActivitySubprocess#failed_heartbeats ActivitySubprocess#_exit_code ActivitySubprocess#_open_sockets "
            "ActivitySubprocess#_terminal_state ActivitySubprocess#_last_heartbeat_attempt "
            "ActivitySubprocess#_last_successful_heartbeat ActivitySubprocess#_task_end_time_monotonic "
            "MIN_HEARTBEAT_INTERVAL SERVER_TERMINATED TASK_OVERTIME_THRESHOLD",
        ),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess#_pending_terminal_state_msg", since=(3, 2)),
        Internal(f"{_SUPERVISOR}:ActivitySubprocess._send_terminal_state_msg", takes="self msg", since=(3, 2)),
        Internal(f"{_SUPERVISOR}:_subprocess_main", takes=""),
        Internal(f"{_SUPERVISOR}:_fork_main", takes="target", says="_configure_logs_over_json_channel(log_fd)"),
        Internal(f"{_SUPERVISOR}:supervise", says="ActivitySubprocess.start(", before=(3, 3)),
        Internal(
            f"{_SUPERVISOR}:supervise",
            takes="ti bundle_info dag_rel_path token server log_path",
            before=(3, 3),
        ),
        Internal(
            f"{_SUPERVISOR}:supervise_task",
            takes="ti bundle_info dag_rel_path token server log_path sentry_integration",
            since=(3, 3),
        ),
        Internal(
            "airflow.sdk.execution_time.coordinator:_PythonCoordinator.execute_task",
            says="from airflow.sdk.execution_time.supervisor import ActivitySubprocess",
            since=(3, 3),
        ),
    ],
    "What a task prints": [
        Internal(f"{_SUPERVISOR}:make_buffered_socket_reader", takes="gen on_close"),
        Internal(f"{_SUPERVISOR}:forward_to_log", takes="target_loggers logger level"),
        Internal(f"{_SUPERVISOR}:_configure_logging", says="structlog.BytesLogger("),
        Internal("airflow.sdk.log:upload_to_remote", says='getattr(logger, "_logger")'),
    ],
    "Set-up that all task processes share": [
        Internal(f"{_SUPERVISOR}:_configure_logs_over_json_channel", takes="log_fd"),
        Internal("airflow.sdk.log:load_remote_log_handler", takes=""),
        Internal(f"{_COMMS}:TypeAdapter"),
        Internal(f"{_COMMS}:ToTask"),
        Internal(f"{_RUNNER}:TypeAdapter"),
        Internal("airflow.settings:dispose_orm", takes="do_log"),
        Internal("airflow.sdk._shared.secrets_masker:reset_secrets_masker", takes=""),
    ],
    "A rehearsal": [
        Internal(f"{_RUNNER}:main", takes=""),
        Internal(f"{_RUNNER}:DagBundlesManager"),
        Internal(f"{_RUNNER}:get_listener_manager", takes=""),
        Internal(_RUNNER, says="SUPERVISOR_COMMS: "),
        Internal(f"{_SUPERVISOR}:ensure_secrets_backend_loaded", takes=""),
        Internal("airflow.plugins_manager:integrate_macros_plugins", takes="", before=(3, 2)),
        Internal("airflow.sdk.plugins_manager:integrate_macros_plugins", takes="", since=(3, 2)),
        Internal(f"{_COMMS}:StartupDetails"),
        Internal(f"{_COMMS}:_ResponseFrame", takes="id body error"),
        Internal(f"{_COMMS}:_ResponseFrame.as_bytes", takes="self"),
        Internal("airflow.sdk._shared.secrets_masker.secrets_masker:_secrets_masker", takes=""),
        Internal("airflow.dag_processing.bundles.local:LocalDagBundle"),
        Internal("airflow.models.dagbag:BundleDagBag", takes="bundle_path", before=(3, 2)),
        Internal("airflow.dag_processing.dagbag:BundleDagBag", takes="bundle_path", since=(3, 2)),
        Internal("airflow.sdk.api.client:Client.task_instances"),
    ],
    "A task without an audience": [
        Internal("airflow.stats:NoStatsLogger", before=(3, 2)),
        Internal("airflow.stats:Stats", before=(3, 2)),
        Internal("airflow.stats:_Stats", says="cls._instance_pid", before=(3, 2)),
        *(
            each
            for owner in ("airflow._shared", "airflow.sdk._shared")
            for each in (
                Internal(f"{owner}.observability.metrics.stats:NoStatsLogger", since=(3, 2)),
                Internal(f"{owner}.observability.metrics.stats:Stats", since=(3, 2), before=(3, 3)),
                Internal(
                    f"{owner}.observability.metrics.stats:_Stats",
                    says="cls._instance_pid",
                    since=(3, 2),
                    before=(3, 3),
                ),
                Internal(f"{owner}.observability.metrics.stats:_get_backend", takes="", since=(3, 3)),
                Internal(f"{owner}.observability.metrics.stats:_factory", since=(3, 3)),
                Internal(f"{owner}.observability.metrics.stats:_backend", since=(3, 3)),
                Internal(f"{owner}.observability.metrics.stats:_export_legacy_names", since=(3, 3)),
            )
        ),
        Internal(f"{_RUNNER}:tracer", since=(3, 2)),
        Internal(f"{_RUNNER}:Sentry.add_tagging", since=(3, 2)),
        Internal(f"{_RUNNER}:Sentry.add_breadcrumbs", since=(3, 2)),
        Internal("airflow.sdk.log:logging_processors.cache_clear"),
    ],
    "Waking the scheduler": [
        Internal(f"{_SCHEDULER}:time"),
        Internal(f"{_SCHEDULER}:SchedulerJobRunner._run_scheduler_loop", says="time.sleep("),
    ],
    "Asking the executor who lives": [
        Internal(f"{_SCHEDULER}:SchedulerJobRunner._find_task_instances_without_heartbeats", takes="self session"),
        Internal(
            f"{_SCHEDULER}:SchedulerJobRunner._find_and_purge_task_instances_without_heartbeats",
            says="self._find_task_instances_without_heartbeats(",
        ),
    ],
    "Asking the executor whether there is room": [
        Internal(f"{_SCHEDULER}:SchedulerJobRunner._try_to_load_executor"),
        Internal(
            f"{_SCHEDULER}:SchedulerJobRunner._executable_task_instances_to_queued",
            says="if executor_obj := self._try_to_load_executor(",
        ),
    ],
    "A connection that forks share": [Internal("airflow.settings:engine.dispose")],
    "Heartbeats and states in bulk": [
        *(
            Internal(f"{_TI}.{name}")
            for name in "id state last_heartbeat_at queued_dttm external_executor_id queued_by_job_id".split()
        ),
        *(Internal(f"{_TI}.{name}") for name in "dag_id run_id task_id map_index".split()),
        Internal(
            f"{_SCHEDULER}:SchedulerJobRunner.process_executor_events",
            says="ti.state == TaskInstanceState.RESTARTING and state == TaskInstanceState.SUCCESS",
        ),
        *_all("airflow.models.dagrun", "DagRun.dag_id DagRun.run_id DagRun.state"),
        *_all("airflow.jobs.job", "Job.id Job.state Job.job_type Job.start_date Job.latest_heartbeat"),
        Internal("airflow.utils.session:create_session", takes="scoped"),
        Internal("airflow.utils.sqlalchemy:with_row_locks", takes="query session skip_locked"),
        *_all(
            "airflow.models.connection_test",
            "ConnectionTestRequest.state ConnectionTestRequest.result_message ConnectionTestState.FAILED ACTIVE_STATES",
            since=(3, 3),
        ),
    ],
    "Metrics": [
        Internal("airflow.observability.stats:Stats", since=(3, 2)),
        Internal("airflow.observability.stats:incr", takes="stat count tags", since=(3, 3)),
        Internal("airflow.observability.stats:timing", takes="stat dt tags", since=(3, 3)),
        Internal("airflow.observability.stats:gauge", takes="stat value tags", since=(3, 3)),
    ],
    "Logs on other hosts": [
        Internal("airflow.api_fastapi.auth.tokens:get_signing_key", takes="section key"),
        Internal(f"{_TI}.hostname"),
        *_all(
            "airflow.models.taskinstancehistory", "TaskInstanceHistory.task_instance_id TaskInstanceHistory.hostname"
        ),
    ],
    "Serving logs": [
        Internal("airflow.utils.serve_logs.log_server:create_app", takes="", says='"/log",'),
        Internal("airflow.utils.serve_logs.log_server:JWTAuthStaticFiles.validate_jwt_token", takes="self request"),
        Internal("airflow.utils.serve_logs.core:serve_logs", takes="port", says='host="",'),
        Internal("airflow.api_fastapi.auth.tokens:JWTValidator.avalidated_claims", takes="self unvalidated"),
        *_all(
            "airflow.api_fastapi.auth.tokens",
            "JWTValidator#secret_key JWTValidator#algorithm JWTValidator#audience JWTValidator#issuer "
            "JWTValidator#required_claims JWTValidator#leeway",
        ),
    ],
    "Requests that are retried": [
        Internal("airflow.sdk.api.client:Client.request", takes="self args kwargs"),
        Internal("airflow.sdk.api.client:ServerResponseError"),
    ],
    "A token that outlives a wait": [
        Internal("airflow.sdk.api.client:BearerAuth", takes="token"),
        Internal("airflow.api_fastapi.auth.tokens:JWTGenerator.generate", takes="self extras", says="self.valid_for"),
        Internal("airflow.api_fastapi.auth.tokens:get_signing_args", takes="make_secret_key_if_needed"),
        Internal("airflow.api_fastapi.execution_api.app:JWTReissueMiddleware.dispatch", takes="self request"),
        Internal("airflow.executors.workloads:ExecuteTask.make", takes="ti generator"),
        Internal("airflow.executors.workloads:ExecuteTask.generate_token", takes="sub_id generator", since=(3, 2)),
    ],
    "Callbacks of a task that can't report": [
        Internal(f"{_RUNNER}:finalize", takes="ti state context log"),
    ],
    "The end of a task that is stopped": [
        Internal(_RUNNER, says="def _on_term(signum, frame):"),
        Internal("airflow.sdk.bases.operator:BaseOperator.on_kill", takes="self"),
    ],
    "A fault ends the process": [
        Internal("airflow.models.dagbag:DagBag", says="signal.signal(signal.SIGSEGV, handler)", before=(3, 2)),
        Internal(
            "airflow.dag_processing.importers.python_importer",
            says="signal.signal(signal.SIGSEGV, sigsegv_handler)",
            since=(3, 2),
        ),
    ],
    "Small things of executors": [
        Internal(
            "airflow.executors.base_executor:BaseExecutor.__init__", says="self._task_event_logs: deque[Log] = deque()"
        ),
        Internal("airflow.executors.base_executor:BaseExecutor._process_workloads", takes="self"),
        Internal("airflow.executors.base_executor:BaseExecutor.log_task_event", says="self._task_event_logs.append("),
        Internal("airflow.executors.base_executor:BaseExecutor.run_workload", takes="workload server", since=(3, 3)),
        Internal("airflow.executors.executor_loader:ExecutorLoader.get_executor_names"),
        Internal(
            "airflow.executors.workloads.callback:execute_callback_workload",
            takes="callback log",
            since=(3, 2),
            before=(3, 3),
        ),
        Internal("airflow.models.callback:CallbackKey", since=(3, 3)),
    ],
    "An Airflow for one run": [
        Internal("airflow.jobs.job:run_job", takes="job execute_callable"),
        Internal(f"{_SCHEDULER}:SchedulerJobRunner._execute", takes="self"),
        Internal("airflow.jobs.triggerer_job_runner:TriggererJobRunner._execute", takes="self"),
        Internal("airflow.jobs.triggerer_job_runner:TriggererJobRunner.is_needed", takes="session"),
        Internal("airflow.jobs.dag_processor_job_runner:DagProcessorJobRunner._execute", takes="self"),
        Internal("airflow.dag_processing.manager:DagFileProcessorManager#_callback_to_execute"),
        Internal("airflow.dag_processing.manager:DagFileProcessorManager#_file_stats"),
        Internal("airflow.dag_processing.manager:DagFileProcessorManager#_processors"),
        Internal("airflow.dag_processing.manager:DagFileProcessorManager.max_runs_reached", takes="self"),
        Internal("airflow.dag_processing.manager:DagFileProcessorManager._find_files_in_bundle", takes="self bundle"),
        Internal(
            "airflow.dag_processing.manager:DagFileProcessorManager._add_callback_to_queue",
            takes="self request",
            says="request.filepath",
        ),
        Internal("airflow.utils.file:correct_maybe_zipped", takes="fileloc"),
        Internal("airflow.serialization.serialized_objects:LazyDeserializedDAG.from_dag", takes="cls dag"),
        Internal("airflow.models.dagbag:sync_bag_to_db", takes="dagbag bundle_name bundle_version", before=(3, 2)),
        Internal(
            "airflow.dag_processing.dagbag:sync_bag_to_db", takes="dagbag bundle_name bundle_version", since=(3, 2)
        ),
        Internal("airflow.dag_processing.bundles.manager:DagBundlesManager.sync_bundles_to_db", takes="self"),
        Internal(
            "airflow.api.common.trigger_dag:trigger_dag",
            takes="dag_id triggered_by run_id conf logical_date replace_microseconds",
        ),
        Internal(f"{_TI[:-13]}:clear_task_instances", takes="tis session dag_run_state"),
        Internal("airflow.utils.db:initdb", takes="session"),
        Internal("airflow.utils.types:DagRunTriggeredByType"),
        Internal("airflow.models.db_callback_request:DbCallbackRequest"),
        Internal("airflow.models.dag:DagModel"),
        *_all("airflow.models", "Pool Connection Variable TaskInstance DagRun"),
        Internal("airflow.secrets.local_filesystem:load_connections_dict", takes="file_path"),
        Internal("airflow.secrets.local_filesystem:load_variables", takes="file_path"),
        *_all("airflow.models.xcom", "XComModel.value XComModel.key"),
        Internal("airflow.api_fastapi.main", says="AIRFLOW_API_APPS"),
        Internal("airflow.api_fastapi.execution_api.versions:bundle"),
        Internal("airflow.api_fastapi.execution_api.routes:execution_api_router"),
        Internal("cadwyn.route_generation:_DELETED_ROUTE_TAG"),
    ],
    "Who may see the pages": [
        Internal("airflow.api_fastapi.core_api.security:GetUserDep"),
        Internal(
            "airflow.api_fastapi.core_api.security:requires_access_dag", takes="method access_entity param_dag_id"
        ),
        Internal("airflow.api_fastapi.app:get_auth_manager"),
        *_all(
            "airflow.api_fastapi.auth.managers.models.resource_details",
            "AccessView.JOBS DagAccessEntity.TASK_INSTANCE",
        ),
        Internal("airflow.models.log:Log"),
    ],
    "What tasks queue": [
        Internal("airflow.sdk.bases.operator:BaseOperator.__init__", says="self._pre_execute_hook = pre_execute"),
        Internal("airflow.sdk.definitions.mappedoperator:MappedOperator#partial_kwargs"),
        Internal("airflow.sdk.execution_time.xcom:XCom.set", takes="key value dag_id task_id run_id"),
        Internal("airflow.models.trigger", says='TRIGGER_FAIL_REPR = "__fail__"'),
        Internal(
            "airflow.sdk.execution_time.task_runner:RuntimeTaskInstance.get_task_states",
            takes="dag_id map_index task_ids run_ids",
        ),
    ],
}

#: Digests of the source of what is overridden, replaced or relied upon for its behaviour, on Airflow 3.1, 3.2 and 3.3;
#: "-" where there is none.
SOURCES: dict[str, str] = {
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess.start": "5f5ad21d7a68 432a6950d2e1 68bb7460cba9",
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess._on_child_started": (
        "9ff7abd1b914 e19a9ceb3e44 e19a9ceb3e44"
    ),
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess._monitor_subprocess": (
        "d4c724077d51 3510a0ce2291 3510a0ce2291"
    ),
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess._send_heartbeat_if_needed": (
        "76fc8f071248 d6008a21c62d d6008a21c62d"
    ),
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess._handle_heartbeat_failures": (
        "6244fda59725 6244fda59725 6244fda59725"
    ),
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess._handle_request": (
        "217eb37fd06a f211df2aafdc 6dcc23d45748"
    ),
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess._send_new_log_fd": (
        "411fe289a148 9a4c61e9da20 9a4c61e9da20"
    ),
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess.update_task_state_if_needed": (
        "b9107d287ab7 678458c7ee13 678458c7ee13"
    ),
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess.wait": "523f35a0f2f0 523f35a0f2f0 07aff4d5f88d",
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess.final_state": "7d10bc395afa 7d10bc395afa 7d10bc395afa",
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess._handle_process_overtime_if_needed": (
        "86524d4d9793 86524d4d9793 86524d4d9793"
    ),
    "airflow.sdk.execution_time.supervisor:WatchedSubprocess.start": "6ec5ae826c15 24a2de39c0b5 b5093ac105db",
    "airflow.sdk.execution_time.supervisor:WatchedSubprocess._register_pipe_readers": (
        "455fc17d04e2 83f6de177069 0a4c805a38e0"
    ),
    "airflow.sdk.execution_time.supervisor:WatchedSubprocess._service_subprocess": (
        "b1b66e0c1969 b1b66e0c1969 b1b66e0c1969"
    ),
    "airflow.sdk.execution_time.supervisor:WatchedSubprocess._check_subprocess_exit": (
        "3bf24b67f92c 3bf24b67f92c c018c4109857"
    ),
    "airflow.sdk.execution_time.supervisor:WatchedSubprocess._cleanup_open_sockets": (
        "1145a9e93505 ce7077f61f60 ce7077f61f60"
    ),
    "airflow.sdk.execution_time.supervisor:WatchedSubprocess._on_socket_closed": (
        "0d4a5d8ad3eb 0d4a5d8ad3eb 0d4a5d8ad3eb"
    ),
    "airflow.sdk.execution_time.supervisor:WatchedSubprocess.kill": "9dd1fc53629e 9dd1fc53629e 846980754353",
    "airflow.sdk.execution_time.supervisor:ActivitySubprocess._send_terminal_state_msg": "- dcb8cfc0da6d 6dfd05de480d",
    "airflow.sdk.execution_time.supervisor:_subprocess_main": "0ebf3f83d27a 0ebf3f83d27a 0ebf3f83d27a",
    "airflow.sdk.execution_time.supervisor:_fork_main": "a713014dacd0 a713014dacd0 a713014dacd0",
    "airflow.sdk.execution_time.supervisor:make_buffered_socket_reader": "9e4ed9870b15 9e4ed9870b15 0da84fe12187",
    "airflow.sdk.execution_time.supervisor:forward_to_log": "f3a0a33fba50 f3a0a33fba50 f23e175aad9e",
    "airflow.sdk.execution_time.supervisor:_configure_logs_over_json_channel": "b08ab733c65a b08ab733c65a b08ab733c65a",
    "airflow.sdk.log:load_remote_log_handler": "8bb922fe8339 59c9eed7022e 59c9eed7022e",
    "airflow.settings:dispose_orm": "4305559bacf9 2d06eaeddd2f 2d06eaeddd2f",
    "airflow.sdk._shared.secrets_masker:reset_secrets_masker": "cc40b3f64834 cc40b3f64834 cc40b3f64834",
    "airflow.sdk.execution_time.task_runner:main": "080ee5615808 b1198ca26128 9b30814d330e",
    "airflow.sdk.execution_time.comms:_ResponseFrame.as_bytes": "68e42a8c0cd7 68e42a8c0cd7 7b2bc17b74f9",
    "airflow.sdk._shared.secrets_masker.secrets_masker:_secrets_masker": "7758c2cec3fa 0dfcd77571dd 0dfcd77571dd",
    "airflow.jobs.scheduler_job_runner:SchedulerJobRunner._find_task_instances_without_heartbeats": (
        "caf7ee2dded3 15ecea2f5f98 15ecea2f5f98"
    ),
    "airflow.jobs.scheduler_job_runner:SchedulerJobRunner._find_and_purge_task_instances_without_heartbeats": (
        "520665b836ab 520665b836ab 520665b836ab"
    ),
    "airflow.jobs.scheduler_job_runner:SchedulerJobRunner._executable_task_instances_to_queued": (
        "518101f8522a 0160927779e6 a42543cfa909"
    ),
    "airflow.sdk.api.client:Client.request": "ff4bfaf977b1 ff4bfaf977b1 ca3e44725968",
    "airflow.api_fastapi.auth.tokens:get_signing_args": "66270d2066d6 66270d2066d6 66270d2066d6",
    "airflow.api_fastapi.execution_api.app:JWTReissueMiddleware.dispatch": "8cca4a82e333 d029c77b131b d029c77b131b",
    "airflow.sdk.execution_time.task_runner:finalize": "52499e15ba16 800b0b88a3b4 43657a0c3a8d",
    "airflow.sdk.bases.operator:BaseOperator.on_kill": "718f4a3f4d5e 718f4a3f4d5e 718f4a3f4d5e",
    "airflow.executors.workloads:ExecuteTask.generate_token": "- 003e470fb971 003e470fb971",
    "airflow._shared.observability.metrics.stats:_get_backend": "- - 6f4ccf6ec584",
    "airflow.sdk._shared.observability.metrics.stats:_get_backend": "- - 6f4ccf6ec584",
    "airflow.utils.serve_logs.log_server:create_app": "561371ec2a0b 561371ec2a0b 561371ec2a0b",
    "airflow.utils.serve_logs.log_server:JWTAuthStaticFiles.validate_jwt_token": (
        "1ce72528a166 984bb92f1af5 984bb92f1af5"
    ),
    "airflow.utils.serve_logs.core:serve_logs": "38725c3ea583 a0be56212c4c a0be56212c4c",
    "airflow.api_fastapi.auth.tokens:JWTValidator.avalidated_claims": "15ff50bd0a1f 4d0690e8bb7a 685b973e310a",
}

#: What stands in SOURCES.
_BEHAVIOUR = (
    "ActivitySubprocess. WatchedSubprocess. :_subprocess_main :_fork_main :make_buffered_socket_reader :forward_to_log "
    ":_configure_logs_over_json_channel :load_remote_log_handler :dispose_orm :reset_secrets_masker :finalize "
    "task_runner:main :_ResponseFrame.as_bytes :_get_backend :_secrets_masker without_heartbeats :Client.request "
    "_instances_to_queued :get_signing_args :JWTReissueMiddleware. .on_kill .generate_token "
    ":create_app .validate_jwt_token :serve_logs .avalidated_claims"
).split()


def every() -> list[Internal]:
    """Return all internals that the Airflow that is installed should have."""
    return [each for internals in INTERNALS.values() for each in internals if each.is_here]


def matters(internal: Internal) -> bool:
    """Tell whether its source is compared."""
    return "#" not in internal.path and any(part in internal.path for part in _BEHAVIOUR)


if __name__ == "__main__":
    for each in every():
        if matters(each):
            print(each.path, each.digest())
