"""Workloads from Airflow's queues, turned into runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from air_executor.airflow import compat, task_instances
from air_executor.airflow.ends import Ends
from air_executor.airflow.work import Work
from air_executor.errors import AirExecutorError
from air_executor.runs import limits
from air_executor.runs import record as runs
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import RunRecord
from air_executor.runs.tasklog import append_to_log

#: Airflow's queues of workloads by their keys. Not every version has all.
_QUEUES = ("queued_tasks", "queued_callbacks", "queued_connection_tests")


class Orders:
    """Orders the runs of workloads, one by one; a failure affects no other."""

    def __init__(self, work: Work, ends: Ends) -> None:
        self._work = work
        self._ends = ends

    def take(self, workloads: Sequence[Any]) -> None:
        """Take workloads out of Airflow's queues, and order their runs."""
        items = []
        for workload in workloads:
            with self._work.guard(f"Taking {type(workload).__name__} from the queue"):
                items.append((self._dequeue(workload), workload))
        self._order_all(items)
        self.order_waiting()

    def order_held(self) -> None:
        """Order the runs of held workloads whose task instance has no other live try any more."""
        held = self._work.held
        free = [key for key in held if not self._work.runs.has_other_try(key)]
        self._order_all([(key, held.pop(key)) for key in free])

    def order_waiting(self) -> None:
        """Order the runs of waiting workloads whose GPUs are free."""
        with self._work.guard("Looking for free GPUs"):
            slots = self._work.executor.slots_available if len(self._work.gpu_queue) else 0
            self._order_all(self._work.gpu_queue.ready(slots), have_waited=True)

    def _order_all(self, items: Iterable[tuple[Any, Any]], *, have_waited: bool = False) -> None:
        """Order the runs of workloads, given with their keys; those that need GPUs wait until they are free."""
        work = self._work
        unnamed: dict[str, str] = {}  # runs that the database does not know yet, by their instances
        for key, workload in items:
            with work.guard(f"Ordering the run of {type(workload).__name__}"):
                try:
                    if work.runs.has_other_try(key):
                        work.held[key] = workload
                        continue
                    if have_waited and not self._has_room(workload):
                        work.gpu_queue.takes(key, workload)
                        continue
                    if have_waited:
                        workload = compat.with_new_token(workload, work.executor.jwt_generator)
                    elif work.gpu_queue.takes(key, workload):
                        continue
                    elif work.order_wait_s is not None:
                        workload = compat.with_lasting_token(workload, work.executor.jwt_generator, work.order_wait_s)
                    record = self._order(key, workload)
                except Exception as error:
                    self._refuse(key, workload, error)
                    continue
                if gpus := record.limits.get("gpus"):
                    work.gpu_queue.promise(record.id, gpus, record.identity.workload_id)
                if record.identity.kind == "task" and record.id != compat.pre_assigned_id(workload):
                    unnamed[record.identity.workload_id] = record.id
        with work.guard("Putting the ids of runs in the database"):
            task_instances.name_runs(unnamed)

    def _has_room(self, workload: Any) -> bool:
        """Claim room again for a workload that has waited for GPUs; tell whether there is any."""
        identity = compat.identity_of(workload, team=self._work.team)
        return self._work.backend.room.admit(identity, compat.executor_config(workload).get("air"))

    def _order(self, key: Any, workload: Any) -> RunRecord:
        work = self._work
        identity = compat.identity_of(workload, team=work.team)
        air = compat.executor_config(workload).get("air")
        known_id = compat.pre_assigned_id(workload)
        # If a scheduler queued the workload and died, there may be a record of a run with this id, which never began.
        run_id = known_id if known_id and not work.backend.knows(known_id) else str(uuid.uuid4())
        log_file = compat.log_file_of(workload)
        request = RunRequest(
            id=run_id,
            identity=identity,
            workload=compat.dump_workload(workload),
            air=limits.as_json(air),
            server=work.server,
            log_file=log_file,
        )
        record = runs.queued(run_id, identity, limits=limits.public(air), log_file=log_file)
        work.backend.order(request, record)
        work.add(record, key, compat.trace_carrier(workload))
        if identity.kind != "task":
            work.executor.change_state(key, compat.states_of(identity.kind).RUNNING, remove_running=False)
        return record

    def _dequeue(self, workload: Any) -> Any:
        """Take a workload out of the queues, count it as running, and return its key."""
        queues = [getattr(self._work.executor, name, {}) for name in _QUEUES]
        try:
            key = compat.key_of(workload)
        except Exception:
            # A kind from a later Airflow. It must not be offered again in every loop.
            for queue in queues:
                for queued in [each for each, other in queue.items() if other is workload]:
                    del queue[queued]
            raise
        for queue in queues:
            queue.pop(key, None)
        self._work.executor.running.add(key)
        return key

    def _refuse(self, key: Any, workload: Any, error: Exception) -> None:
        """Fail a workload that can't be handed to a runner."""
        reason = str(error)
        if not isinstance(error, AirExecutorError):
            self._work.executor.log.error("The workload %s cannot be handed to a runner", key, exc_info=error)
            reason = f"AirExecutor could not hand the workload to a runner: {type(error).__name__}: {error}"
        with self._work.guard(f"Writing into the log of {key} why it fails"):
            append_to_log(compat.log_file_of(workload), reason)
        self._ends.fail(key, reason)
        ti = getattr(workload, "ti", None)
        ti_id = None if ti is None else str(ti.id)
        self._ends.note(key, str(uuid.uuid4()), None, ti_id, compat.pre_assigned_id(workload))
