"""The commands that show jobs, and wait for them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from typing import Any

from air_executor import jsontext
from air_executor.cli import jobviews, where
from air_executor.cli.listing import say_where, show
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
from air_executor.errors import JobError
from air_executor.jobs.model import JobState
from air_executor.jobs.store import JobFiles
from air_executor.observe.jobs import leftover_runs, listed, obstacle, untrusted
from air_executor.runs.statedir import locate

#: How often `wait` looks, in seconds.
_LOOK_S = 0.2

#: This many jobs that have ended are listed, unless the command line says how many.
_SHOWN_ENDED = 50

NAME = Argument(("name",), {"metavar": "NAME", "help": "name of the job"})


class NotEndedError(JobError):
    """A job that is waited for has not ended in time."""

    retryable = True
    exit_code = EXIT_TIMEOUT


def _jobs(args: argparse.Namespace) -> int:
    limit = args.limit if args.limit is not None else 0 if args.json else _SHOWN_ENDED
    found = listed(where.options().state_dir, most_ended=limit or None)
    if args.json:
        print_json([dataclasses.asdict(each) for each in found.jobs])
        return EXIT_OK
    say_where(f"state directory {locate()}")
    show(jobviews.jobs(found.jobs))
    if found.left_out:
        print(f"and {found.left_out} more that have ended; `air-executor jobs -n 0` lists all", file=sys.stderr)
    return EXIT_OK


def _job(args: argparse.Namespace) -> int:
    store = where.job_store()
    files = store.open(args.name)
    why = untrusted(store, files.job)
    if args.json:
        print_json({**_plain(files), "trusted": why is None})
        return EXIT_OK
    show(jobviews.job(files, leftover_runs(files)))
    if why is not None:
        show(jobviews.definition(files))
        print(f"job {args.name}: {why}", file=sys.stderr)
    return EXIT_OK


def _results(args: argparse.Namespace) -> int:
    return show_results(where.job_store().open(args.name), is_json=args.json)


def show_results(files: JobFiles, *, is_json: bool) -> int:
    """Print what became of a job; return the exit code: 0 if it has completed, 1 if not."""
    if is_json:
        print_json(_plain(files))
    else:
        show(jobviews.results(files))
    return EXIT_OK if files.job.state is JobState.COMPLETED else EXIT_NO


def _plain(files: JobFiles) -> dict[str, Any]:
    return {**jsontext.loads(files.job.to_json()), "tasks": [task.to_dict() for task in files.tasks.values()]}


def _wait(args: argparse.Namespace) -> int:
    store = where.job_store()
    files = store.files(args.name)
    until_s = float("inf") if args.timeout is None else time.monotonic() + args.timeout
    printed: str | None = None
    while not files.is_over():
        if time.monotonic() >= until_s:
            state = files.read_job().state.value
            raise NotEndedError(f"job {args.name} is {state} after {args.timeout:g} s", hint=obstacle(store, files))
        if (why := obstacle(store, files)) != printed and (printed := why):
            print(f"job {args.name}: {why}", file=sys.stderr)
        time.sleep(_LOOK_S)
    return show_results(store.open(args.name), is_json=args.json)


COMMANDS: tuple[Command, ...] = (
    Command(
        "jobs",
        "list the jobs: those that have not ended, and the last ones that have",
        _jobs,
        (
            Argument(
                ("-n", "--limit"),
                {"type": count, "help": "show this many that have ended; 0 for all (default 50, and all with --json)"},
            ),
            JSON,
        ),
    ),
    Command("job", "show a job: its tasks, their times, and who queued whom", _job, (NAME, JSON)),
    Command(
        "wait",
        "wait until a job has ended; the exit code tells what became of it, 124 that it has not ended in time",
        _wait,
        (NAME, Argument(("--timeout",), {"type": at_least_zero, "help": "wait at most this many seconds"}), JSON),
    ),
    Command("results", "show what became of a job", _results, (NAME, JSON)),
)
