"""Which tasks the scheduler may queue now: those for which this machine has room.

One for which it has none stays *scheduled*. In the queue it would hold a slot that others could use, and
``[scheduler] task_queued_timeout`` would count for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from air_executor.airflow import compat
from air_executor.airflow.work import Work

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: Name of the entry in Airflow's audit log for a task that waits.
WAITS_EVENT = "air_executor waits for room"

#: Above this many reported tasks, those that no longer wait are forgotten.
_MOST_TOLD = 1000


class Admission:
    """Admits tasks for one executor."""

    def __init__(self, work: Work) -> None:
        self._work = work
        #: Keys of the task instances that were admitted and are not ordered yet, by their ids.
        self._admitted: dict[str, Any] = {}
        #: Ids of waiting task instances that were reported.
        self._told: set[str] = set()

    def admits(self, ti: TaskInstance) -> bool:
        """Tell whether the scheduler may queue a task instance. If that can't be told, it may."""
        work, ti_id = self._work, str(ti.id)
        with work.guard("Looking whether there is room for a task"):
            who = compat.identity_of_instance(ti, team=work.team)
            air = (ti.executor_config or {}).get("air")
            if work.backend.room.admit(who, air):
                if ti_id in self._told:
                    work.executor.log.info("There is room for %s now", ti)
                self._told.discard(ti_id)
                self._admitted[ti_id] = ti.key
                return True
            self._tell(ti, work.backend.room.why(ti_id))
            return False
        return True

    def _tell(self, ti: TaskInstance, why: str | None) -> None:
        """Say once in the log, and in Airflow's audit log, that a task waits."""
        if why is None or str(ti.id) in self._told:
            return
        self._told.add(str(ti.id))
        self._work.executor.log.info("%s stays scheduled: %s", ti, why)
        self._work.executor.log_task_event(event=WAITS_EVENT, extra=why, ti_key=ti.key)

    def tidy(self) -> None:
        """Give up the room of tasks that were admitted and then not queued, or that wait for something else."""
        work = self._work
        if len(self._told) > _MOST_TOLD:
            self._told = {ti_id for ti_id in self._told if work.backend.room.why(ti_id) is not None}
        for ti_id, key in list(self._admitted.items()):
            if key in work.executor.queued_tasks or key in work.held:
                continue
            del self._admitted[ti_id]
            if not work.runs.has_key(key):
                with work.guard("Giving up the room of a task that was not queued"):
                    work.backend.room.release(ti_id)
