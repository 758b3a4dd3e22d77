"""Ends a task whose operator has no ``on_kill`` at SIGTERM, instead of after the grace time.

On SIGTERM, Airflow's task process calls the operator's ``on_kill``, and then continues. For an operator that has none,
that means ten seconds of work that nobody wants, and then SIGKILL.

Airflow also calls ``on_kill`` after a timeout, and then fails the task. That does not change.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from airflow.sdk.bases.operator import BaseOperator

_stock_on_kill = BaseOperator.on_kill

#: The name of the signal handler in Airflow's task process.
_HANDLER = "_on_term"


def on_kill(operator: BaseOperator) -> None:
    """Override this method to clean up when a task instance is killed."""
    if sys._getframe(1).f_code.co_name != _HANDLER or has_own_on_kill(operator):
        return  # called after a timeout, or by the operator's own ``on_kill``
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be in the middle of a write
            stream.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def has_own_on_kill(operator: BaseOperator) -> bool:
    """Return whether an operator's class, or this operator alone, overrides ``on_kill``."""
    return "on_kill" in vars(operator) or type(operator).on_kill not in (on_kill, _stock_on_kill)


def install() -> None:
    """Apply this to all tasks of this process and its children."""
    BaseOperator.on_kill = on_kill  # type: ignore[assignment,method-assign]
