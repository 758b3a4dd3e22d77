"""AirExecutor: Airflow's calls on an executor, turned into runs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.executors.base_executor import BaseExecutor
from airflow.models.taskinstancekey import TaskInstanceKey

from air_executor import compat, config
from air_executor.errors import AirExecutorError, StateDirError
from air_executor.launcher.client import LocalBackend
from air_executor.runner import limits
from air_executor.runs import record as runs
from air_executor.runs.backend import RunBackend, RunRequest
from air_executor.runs.record import UNWANTED, RunRecord, RunState
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import append_to_log

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: Name of AirExecutor's entries in Airflow's audit log.
AUDIT_EVENT = "air_executor run ended"


class AirExecutor(BaseExecutor):
    """Runs each workload in a runner process of its own on this machine.

    Records of the runs are in ``[air_executor] state_dir``; ``air-executor status`` shows them.
    """

    is_local = True
    is_production = True
    serve_logs = True
    supports_callbacks = True
    supports_connection_test = True
    supports_multi_team = True
    #: The scheduler commits the run's id with the state "queued", so that another scheduler can find the runner.
    pre_assigns_external_executor_id = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._backend: RunBackend
        self._store: RunStore
        #: Live runs: the key by which the scheduler knows the workload, by run id.
        self._keys: dict[str, Any] = {}
        #: Ends that the scheduler gets from this loop. In the next one it has dealt with them.
        self._told: list[RunRecord] = []
        #: The scheduler saves audit entries through a generator, and SQLAlchemy holds them by weak references only:
        #: those that nobody else holds are saved empty, which fails and loses all of them.
        self._held_entries: list[Any] = []

    @property
    def _team(self) -> str | None:
        return getattr(self, "team_name", None)

    # Airflow's calls, in the order in which they come

    def start(self) -> None:
        """Check the options and the state directory, and warm a launcher up.

        :raises ConfigError: an option cannot be used. The scheduler does not start; the message names the option.
        :raises StateDirError: the state directory cannot be used.
        """
        get = compat.team_getter(self.conf)
        options = config.load(lambda name: get(config.SECTION, name))
        self._store = RunStore(options.state_dir)
        self._store.prepare()
        backend = LocalBackend(self._store, options)
        backend.warm_up()
        self._backend = backend
        self._server = compat.execution_api_url(get)

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        for workload in workload_items:
            key = compat.key_of(workload)
            for queue in ("queued_tasks", "queued_callbacks", "queued_connection_tests"):
                getattr(self, queue, {}).pop(key, None)
            self.running.add(key)
            try:
                self._order(key, workload)
            except AirExecutorError as error:
                append_to_log(compat.log_file_of(workload), str(error))
                self._fail(key, str(error))
            except Exception as error:
                self.log.exception("The workload %s cannot be handed to a runner", key)
                self._fail(key, f"AirExecutor could not hand the workload to a runner: {error}")

    def sync(self) -> None:
        """Tell the scheduler of the runs that have ended."""
        self._held_entries = list(self._task_event_logs)
        self._note_what_was_told()
        for record in self._backend.ended():
            self._told.append(record)
            key = self._keys.pop(record.id, None)
            if key is not None:
                self._tell(key, record)

    def log_task_event(self, *, event: str, extra: str, ti_key: Any) -> None:
        """Add an entry to Airflow's audit log, for tasks."""
        if isinstance(ti_key, TaskInstanceKey):
            super().log_task_event(event=event, extra=extra, ti_key=ti_key)
            self._held_entries.append(self._task_event_logs[-1])

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Stop the runner of a task instance and free its slot, without an event."""
        self.queued_tasks.pop(ti.key, None)
        self.running.discard(ti.key)
        for run_id in [run_id for run_id, key in self._keys.items() if key == ti.key]:
            del self._keys[run_id]
            try:
                self._backend.stop(run_id, "revoked by the scheduler")
            except Exception:
                self.log.exception("Run %s of %s cannot be stopped", run_id, ti)

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Take over the runs of a scheduler that is gone.

        :return: the instances that have no run to take over.
        """
        return [ti for ti in tis if not self._adopt(ti)]

    def end(self) -> None:
        """Let go. Runs go on; the next scheduler takes them over."""
        if hasattr(self, "_backend"):
            self.log.info("AirExecutor ends; %d runs go on", len(self._keys))
            self._note_what_was_told()
            self._backend.close()

    def terminate(self) -> None:
        """Stop every run of this executor."""
        for run_id in list(self._keys):
            self._backend.stop(run_id, "the executor was terminated")

    def debug_dump(self) -> None:
        """Log what this executor has in hand, for SIGUSR2."""
        super().debug_dump()
        self.log.info("air_executor.state_dir %s", self._store.root)
        lines = "\n\t".join(f"{run_id} {key}" for run_id, key in self._keys.items())
        self.log.info("air_executor.runs (%d)\n\t%s", len(self._keys), lines)

    @staticmethod
    def get_cli_commands() -> list[Any]:
        """Return the commands of ``airflow air``. From Airflow 3.2 on they come through the provider instead."""
        if compat.AIRFLOW_VERSION >= (3, 2):
            return []
        from air_executor.provider import get_cli_commands

        return get_cli_commands()

    # Steps

    def _order(self, key: Any, workload: Any) -> None:
        identity = compat.identity_of(workload, team=self._team)
        air = compat.executor_config(workload).get("air")
        run_id = compat.pre_assigned_id(workload) or str(uuid.uuid4())
        log_file = compat.log_file_of(workload)
        request = RunRequest(
            id=run_id,
            identity=identity,
            workload=compat.dump_workload(workload),
            air=limits.as_json(air),
            server=self._server,
            log_file=log_file,
        )
        self._backend.start(request, runs.queued(run_id, identity, limits=limits.public(air), log_file=log_file))
        self._keys[run_id] = key
        states = compat.states_of(identity.kind)
        if identity.kind != "task":
            self.change_state(key, states.RUNNING, remove_running=False)
        elif compat.pre_assigned_id(workload) is None:
            self.change_state(key, states.QUEUED, run_id, remove_running=False)

    def _note_what_was_told(self) -> None:
        for record in self._told:
            try:
                self._store.mark_reported(record)
            except StateDirError as error:
                self.log.warning("Run %s is told, which can't be recorded: %s", record.id, error)
        self._told = []

    def _fail(self, key: Any, reason: str) -> None:
        self.log_task_event(event=AUDIT_EVENT, extra=reason, ti_key=key)
        self.fail(key, info=reason)

    def _tell(self, key: Any, record: RunRecord) -> None:
        """Turn the end of a run into the scheduler's terms."""
        is_last = key not in self._keys.values()
        if record.reason:
            self.log_task_event(event=AUDIT_EVENT, extra=f"run {record.id}: {record.reason}", ti_key=key)
        if record.outcome == UNWANTED:
            # An event would make the scheduler fail an instance that somebody else may be running.
            if is_last:
                self.running.discard(key)
            return
        states = compat.states_of(record.identity.kind)
        # For a task whose runner has told Airflow its state, the scheduler only wants to know that the slot is
        # free; "failed" would mean that the task's state is not what it should be.
        ok = record.delivered or (record.identity.kind != "task" and record.state is RunState.SUCCEEDED)
        info = None if ok else record.reason
        self.change_state(key, states.SUCCESS if ok else states.FAILED, info, remove_running=is_last)

    def _adopt(self, ti: TaskInstance) -> bool:
        if not ti.external_executor_id:
            return False
        try:
            record = self._store.settle(self._store.read(ti.external_executor_id))
        except AirExecutorError:
            return False
        if record.state.is_end and (record.reported_at or record.outcome == UNWANTED):
            return False
        if record.state is RunState.QUEUED and not self._store.has_runner(record):
            return False
        self._keys[record.id] = ti.key
        self.running.add(ti.key)
        self._backend.follow(record)
        return True
