"""The commands that make jobs and tasks, for a manager to work on."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import orjson

from air_executor.cli import jobfile, where
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command, at_least_zero, command_after, count, print_json
from air_executor.errors import JobError
from air_executor.jobs import again, api
from air_executor.jobs.model import When
from air_executor.jobs.private import values_of
from air_executor.jobs.store import JobStore
from air_executor.machine.safe_files import replace_file
from air_executor.runs.statedir import FOLDER, working_dir

#: Printed to stderr beside a job that nobody works on.
NO_MANAGER = "no manager works here; begin with `air-executor start`"


def _init(args: argparse.Namespace) -> int:
    folder = working_dir() / FOLDER
    JobStore(folder).prepare()
    ignore = folder / ".gitignore"
    if not os.path.lexists(ignore):
        replace_file(ignore, b"*\n!.gitignore\n!jobs/\n!jobs/*/\n!jobs/*/state.json\n!jobs/*/tasks.json\n")
    if args.json:
        print_json({"jobs": str(folder / "jobs")})
        return EXIT_OK
    print(f"jobs of this folder are kept in {folder / 'jobs'}; their state.json and tasks.json can be committed to git")
    return EXIT_OK


def _submit(args: argparse.Namespace) -> int:
    store = where.job_store()
    name = jobfile.submit(args, args.file, str(store.root.parent), again.REFUSE)
    has_manager = store.manager() is not None
    if args.json:
        print_json({"name": name, "has_manager": has_manager})
        return EXIT_OK
    print(name)
    if not has_manager:
        print(NO_MANAGER, file=sys.stderr)
    return EXIT_OK


def _queue(args: argparse.Namespace) -> int:
    argv = command_after(args)
    task: dict[str, Any] = {"command": argv[0], "args": argv[1:]} if argv else {}
    if args.function:
        task = {"function": args.function, "arguments": _arguments(args.arguments or "{}")}
    given = {"id": args.id, "key": args.key, "dependencies": args.after}
    given |= {"timeout": args.timeout, "retries": args.retries, "when": args.when, "priority": args.priority}
    given |= {"private_env": values_of(args.env_from)}
    task |= {name: value for name, value in given.items() if value}
    job = args.job or (None if "AIR_EXECUTOR_JOB" in os.environ else "")
    if job == "":
        raise JobError("name the job: `air-executor queue --job NAME`; only inside a task it is known")
    [task_id] = api.queue_tasks([task], job=job, state_dir=None if job is None else where.options().state_dir)
    if args.json:
        print_json({"id": task_id})
    else:
        print(task_id)
    return EXIT_OK


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise JobError(f"--arguments must be JSON, not {text[:80]!r}: {error}") from None
    if not isinstance(arguments, dict):
        raise JobError(f"--arguments must be a JSON object, as '{{\"n\": 3}}', not {text[:200]!r}")
    return arguments


COMMANDS: tuple[Command, ...] = (
    Command("init", "keep jobs in this folder, in .air-executor", _init, (JSON,)),
    Command(
        "submit",
        "make a job from a file, for the manager to work on",
        _submit,
        (
            Argument(("file",), {"type": Path, "metavar": "FILE", "help": "a job as JSON or YAML; - for stdin"}),
            *jobfile.ARGUMENTS,
            Argument(("--key",), {"help": "submit once: with the same key again, this prints the job that is there"}),
            JSON,
        ),
    ),
    Command(
        "queue",
        "add a task to a job: inside a task to its own job, elsewhere to --job",
        _queue,
        (
            Argument(("--job",), {"metavar": "NAME", "help": "the job (inside a task: its own)"}),
            Argument(("--id",), {"help": "id of the task (default: a new one)"}),
            Argument(
                ("--after",),
                {"action": "append", "default": [], "metavar": "ID", "help": "a task that must have ended before"},
            ),
            Argument(
                ("--when",),
                {"choices": [each.value for each in When], "help": "how those must have ended (default success)"},
            ),
            Argument(("--priority",), {"type": int, "help": "of the job's tasks, the highest goes first (default 0)"}),
            Argument(("--key",), {"help": "queue once: of tasks with the same key the job has one"}),
            Argument(("--timeout",), {"type": at_least_zero, "help": "seconds that a try may take"}),
            Argument(("--retries",), {"type": count, "default": 0, "help": "how often it is tried again"}),
            Argument(("--function",), {"metavar": "MODULE:NAME", "help": "call a Python function, not a command"}),
            Argument(("--arguments",), {"metavar": "JSON", "help": "its keyword arguments"}),
            jobfile.ENV_FROM,
            JSON,
            Argument(("argv",), {"nargs": argparse.REMAINDER, "metavar": "-- COMMAND [ARG…]", "help": "the command"}),
        ),
    ),
)
