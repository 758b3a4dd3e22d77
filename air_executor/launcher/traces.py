"""No traces in a process that tasks are forked from: each task finds Python as its first user would.

What Airflow does for one task it does in a process that ends with that task, so it puts nothing back.
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
    """Put back what reading a dag file, or executing a task, changes in the interpreter.

    Signal handlers: a dag file's time-out and its handler of SIGSEGV would outlive it, and a runner that crashes would
    call that for ever. Warnings: what was warned of once would not be shown in the log of the task that causes it.
    Limits: one carries the mark of a run's processes.
    """
    limits = {each: resource.getrlimit(each) for each in _LIMITS}
    handlers = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
    once: dict[object, object] = vars(warnings)["onceregistry"]
    warned_of = dict(once)
    try:
        # Its end also makes each module forget what it has warned of.
        with warnings.catch_warnings():
            yield
    finally:
        for each, limit in limits.items():
            if resource.getrlimit(each) != limit:
                resource.setrlimit(each, limit)
        once.clear()
        once.update(warned_of)
        for signum, handler in handlers.items():
            # What was not installed from Python can't be, and stays as it is.
            if handler is not None and signal.getsignal(signum) is not handler:
                signal.signal(signum, handler)
