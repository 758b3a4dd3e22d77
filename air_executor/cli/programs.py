"""Commands that scripts and programs are made of: one command as a job, waiting for a job, and help for agents."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from air_executor import config
from air_executor.cli import jobs, trust
from air_executor.cli.table import (
    EXIT_NO,
    EXIT_OK,
    EXIT_TIMEOUT,
    JSON,
    Argument,
    Command,
    at_least_zero,
    count,
    print_json,
)
from air_executor.cli.working import work_until
from air_executor.config import Config
from air_executor.errors import AirExecutorError, JobError
from air_executor.jobs import api
from air_executor.jobs.manager import Manager
from air_executor.jobs.model import JobState, Task
from air_executor.jobs.private import values_of
from air_executor.jobs.requests import request
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.machine.safe_files import open_log
from air_executor.runs.lock import is_held
from air_executor.runs.store import RunStore

#: How often something is looked at that is waited for, in seconds.
_LOOK_S = 0.2

#: So many bytes of a command's output go into a JSON document: the last ones.
_OUTPUT_BYTES = 64 * 1024

#: The exit codes of shells for a command that a signal has killed begin here.
_SIGNALLED = 128

_INTERRUPTED = 130


class NotEndedError(JobError):
    """A job that is waited for has not ended in time."""

    retryable = True
    exit_code = EXIT_TIMEOUT


def _config() -> Config:
    return config.load_plain(str(api.find_state_dir()))


# One command


def _add(args: argparse.Namespace) -> int:
    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    if not argv:
        raise JobError("there is no command: `air-executor add -- COMMAND [ARG…]`")
    short = _name_of(argv[0].split()[0] if args.shell and argv[0].split() else argv[0])
    task: dict[str, Any] = {"id": short, "retries": args.retries, "timeout": args.timeout}
    task |= {"command": " ".join(argv), "shell": True} if args.shell else {"command": argv[0], "args": argv[1:]}
    name = args.name or f"{short}-{_digest(args.key) if args.key else uuid.uuid4().hex[:8]}"
    options = _config()
    values = values_of(args.env_from)
    job = api.submit(name, [task], key=args.key, private_env=values, state_dir=options.state_dir)
    store = JobStore(options.state_dir)
    if args.wait:
        return _work_on(options, store, job.name, short, is_json=args.json)
    has_manager = store.manager() is not None
    if args.json:
        print_json({"name": job.name, "task": short, "has_manager": has_manager})
    else:
        print(job.name)
        if not has_manager:
            print("no manager works here; begin with `air-executor start`", file=sys.stderr)
    return EXIT_OK


def _name_of(program: str) -> str:
    """Return a name that shows which program is meant."""
    name = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", os.path.basename(program)).strip("-.")[:40]
    return name if name[:1].isalnum() else "command"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _work_on(options: Config, store: JobStore, name: str, task_id: str, *, is_json: bool) -> int:
    """Have a job of one task done, by its manager or here, and pass on what it prints and how it ends."""
    output = _Output(store.files(name).log_file(task_id), is_quiet=is_json)

    def is_over(_: Manager | None) -> bool:
        output.pass_on()
        files = store.files(name)
        return files.is_ended() and not files.asks()

    try:
        if work_until(is_over, lambda: Manager(options, only=frozenset({name}), poll_s=_LOOK_S)):
            raise KeyboardInterrupt
    except (KeyboardInterrupt, BrokenPipeError):  # the latter: whoever reads what it prints has seen enough
        files = store.files(name)
        if not files.is_ended():
            request(options, name, "cancel")
        raise
    output.pass_on()
    return _tell_end(store.open(name), task_id, output, is_json=is_json)


class _Output:
    """What a task prints, passed on byte by byte."""

    def __init__(self, path: Path, *, is_quiet: bool) -> None:
        self._path, self._is_quiet = path, is_quiet
        self._position = 0

    def pass_on(self) -> None:
        """Print what has come."""
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
        """Return the last that was printed."""
        try:
            with open_log(self._path) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _OUTPUT_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


def _tell_end(files: JobFiles, task_id: str, output: _Output, *, is_json: bool) -> int:
    task = files.tasks[task_id]
    code = exit_code(files, task)
    if is_json:
        end = {"name": files.job.name, "task": task.id, "state": files.job.state.value, "exit_code": code}
        print_json({**end, "error": task.error, "output": output.tail()})
    elif code and task.exit_code is None:
        print(f"air-executor: job {files.job.name}: {task.error or files.job.error}", file=sys.stderr)
    return code


def exit_code(files: JobFiles, task: Task) -> int:
    """Return how a shell would tell the end of a task's command: its exit code, or 128 and the signal's number."""
    if files.job.state is JobState.COMPLETED:
        return EXIT_OK
    if task.exit_code is not None:
        return task.exit_code or EXIT_NO
    try:
        name = RunStore(files.path.parent.parent).read(task.run_id or "").signal
    except AirExecutorError:
        name = None  # it never ran, or its record is pruned
    return _SIGNALLED + signal.Signals[name] if name and name in signal.Signals.__members__ else EXIT_NO


# Waiting


def _wait(args: argparse.Namespace) -> int:
    store = JobStore(api.find_state_dir())
    files = store.files(args.name)
    until_s = float("inf") if args.timeout is None else time.monotonic() + args.timeout
    told: str | None = None
    while not files.is_ended() or files.asks():
        if time.monotonic() >= until_s:
            state = files.read_job().state.value
            raise NotEndedError(f"job {args.name} is {state} after {args.timeout:g} s", hint=obstacle(store, files))
        if (said := obstacle(store, files)) != told and (told := said):
            print(f"job {args.name}: {said}", file=sys.stderr)
        time.sleep(_LOOK_S)
    return jobs.show_results(store.open(args.name), is_json=args.json)


def obstacle(store: JobStore, files: JobFiles) -> str | None:
    """Return why a job that has not ended does not go on, and what to do about it, if anything is in its way."""
    job = files.read_job()
    if untrusted := trust.hint(store, job):
        return untrusted
    if job.paused:
        return f"it is paused; `air-executor resume {job.name}` lets it go on"
    if not (is_held(store.root / "manager.lock") or is_held(files.path / "lock")):
        return "no manager works here; begin with `air-executor start`"
    return None


# Asking


def _ask(args: argparse.Namespace) -> int:
    files = request(_config(), args.name, args.command, getattr(args, "tasks", []))
    return jobs.show_summary(files, is_json=args.json)


# Help


def _help(args: argparse.Namespace) -> int:
    text = _page() if args.topic == "agents" else _usage(args.topic)
    if args.json:
        print_json({"topic": args.topic, "text": text})
    else:
        print(text, end="")
    return EXIT_OK


def _page() -> str:
    return Path(__file__).with_name("agents.md").read_text("utf-8")


def _usage(topic: str | None) -> str:
    from air_executor.cli.main import parser  # which is made from the commands here

    top = parser()
    if topic is None:
        return top.format_help()
    [commands] = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    if topic not in commands.choices:
        raise AirExecutorError(
            f"there is no command, and no page, {topic!r}",
            hint="`air-executor help` lists the commands; the page for programs is `air-executor help agents`",
        )
    return str(commands.choices[topic].format_help())


def _mcp(args: argparse.Namespace) -> int:
    try:
        from air_executor.cli.mcp_server import serve
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("mcp"):
            raise
        raise AirExecutorError(
            "the MCP server needs the package mcp, 2 or newer: pip install 'air-executor[mcp]'"
        ) from None
    serve(may_write=args.write)
    return EXIT_OK


_NAME = Argument(("name",), {"metavar": "NAME", "help": "name of the job"})

COMMANDS: tuple[Command, ...] = (
    Command(
        "add",
        "make a job of one command; with --wait, print what it prints and end with its exit code",
        _add,
        (
            Argument(
                ("-w", "--wait"),
                {"action": "store_true", "help": "stay until it has ended; Ctrl-C cancels it"},
            ),
            Argument(("--name",), {"help": "name of the job (default: the program's, and some letters)"}),
            Argument(("--key",), {"help": "of all that is added or submitted with the same key, there is one job"}),
            Argument(("--shell",), {"action": "store_true", "help": "the command is a line for /bin/sh"}),
            Argument(("--timeout",), {"type": at_least_zero, "help": "seconds that it may take"}),
            Argument(("--retries",), {"type": count, "default": 0, "help": "how often it is tried again"}),
            jobs.ENV_FROM,
            JSON,
            Argument(("argv",), {"nargs": argparse.REMAINDER, "metavar": "-- COMMAND [ARG…]", "help": "the command"}),
        ),
    ),
    Command(
        "wait",
        "wait until a job has ended; the exit code tells what became of it, 124 that it has not ended in time",
        _wait,
        (_NAME, Argument(("--timeout",), {"type": at_least_zero, "help": "wait at most so many seconds"}), JSON),
    ),
    Command("pause", "start no more tasks of a job; what runs, runs on", _ask, (_NAME, JSON)),
    Command("resume", "go on with a job that was paused", _ask, (_NAME, JSON)),
    Command("cancel", "end a job: what runs is stopped, what waits is not run", _ask, (_NAME, JSON)),
    Command(
        "retry",
        "try the failed tasks of a job again, and what depends on them",
        _ask,
        (_NAME, Argument(("tasks",), {"nargs": "*", "metavar": "TASK", "help": "only these"}), JSON),
    ),
    Command("reset", "begin a job anew: without what its tasks have queued", _ask, (_NAME, JSON)),
    Command(
        "mcp",
        "be an MCP server for AI agents, on stdin and stdout (needs the extra: pip install 'air-executor[mcp]')",
        _mcp,
        (
            Argument(("--write",), {"action": "store_true", "help": "agents may submit, queue, cancel, and so on"}),
            JSON,
        ),
    ),
    Command(
        "help",
        "show how a command is used; or, with the topic agents, the page for programs and AI agents",
        _help,
        (Argument(("topic",), {"nargs": "?", "metavar": "COMMAND|agents", "help": "what about"}), JSON),
    ),
)
