"""The commands that start and stop the manager of the jobs."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from typing import Any

from air_executor.cli import trust, where
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command, at_least_zero, count, log_progress, print_json
from air_executor.cli.temporal_options import option, with_temporal
from air_executor.config import Config
from air_executor.errors import JobError, ManagedError, StateDirError, WrongStateError
from air_executor.jobs.manager import Manager
from air_executor.jobs.names import LOCK, LOG, OF_MANAGER
from air_executor.launcher.address import module_command
from air_executor.machine.safe_files import open_to_append
from air_executor.runs.backend import RunBackend
from air_executor.runs.lock import is_held

#: How often to look whether the manager has begun, or ended, in seconds.
_LOOK_S = 0.2

#: How long `start --detach` waits for the manager to work, in seconds.
_START_S = 30.0

POLL = Argument(
    ("--poll",),
    {
        "type": at_least_zero,
        "default": 5.0,
        "help": "look at the files at least once in this many seconds, even if no change was announced (default 5)",
    },
)
MAX_RUNNERS = Argument(
    ("--max-runners",),
    {"type": count, "default": 0, "help": "tasks that run at a time, of all jobs (default: 4 for each CPU)"},
)
WAIT = Argument(("--wait",), {"action": "store_true", "help": "wait until it has ended"})


ON = Argument(
    ("--on",),
    {
        "choices": ["local", "temporal"],
        "default": "local",
        "help": "where tasks run: here, or on the hosts that serve Temporal's default queue (air-executor worker)",
    },
)


def make(args: argparse.Namespace, **more: Any) -> Manager:
    """Return a manager with the options :data:`POLL`, :data:`MAX_RUNNERS` and :data:`ON` of a command line."""
    options = where.options()
    backend = _temporal(options) if args.on == "temporal" else None
    return Manager(options, poll_s=args.poll, max_runners=args.max_runners or None, backend=backend, **more)


def _temporal(options: Config) -> RunBackend:
    with with_temporal():
        from air_executor.temporal.jobs import make_backend
        from air_executor.temporal.settings import Settings

    return make_backend(options, Settings.load(option))


class _Greeting:
    """Says that the manager works, once: when it asks for the first time whether to end, it has its lock."""

    def __init__(self, root: str, *, is_json: bool) -> None:
        self._root, self._is_json, self._is_said = root, is_json, False

    def __call__(self) -> bool:
        if not self._is_said:
            self._is_said = True
            if self._is_json:
                print_json({"pid": os.getpid(), "jobs": self._root})
            print(
                f"running the jobs in {self._root}; Ctrl-C stops the manager, and running tasks continue",
                file=sys.stderr,
                flush=True,
            )
        return False


def _start(args: argparse.Namespace) -> int:
    if args.detach:
        return _start_detached(args)
    log_progress()
    manager = make(args)
    root = str(where.job_store().root)
    try:
        manager.serve(until=_Greeting(root, is_json=args.json))
    except ManagedError:
        raise WrongStateError(f"a manager works here already: {root}") from None
    return EXIT_OK


def _start_detached(args: argparse.Namespace) -> int:
    store = where.job_store()
    store.prepare()
    if store.manager() is not None:
        raise WrongStateError(f"a manager works here already: {store.root}")
    trust.warn(store)
    store.check_free(*OF_MANAGER)
    log = store.root / LOG
    command = [*module_command("air_executor.cli.main"), "start", "--poll", str(args.poll), "--on", args.on]
    try:
        log_fd = open_to_append(log)
    except OSError as error:
        raise StateDirError(f"cannot write {log}: {error.strerror}") from error
    with os.fdopen(log_fd, "ab") as output:
        process = subprocess.Popen(
            [*command, "--max-runners", str(args.max_runners)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "AIR_EXECUTOR_STATE_DIR": str(store.root.parent)},
        )
    until_s = time.monotonic() + _START_S
    while store.manager() is None:
        if process.poll() is not None or time.monotonic() > until_s:
            raise JobError(f"the manager did not start; see its log: {log}")
        time.sleep(_LOOK_S)
    if args.json:
        print_json({"pid": process.pid, "jobs": str(store.root), "log": str(log)})
    else:
        print(f"the manager works, with pid {process.pid}; its log is {log}")
    return EXIT_OK


def shutdown(args: argparse.Namespace) -> int:
    """Stop the manager of the jobs, and with ``--wait`` wait for its end. What runs, runs on.

    :raises WrongStateError: there is no manager.
    """
    store = where.job_store()
    pid = store.signal_manager(signal.SIGTERM)
    if pid is None:
        raise WrongStateError(f"no manager works here: {store.root}")
    while args.wait and is_held(store.root / LOCK):
        time.sleep(_LOOK_S)
    if args.json:
        print_json({"pid": pid, "has_ended": args.wait})
    else:
        print(f"the manager with pid {pid} {'has ended' if args.wait else 'is being stopped'}")
    return EXIT_OK


COMMANDS: tuple[Command, ...] = (
    Command(
        "start",
        "start the manager, which runs jobs",
        _start,
        (
            Argument(("-d", "--detach"), {"action": "store_true", "help": "in the background"}),
            POLL,
            MAX_RUNNERS,
            ON,
            JSON,
        ),
    ),
    Command("shutdown", "end the manager of the jobs; what runs, runs on", shutdown, (WAIT, JSON)),
)
