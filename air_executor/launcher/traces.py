"""Undoing what reading a DAG file or executing a task changes in the interpreter.

Airflow does these in a process that ends with the task, so it undoes nothing. A launcher does them before it forks, and
each task should find Python as its first user would.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import warnings
from collections.abc import Iterator

_LIMITS = tuple(number for name, number in vars(resource).items() if name.startswith("RLIMIT_"))


@contextlib.contextmanager
def erased() -> Iterator[None]:
    """Restore signal handlers, limits and the memory of warnings.

    Signal handlers: those of a DAG file's timeout and of SIGSEGV would stay, and a runner that crashes would call the
    latter for ever. Warnings: those given here would not be shown again in the log of the task that causes them.
    Limits: one of them marks the processes of a run.
    """
    limits = {each: resource.getrlimit(each) for each in _LIMITS}
    handlers = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
    once: dict[object, object] = vars(warnings)["onceregistry"]
    warned_of = dict(once)
    try:
        # At its end, modules also forget which warnings they have given.
        with warnings.catch_warnings():
            yield
    finally:
        for each, limit in limits.items():
            if resource.getrlimit(each) != limit:
                resource.setrlimit(each, limit)
        once.clear()
        once.update(warned_of)
        for signum, handler in handlers.items():
            # A handler that was not installed from Python can't be restored from Python.
            if handler is not None and signal.getsignal(signum) is not handler:
                signal.signal(signum, handler)
