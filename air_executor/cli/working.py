"""Working on one job until it is over, for commands that stay until then."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial

from air_executor.errors import ManagedError
from air_executor.jobs.manager import Manager
from air_executor.machine import system

#: How often it is looked whether a job that another manager has is over, in seconds.
_LOOK_S = 0.2


def end_as_ctrl_c() -> None:
    """Let every signal to end do what Ctrl-C does, except those that are ignored, as nohup(1) does with SIGHUP.

    Several may come at once, as when a terminal is closed: what the first began is disturbed by a Ctrl-C only.
    """
    has_come = False

    def interrupt(signum: int, _: object) -> None:
        nonlocal has_come
        if signum == signal.SIGINT or not has_come:
            has_come = True
            raise KeyboardInterrupt

    for signum in system.TO_END:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, interrupt)


def work_until(
    is_over: Callable[[Manager | None], bool], make: Callable[[], Manager], is_worked_on: Callable[[], bool]
) -> bool:
    """Be the manager of a job until it is over, or wait for the one that it has.

    :param is_over: is given the manager, if that is this process.
    :param make: makes a manager of the job alone. Requests to end this process interrupt it.
    :param is_worked_on: tells whether another manager works on it.
    :return: whether it was interrupted before it was over.
    """
    while not is_over(None):
        if is_worked_on():
            time.sleep(_LOOK_S)  # it does it; should it leave the job, this one takes it
            continue
        manager = make()
        manager.on_signal = manager.interrupt
        try:
            manager.serve(until=partial(_is_done, is_over, manager))
            return manager.has_let_go and not is_over(None)
        except ManagedError:
            time.sleep(_LOOK_S)
    return False


def _is_done(is_over: Callable[[Manager | None], bool], manager: Manager) -> bool:
    return is_over(manager) or manager.has_let_go
