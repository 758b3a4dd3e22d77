"""A task that has nothing to do before its end ends at SIGTERM, and not after the grace that it has for it.

Airflow's task process answers SIGTERM with the operator's ``on_kill``, and then goes on with what it was doing. For an
operator that has none, that is ten seconds of work that nobody wants, and then SIGKILL.

It calls ``on_kill`` after a time-out as well, which then fails the task: that is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from airflow.sdk.bases.operator import BaseOperator

_stock_on_kill = BaseOperator.on_kill

#: The name of the function in Airflow's task process that answers SIGTERM.
_HANDLER = "_on_term"


def on_kill(operator: BaseOperator) -> None:
    """Override this method to clean up when a task instance is killed."""
    if sys._getframe(1).f_code.co_name != _HANDLER or has_own_on_kill(operator):
        return  # it is called after a time-out, or by the operator's own
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be in the middle of a write
            stream.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def has_own_on_kill(operator: BaseOperator) -> bool:
    """Tell whether an operator, or somebody who has changed this one, has something to do when it is killed."""
    return "on_kill" in vars(operator) or type(operator).on_kill not in (on_kill, _stock_on_kill)


def install() -> None:
    """Let tasks whose operators have no ``on_kill`` end at once, in this process and its children."""
    BaseOperator.on_kill = on_kill  # type: ignore[assignment,method-assign]
