"""How a task process ended, and what that makes of its run."""

from __future__ import annotations

from airflow.sdk.execution_time import supervisor as stock

from air_executor.airflow.compat.supervisor import is_in_overtime, reported_state
from air_executor.machine import system
from air_executor.runner.active import ActiveRun, Outcome
from air_executor.runs.record import RunState
from air_executor.runs.tasklog import last_exception


def how_it_ended(supervisor: stock.ActivitySubprocess, run: ActiveRun) -> str | None:
    """Return why the task process ended, for people; ``None``: there is nothing to say."""
    code, reported = supervisor._exit_code or 0, reported_state(supervisor)
    if run.ending is not None:
        return run.ending.reason
    if refusal := getattr(supervisor, "refusal", None):
        return str(refusal)
    if supervisor._terminal_state == stock.SERVER_TERMINATED:
        return "Airflow ended it: the task instance was marked, cleared or deleted while it ran"
    if code < 0:
        name = system.signal_name(-code)
        if reported and is_in_overtime(supervisor):
            after = f"it still lived {stock.TASK_OVERTIME_THRESHOLD:g} s after the task had ended as {reported}"
            return f"Airflow killed the task process by {name}: {after} ([core] task_success_overtime)"
        how = f"the task process was killed by {name} (signal {-code})" + run.oom_kills.evidence(name)
    elif code:
        how = f"the task process ended with exit code {code}"
    elif reported:
        return None
    else:
        return "the task process ended with exit code 0 without telling Airflow the task's state"
    if reported is None:
        return how
    return f"{how} after the task had ended as {reported}; its callbacks may not have finished"


def outcome_of(supervisor: stock.ActivitySubprocess, run: ActiveRun, unreported: str | None) -> Outcome:
    """Return what became of the task.

    :param unreported: why Airflow does not know the state that the task has reported; ``None``: it does.
    """
    code = supervisor._exit_code or 0
    reported = reported_state(supervisor)
    reason = "; ".join(filter(None, (how_it_ended(supervisor, run), unreported))) or None
    name = system.signal_name(-code) if code < 0 else None
    is_refused = getattr(supervisor, "refusal", None) is not None
    if run.ending is not None or name or (reported == stock.SERVER_TERMINATED and not is_refused):
        state = RunState.KILLED
    elif unreported or is_refused or reported in (None, "failed", "up_for_retry"):
        state = RunState.FAILED
    else:
        state = RunState.SUCCEEDED
    return Outcome(
        state=state,
        outcome=reported,
        delivered=unreported is None and reported is not None,
        exit_code=int(code) if name is None else None,
        signal=name,
        reason=reason,
        exception=last_exception(run.record.log_file) if reported in ("failed", "up_for_retry") else None,
    )
