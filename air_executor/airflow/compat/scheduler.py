"""What is replaced in the scheduler's process: how its loop sleeps, finds tasks without heartbeats, and queues tasks.

All these are looked up in ``sys.modules``: a process that is no scheduler stays as it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from airflow import settings

_MODULE = "airflow.jobs.scheduler_job_runner"


class _Clock:
    """The module ``time`` with another ``sleep``."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self.sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def leave_shared_connections() -> None:
    """Close the connections to the database that this process had before it forked others.

    The scheduler's log server and health check are forked from it and keep its connection. If the scheduler is killed,
    that connection stays open for as long as they live, and with it the locks of an unfinished transaction: no other
    scheduler gets to those DAG runs.
    """
    if settings.engine is not None:
        settings.engine.dispose()


def use_idle_wait(wait: Callable[[float], None]) -> None:
    """Let the scheduler of this process, if it has one, call ``wait`` where it would sleep for lack of work.

    The scheduler's loop offers no way to end that sleep early. It is the only ``time.sleep`` in its module.

    :param wait: takes the seconds that the scheduler would sleep.
    """
    module = sys.modules.get(_MODULE)
    if module is not None:
        module.time = _Clock(wait)  # type: ignore[attr-defined]


def use_vouching(vouch: Callable[[Callable[[], list[Any]]], list[Any]]) -> None:
    """Let the scheduler of this process, if it has one, ask ``vouch`` before it fails tasks for lack of heartbeats.

    After a pause of the machine it looks for such tasks before anybody could write a heartbeat, and asks no executor.

    :param vouch: takes the function that looks them up, and returns the task instances that are to fail.
    """
    module = sys.modules.get(_MODULE)
    if module is None:
        return
    runner: Any = module.SchedulerJobRunner
    find = runner._find_task_instances_without_heartbeats
    find = getattr(find, "stock", find)

    def find_what_nobody_vouches_for(self: Any, *, session: Any) -> list[Any]:
        return vouch(lambda: list(find(self, session=session)))

    find_what_nobody_vouches_for.stock = find  # type: ignore[attr-defined]
    runner._find_task_instances_without_heartbeats = find_what_nobody_vouches_for


def use_admission(admits: Callable[[Any, Any], bool]) -> None:
    """Let the scheduler of this process, if it has one, ask ``admits`` before it queues a task.

    The scheduler knows only an executor's number of free slots, so it would queue tasks that do not fit. Its last step
    before it queues a task is to look up the executor: where that returns ``None``, the task stays scheduled, and the
    scheduler continues with the next one. The method has other callers, and Airflow 3.1 does not pass it the task, so
    the caller's frame is inspected.

    :param admits: takes an executor and a task instance, and returns whether that may be queued.
    """
    module = sys.modules.get(_MODULE)
    if module is None:
        return
    runner: Any = module.SchedulerJobRunner
    load = runner._try_to_load_executor
    load = getattr(load, "stock", load)

    def load_if_admitted(self: Any, *args: Any, **kwargs: Any) -> Any:
        executor, caller = load(self, *args, **kwargs), sys._getframe(1)
        if executor is None or caller.f_code.co_name != "_executable_task_instances_to_queued":
            return executor
        ti = caller.f_locals.get("task_instance")
        slots = caller.f_locals.get("executor_slots_available") or {}
        if ti is None or slots.get(executor.name, 1) <= 0:  # it is refused next
            return executor
        return executor if admits(executor, ti) else None

    load_if_admitted.stock = load  # type: ignore[attr-defined]
    runner._try_to_load_executor = load_if_admitted
