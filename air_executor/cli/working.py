"""Working on one job until it is over, for commands that stay until then."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from air_executor.errors import ManagedError
from air_executor.jobs.manager import Manager

#: How often it is looked whether a job that another manager has is over, in seconds.
_LOOK_S = 0.2


def work_until(is_over: Callable[[Manager | None], bool], make: Callable[[], Manager]) -> bool:
    """Be the manager of a job until it is over, or wait for the one that it has.

    :param is_over: is given the manager, if that is this process.
    :param make: makes a manager of the job alone. Requests to end this process interrupt it.
    :return: whether it was interrupted.
    """
    while not is_over(None):
        manager = make()
        manager.on_signal = manager.interrupt
        try:
            manager.serve(until=partial(_is_done, is_over, manager))
            return manager.has_let_go
        except ManagedError:
            time.sleep(_LOOK_S)  # it does it; should it leave the job, this one takes it
    return False


def _is_done(is_over: Callable[[Manager | None], bool], manager: Manager) -> bool:
    return is_over(manager) or manager.has_let_go
