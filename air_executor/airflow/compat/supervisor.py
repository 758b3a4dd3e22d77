"""Airflow's supervisor of a task process: what is replaced, and what it knows about its task."""

from __future__ import annotations

import time
from typing import Any

#: The state that a message of the task stands for, by the message's class, where no field says it.
_REPORTED_STATES = {"DeferTask": "deferred", "RescheduleTask": "up_for_reschedule", "AwaitInputTask": "awaiting_input"}


def use_supervisor(cls: Any) -> None:
    """Let Airflow supervise task processes with ``cls``, a subclass of its own supervisor.

    All supported versions look the class up by this name for every task, and offer no other way.
    """
    from airflow.sdk.execution_time import supervisor

    supervisor.ActivitySubprocess = cls  # type: ignore[misc]


def use_output_reader() -> None:
    """Let Airflow's supervisors read a task's output and log messages with :mod:`air_executor.airflow.output`.

    An Airflow that reads them by other functions keeps its own reader.
    """
    from airflow.sdk.execution_time import supervisor

    from air_executor.airflow import output

    printed = getattr(supervisor, "forward_to_log", None)
    if printed is not None and hasattr(supervisor, "make_buffered_socket_reader"):
        supervisor.make_buffered_socket_reader = output.make_reader(lambda gen: gen.gi_code is printed.__code__)  # type: ignore[attr-defined]


def leave_alerts_to_scheduler() -> None:
    """In a task process: run no callbacks, mails and listeners for a state that Airflow will not learn.

    A task that has lost the channel to its supervisor can't report how it ended. It dies with an error, and the
    scheduler decides what that means, and asks for the callbacks.
    """
    from airflow.sdk.execution_time import task_runner

    finalize = task_runner.finalize

    def finalize_if_connected(*args: Any, **kwargs: Any) -> None:
        try:
            task_runner.SUPERVISOR_COMMS.socket.getpeername()  # type: ignore[union-attr]
        except (AttributeError, OSError):
            return
        finalize(*args, **kwargs)

    task_runner.finalize = finalize_if_connected


def is_reporting(supervisor: Any) -> bool:
    """Return whether the task has reported its state, and Airflow does not know it yet (from Airflow 3.2)."""
    return getattr(supervisor, "_pending_terminal_state_msg", None) is not None


def must_report_again(supervisor: Any) -> bool:
    """Return whether the report failed, and has to be repeated, for a task whose process has ended.

    Not when the process was killed while it waited for the answer to "to be tried again": Airflow's task process runs
    callbacks after that.
    """
    pending = getattr(supervisor, "_pending_terminal_state_msg", None)
    return pending is not None and not (type(pending).__name__ == "RetryTask" and supervisor._exit_code < 0)


def has_reported(supervisor: Any) -> bool:
    """Return whether the API server knows the state that the task has reported, once its supervisor is done."""
    return not is_reporting(supervisor) and supervisor._terminal_state is not None


def give_report_up(supervisor: Any) -> None:
    """Let Airflow's supervisor not report the task's state (any more), as for a task that the server has ended."""
    from airflow.sdk.execution_time.supervisor import SERVER_TERMINATED

    supervisor._terminal_state = SERVER_TERMINATED
    if is_reporting(supervisor):
        supervisor._pending_terminal_state_msg = None


def is_in_overtime(supervisor: Any) -> bool:
    """Return whether a task process lives, or lived, so long after its task's end that Airflow kills it."""
    from airflow.sdk.execution_time.supervisor import TASK_OVERTIME_THRESHOLD

    ended_s = supervisor._task_end_time_monotonic
    return ended_s is not None and time.monotonic() - ended_s > TASK_OVERTIME_THRESHOLD


def reported_state(supervisor: Any) -> str | None:
    """Return the state that the task reported, or that a server that ended it has set; ``None``: there is none."""
    state = supervisor._terminal_state
    if state is None and must_report_again(supervisor):
        message = supervisor._pending_terminal_state_msg
        state = _REPORTED_STATES.get(type(message).__name__) or message.state
    return None if state is None else str(getattr(state, "value", state))
