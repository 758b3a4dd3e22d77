"""What a process has besides its modules, compared before and after an import: what it leaves that tasks would find."""

from __future__ import annotations

import contextlib
import contextvars
import csv
import decimal
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import struct
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import psutil

from air_executor.machine import system
from air_executor.runner.stash import stash

#: What an import may keep open. Of all else, processes that are forked share the position.
_HARMLESS = ("/dev/null", "/dev/urandom", "/dev/random")

#: Lines of /proc/self/status that show changes, also those that C libraries make.
_STATUS = ("Umask", "SigBlk", "SigIgn", "SigCgt", "Uid", "Gid", "Groups", "CapEff", "NoNewPrivs", "Seccomp")


def _status() -> object:
    with contextlib.suppress(OSError):
        lines = (line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        found = {name: value.strip() for name, value in lines if name in _STATUS}
        for name in ("SigCgt", "SigIgn"):
            found[name] = str(int(found[name], 16) & ~_OF_THREADS)
        return found
    return None


#: Signals 32 and 33: the C library handles them once it has started a thread, and ignores them in what it spawns.
_OF_THREADS = 0b11 << 31


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _limits() -> list[object]:
    numbers = (getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
    return [resource.getrlimit(number) for number in numbers]


def _interpreter() -> list[object]:
    return [
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        sys.gettrace(),
        sys.getprofile(),
        getattr(sys, "get_int_max_str_digits", lambda: 0)(),
        tuple(sys.get_asyncgen_hooks()),
        sys.get_coroutine_origin_tracking_depth(),
        gc.isenabled(),
        gc.get_threshold(),
        gc.get_debug(),
        faulthandler.is_enabled(),
    ]


def _logger(logger: logging.Logger) -> object:
    return logger.level, list(logger.handlers), list(logger.filters), logger.propagate, logger.disabled


def _loggers() -> dict[str, object]:
    known = logging.root.manager.loggerDict
    found = {name: _logger(each) for name, each in list(known.items()) if isinstance(each, logging.Logger)}
    return {"root": (_logger(logging.root), logging.root.manager.disable), **found}


def _numpy_random() -> object:
    return repr(sys.modules["numpy.random"].get_state()) if "numpy.random" in sys.modules else None


def _context() -> dict[contextvars.ContextVar[Any], tuple[int, Any]]:
    """Return the context variables that are set, each with its value, compared by identity."""
    found = contextvars.copy_context().items()
    return {each: (id(value), value) for each, value in found if each.name != "decimal_context"}


def _loading() -> object:
    return getattr(sys, "getdlopenflags", int)()


def _translations() -> object:
    return getattr(locale, "textdomain", lambda _: None)(None)


def _scheduling() -> object:
    return os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None


def _shared_memory() -> list[str]:
    """Return the mappings of memory that processes write together."""
    with contextlib.suppress(OSError):
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if " rw-s " in line]
    return []


#: The smallest number, the smallest with full precision, and half of the distance from 1.0 to the next number.
_TINY, _SMALL, _HALF_STEP = 5e-324, 2.0**-1022, 2.0**-53


def _arithmetic() -> bytes:
    """Return results that depend on how the processor rounds, and on whether it takes tiny numbers for zero."""
    found = (_TINY * 2.0, _SMALL / 2.0, 1.0 + _HALF_STEP, -1.0 - _HALF_STEP, 1.0 - _HALF_STEP / 2.0)
    return struct.pack(f"{len(found)}d", *found)


def _children() -> list[int]:
    return [child.pid for child in psutil.Process().children()]


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in system.descriptors():
        with contextlib.suppress(OSError):
            found[str(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found


#: What to say of an import that changes an aspect of the process, and how to look at the aspect.
_ASPECTS: tuple[tuple[str, Callable[[], object]], ...] = (
    ("changes signal handlers", lambda: {each: signal.getsignal(each) for each in signal.valid_signals()}),
    ("blocks signals", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    ("starts a timer", lambda: [signal.getitimer(each)[0] > 0 for each in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL)]),
    ("changes the umask", _umask),
    ("changes the working directory", os.getcwd),
    ("changes the locale", lambda: locale.setlocale(locale.LC_ALL)),
    ("changes limits of the process", _limits),
    ("changes priorities", lambda: (os.getpriority(os.PRIO_PROCESS, 0), _affinity())),
    ("changes the scheduling of the process", _scheduling),
    ("changes how the processor calculates", _arithmetic),
    ("shares memory with processes that are forked", _shared_memory),
    ("changes the default timeout of sockets", socket.getdefaulttimeout),
    ("changes settings of the interpreter", _interpreter),
    ("changes sys.path", lambda: list(sys.path)),
    ("changes the context of decimal", lambda: repr((decimal.getcontext(), decimal.DefaultContext))),
    ("sets context variables", _context),
    ("changes the limit of fields of CSV files", csv.field_size_limit),
    ("changes the stack size of threads", threading.stack_size),
    ("traces memory allocations", tracemalloc.is_tracing),
    ("changes how extension modules are loaded", _loading),
    ("changes the domain of translations", _translations),
    ("draws from or seeds the random generator", random.getstate),
    ("draws from or seeds NumPy's random generator", _numpy_random),
    ("sets how multiprocessing starts processes", lambda: multiprocessing.get_start_method(allow_none=True)),
    ("leaves a child process", _children),
    ("changes signals, users or capabilities of the process", _status),
)


def _affinity() -> object:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


class ProcessState:
    """What a process has besides its modules, at one moment."""

    def __init__(self, *, has_children: bool = False) -> None:
        """Look at every aspect.

        :param has_children: whether this process has children of its own; then children are left out.
        """
        self._looks = [each for each in _ASPECTS if not has_children or each[1] is not _children]
        self._descriptors = _descriptors()
        hidden = stash.loggers()  # set up with what is imported ahead already
        self._loggers = {name: state for name, state in _loggers().items() if name not in hidden}
        self._environment = dict(os.environ)
        self._filters = list(warnings.filters)
        self._aspects = [look() for _, look in self._looks]

    def objections(self, new: Collection[str] = ()) -> Iterator[str]:
        """Say what has changed that no import ahead may change. Modules that are ``new`` may set up their loggers."""
        for (change, look), before in zip(self._looks, self._aspects, strict=True):
            if look is _numpy_random and before is None:
                continue  # NumPy was loaded only now: each task gets a new seed
            if (now := look()) != before:
                yield f"{change}{_which(before, now)}"
        # Variables that an import adds are removed with its modules.
        if changed := [name for name, value in self._environment.items() if os.environ.get(name) != value]:
            yield f"changes the environment: {', '.join(changed)}"
        yield from self._about_files()
        loggers = _loggers()
        for name, before in self._loggers.items():
            if loggers.get(name) != before and name not in new:
                yield f"changes the logger {name}"
        if any(each not in warnings.filters for each in self._filters):
            yield "takes warning filters away"

    def _about_files(self) -> Iterator[str]:
        before = self._descriptors
        for fd, name in sorted(_descriptors().items()):
            if before.get(fd) == name:
                continue
            if fd in before and int(fd) <= 2:
                yield f"replaces the descriptor {fd}"
            elif name not in _HARMLESS:
                yield f"opens {name}"


def thread_objection() -> str | None:
    """Say whether this process has threads that do not end at a fork. For a process that may fork."""
    # Some libraries, such as NumPy's, end their threads before a fork.
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    threads = []
    if Path("/proc/self/task").is_dir():
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):
                threads.append(Path(f"/proc/self/task/{thread}/comm").read_text().strip())
    else:
        threads = [each.name for each in threading.enumerate()]
    many = len([each for each in threads if each not in _FORKABLE]) > 1
    return "starts threads, which do not survive a fork" if many else None


#: Threads that a fork does not harm: jemalloc's, which only tidies up.
_FORKABLE = frozenset({"jemalloc_bg_thd"})


def _which(before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [str(getattr(name, "name", name)) for name in {**before, **now} if before.get(name) != now.get(name)]
        return f": {', '.join(sorted(names)[:3])}"
    return ""
