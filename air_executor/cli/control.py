"""The commands that ask something of a job: pause, resume, cancel, retry, reset."""

from __future__ import annotations

import argparse
import dataclasses

from air_executor.cli import where
from air_executor.cli.jobs import NAME
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command, print_json
from air_executor.jobs.requests import request
from air_executor.observe.jobs import summary


def _ask(args: argparse.Namespace) -> int:
    files = request(where.options(), args.name, args.command, getattr(args, "tasks", []))
    now = summary(files)
    if args.json:
        print_json(dataclasses.asdict(now))
    else:
        print(f"job {now.name}: {'paused' if now.paused else now.state.value}")
    return EXIT_OK


COMMANDS: tuple[Command, ...] = (
    Command("pause", "start no more tasks of a job; what runs, runs on", _ask, (NAME, JSON)),
    Command("resume", "go on with a job that was paused", _ask, (NAME, JSON)),
    Command("cancel", "end a job: stop what runs, and do not start what waits", _ask, (NAME, JSON)),
    Command(
        "retry",
        "try the failed tasks of a job again, and what depends on them",
        _ask,
        (NAME, Argument(("tasks",), {"nargs": "*", "metavar": "TASK", "help": "only these"}), JSON),
    ),
    Command("reset", "begin a job anew, without the tasks that its tasks have queued", _ask, (NAME, JSON)),
)
