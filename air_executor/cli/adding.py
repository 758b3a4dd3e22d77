"""``air-executor add``: one command as a job, which may be waited for as if a shell had run it."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from air_executor.cli import jobfile, where
from air_executor.cli.making import NO_MANAGER
from air_executor.cli.table import (
    EXIT_NO,
    EXIT_OK,
    JSON,
    Argument,
    Command,
    at_least_zero,
    command_after,
    count,
    print_json,
)
from air_executor.cli.working import end_as_ctrl_c, work_until
from air_executor.config import Config
from air_executor.errors import AirExecutorError, JobError
from air_executor.jobs import api
from air_executor.jobs.manager import Manager
from air_executor.jobs.model import JobState, Task
from air_executor.jobs.private import values_of
from air_executor.jobs.requests import request
from air_executor.jobs.store import JobFiles, JobStore, is_worked_on
from air_executor.machine import system
from air_executor.machine.safe_files import open_log
from air_executor.runs.store import RunStore

#: How often to look for output and for the end, in seconds.
_LOOK_S = 0.2

#: This many bytes of a command's output go into a JSON document: the last ones.
_OUTPUT_BYTES = 64 * 1024

#: The exit codes of shells for a command that a signal has killed begin here.
_SIGNALLED = 128


def _add(args: argparse.Namespace) -> int:
    argv = command_after(args)
    if not argv:
        raise JobError("there is no command: `air-executor add -- COMMAND [ARG…]`")
    short = _name_of(argv[0].split()[0] if args.shell and argv[0].split() else argv[0])
    task: dict[str, Any] = {"id": short, "retries": args.retries, "timeout": args.timeout}
    task |= {"command": " ".join(argv), "shell": True} if args.shell else {"command": argv[0], "args": argv[1:]}
    name = args.name or f"{short}-{_digest(args.key) if args.key else uuid.uuid4().hex[:8]}"
    options = where.options()
    values = values_of(args.env_from)
    if args.wait:
        end_as_ctrl_c()
    store = JobStore(options.state_dir)
    with system.signals_held(system.TO_END if args.wait else ()) as release:
        # An interruption comes before there is a job, or when somebody looks after it.
        job = api.submit(name, [task], key=args.key, private_env=values, state_dir=options.state_dir)
        if args.wait:
            return _work_on(options, store, job.name, short, release, is_json=args.json)
    has_manager = store.manager() is not None
    if args.json:
        print_json({"name": job.name, "task": short, "has_manager": has_manager})
        return EXIT_OK
    print(job.name)
    if not has_manager:
        print(NO_MANAGER, file=sys.stderr)
    return EXIT_OK


def _name_of(program: str) -> str:
    """Return a name that shows which program is meant."""
    name = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", os.path.basename(program)).strip("-.")[:40]
    return name if name[:1].isalnum() else "command"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _work_on(
    options: Config, store: JobStore, name: str, task_id: str, release_signals: Callable[[], None], *, is_json: bool
) -> int:
    """Work on a job of one task, or wait for its manager; pass on what it prints, and return its exit code."""
    output = _Output(store.files(name).log_file(task_id), is_quiet=is_json)

    def is_over(_: Manager | None) -> bool:
        output.pass_on()
        return store.files(name).is_over()

    try:
        release_signals()
        if work_until(
            is_over,
            lambda: Manager(options, only=frozenset({name}), poll_s=_LOOK_S),
            lambda: is_worked_on(store.folder(name)),
        ):
            raise KeyboardInterrupt
    except (KeyboardInterrupt, OSError):  # Ctrl-C, or our output can't be written: its reader is gone, the disk full
        files = store.files(name)
        if not files.is_ended():
            request(options, name, "cancel")
        raise
    output.pass_on()
    return _show_end(store.open(name), task_id, output, is_json=is_json)


class _Output:
    """What a task prints, passed on byte by byte."""

    def __init__(self, path: Path, *, is_quiet: bool) -> None:
        self._path, self._is_quiet = path, is_quiet
        self._position = 0

    def pass_on(self) -> None:
        """Print what the task has printed since the last call."""
        if self._is_quiet:
            return
        try:
            with open_log(self._path) as file:
                file.seek(self._position)
                while data := file.read(1 << 16):
                    self._position += len(data)
                    sys.stdout.buffer.write(data)
        except FileNotFoundError:
            return
        sys.stdout.buffer.flush()

    def tail(self) -> str:
        """Return the end of the output, at most :data:`_OUTPUT_BYTES`."""
        try:
            with open_log(self._path) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _OUTPUT_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


def _show_end(files: JobFiles, task_id: str, output: _Output, *, is_json: bool) -> int:
    task = files.tasks[task_id]
    code = _exit_code(files, task)
    if is_json:
        end = {"name": files.job.name, "task": task.id, "state": files.job.state.value, "exit_code": code}
        print_json({**end, "error": task.error, "output": output.tail()})
    elif code and task.exit_code is None:
        print(f"air-executor: job {files.job.name}: {task.error or files.job.error}", file=sys.stderr)
    return code


def _exit_code(files: JobFiles, task: Task) -> int:
    """Return the exit code that a shell would give: the command's own, or 128 and the signal's number."""
    if files.job.state is JobState.COMPLETED:
        return EXIT_OK
    if task.exit_code is not None:
        return task.exit_code or EXIT_NO
    try:
        name = RunStore(files.path.parent.parent).read(task.run_id or "").signal
    except AirExecutorError:
        name = None  # it never ran, or its record is pruned
    return _SIGNALLED + signal.Signals[name] if name and name in signal.Signals.__members__ else EXIT_NO


COMMANDS: tuple[Command, ...] = (
    Command(
        "add",
        "make a job of one command; with --wait, print what it prints and end with its exit code. The command's stdin "
        "is empty, as that of every task: give input as a file or an argument",
        _add,
        (
            Argument(
                ("-w", "--wait"),
                {"action": "store_true", "help": "stay until it has ended; Ctrl-C cancels it"},
            ),
            Argument(("--name",), {"help": "name of the job (default: the program's, and some letters)"}),
            Argument(("--key",), {"help": "add once: with the same key again, this is the job that is there"}),
            Argument(("--shell",), {"action": "store_true", "help": "the command is a line for /bin/sh"}),
            Argument(("--timeout",), {"type": at_least_zero, "help": "seconds that a try may take"}),
            Argument(("--retries",), {"type": count, "default": 0, "help": "how often it is tried again"}),
            jobfile.ENV_FROM,
            JSON,
            Argument(("argv",), {"nargs": argparse.REMAINDER, "metavar": "-- COMMAND [ARG…]", "help": "the command"}),
        ),
    ),
)
