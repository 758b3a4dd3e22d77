"""The commands that remove ended runs and ended jobs."""

from __future__ import annotations

import argparse
from dataclasses import replace

from air_executor.cli import where
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command, at_least_zero, count, print_json
from air_executor.errors import AirExecutorError, WrongStateError
from air_executor.jobs import orphans, retention
from air_executor.jobs.store import JobStore
from air_executor.runs import pruning
from air_executor.runs.store import RunStore


def _prune(args: argparse.Namespace) -> int:
    options = where.options()
    store = RunStore(options.state_dir)
    store.refuse_strangers()
    kept = retention.retention(options) or retention.Retention(options.keep_days, options.keep_jobs)
    if args.keep_days is not None:
        options, kept = replace(options, keep_days=args.keep_days), replace(kept, keep_days=args.keep_days)
    if args.keep_jobs is not None:
        kept = replace(kept, keep_jobs=args.keep_jobs)
    keep_runs = options.keep_runs if args.keep_runs is None else args.keep_runs
    orphans.release(JobStore(options.state_dir), store)
    runs = pruning.prune(store, keep_days=options.keep_days, keep_runs=keep_runs)
    ended = retention.prune(JobStore(options.state_dir), kept)
    if args.json:
        print_json({"removed": runs.removed, "kept": runs.kept, "jobs": {"removed": ended.removed, "kept": ended.kept}})
    else:
        print(f"removed {runs.removed} records, kept {runs.kept}")
        print(f"removed {ended.removed} jobs, kept {ended.kept}")
    return EXIT_OK


def _remove(args: argparse.Namespace) -> int:
    options = where.options()
    RunStore(options.state_dir).refuse_strangers()
    store = JobStore(options.state_dir)
    removed: list[str] = []
    troubles: list[AirExecutorError] = []
    for name in args.names:
        try:
            retention.remove(store, name, is_forced=args.force)
            removed.append(name)
        except AirExecutorError as error:
            troubles.append(error)
    if not args.json:
        print("".join(f"removed {name}\n" for name in removed), end="")
    if len(troubles) == 1 and not removed:
        raise troubles[0]
    if troubles:
        raise WrongStateError("; ".join(map(str, troubles)), hint=f"these are removed: {', '.join(removed) or 'none'}")
    if args.json:
        print_json({"removed": removed})
    return EXIT_OK


COMMANDS: tuple[Command, ...] = (
    Command(
        "prune",
        "remove old records of ended runs, and old jobs that have ended",
        _prune,
        (
            Argument(("--keep-days",), {"type": at_least_zero, "help": "default: [air_executor] keep_days"}),
            Argument(("--keep-runs",), {"type": count, "help": "default: [air_executor] keep_runs"}),
            Argument(("--keep-jobs",), {"type": count, "help": "default: [air_executor] keep_jobs"}),
            JSON,
        ),
    ),
    Command(
        "remove",
        "remove jobs that have ended, with their logs",
        _remove,
        (
            Argument(("names",), {"metavar": "NAME", "nargs": "+", "help": "name of a job"}),
            Argument(
                ("-f", "--force"),
                {"action": "store_true", "help": "also one that has not ended, or can't be understood"},
            ),
            JSON,
        ),
    ),
)
