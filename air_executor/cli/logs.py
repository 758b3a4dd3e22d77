"""``air-executor logs``: the log of a run, or of a job's task."""

from __future__ import annotations

import argparse
import os
from typing import Any

from air_executor.cli import elsewhere, joblogs, select, where
from air_executor.cli.jsonout import printing_text
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command, count
from air_executor.cli.tasklogs import Filter, LogReader, follow, pattern, print_log, stream
from air_executor.errors import AirExecutorError
from air_executor.runs.record import RunRecord
from air_executor.runs.store import RunStore


def _logs(args: argparse.Namespace) -> int:
    if args.task is None and not select.names_runs(args) and args.run is not None:
        args.task = joblogs.only_task(args.run)  # of a job that is named alone
    wanted = Filter(tail=args.tail, pattern=args.grep)
    if not args.json:
        return _print(args, wanted)
    if args.follow:
        return _stream(args, wanted)
    what: dict[str, Any] = {"run" if args.task is None else "job": args.run, "task": args.task}
    with printing_text(what, "log"):
        return _print(args, wanted)


def _print(args: argparse.Namespace, wanted: Filter) -> int:
    if args.task is not None:
        joblogs.print_task_log(args.run, args.task, wanted, is_followed=args.follow)
        return EXIT_OK
    store, record, reader = _found(args)
    if args.follow:
        follow(store, record, reader, wanted)
    else:
        print_log(store, record, reader, wanted)
    return EXIT_OK


def _stream(args: argparse.Namespace, wanted: Filter) -> int:
    """Print a log as NDJSON, as it grows."""
    if args.task is not None:
        joblogs.stream_task_log(args.run, args.task, wanted)
    else:
        stream(*_found(args), wanted)
    return EXIT_OK


def _found(args: argparse.Namespace) -> tuple[RunStore, RunRecord, LogReader]:
    runs = where.all_runs()
    record = select.one(runs, args)
    is_elsewhere = runs.is_elsewhere(record.id) and not os.path.exists(record.log_file or "")
    if is_elsewhere and record.identity.kind == "job":
        raise AirExecutorError(
            f"the log of run {record.id} is on its host, and comes from there when the run has ended"
        )
    store = runs.store_of(record.id)
    return store, record, elsewhere.HostLog(store, record.id) if is_elsewhere else LogReader(record.log_file)


COMMANDS: tuple[Command, ...] = (
    Command(
        "logs",
        "print the log of a run's task, and what its runner printed; or that of a job's task",
        _logs,
        (
            Argument(
                ("run",),
                {"nargs": "?", "metavar": "RUN|JOB", "help": "id of a run, or the beginning of it; or a job's name"},
            ),
            Argument(("task",), {"nargs": "?", "metavar": "TASK", "help": "of a job: the task"}),
            Argument(
                ("-f", "--follow"),
                {"action": "store_true", "help": "go on until it ends; with --json: NDJSON, an object in each line"},
            ),
            Argument(("-n", "--tail"), {"type": count, "metavar": "N", "help": "begin with the last N lines"}),
            Argument(("--grep",), {"type": pattern, "metavar": "RE", "help": "only lines in which RE is found"}),
            *select.ARGUMENTS,
            JSON,
        ),
    ),
)
