"""``air-executor trust``: jobs that were not submitted here (those of a repository) run only when somebody says so."""

from __future__ import annotations

import argparse
import sys

from air_executor.cli import where
from air_executor.cli.listing import Listing, show
from air_executor.cli.table import EXIT_NO, EXIT_OK, JSON, Argument, Command, print_json
from air_executor.errors import AirExecutorError, JobError
from air_executor.jobs.model import Job
from air_executor.jobs.store import JobStore


def warn(store: JobStore) -> None:
    """Print which jobs the manager that is about to begin will leave alone."""
    names = [job.name for job in _untrusted(store) if not job.state.is_end]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        print(
            f"not run, because they were not submitted here: {', '.join(names[:5])}{more}; see `air-executor trust`",
            file=sys.stderr,
        )


def _trust(args: argparse.Namespace) -> int:
    store = where.job_store()
    if args.all and args.names:
        raise JobError("name the jobs to trust, or give --all: choose one")
    if not (args.all or args.names):
        return _list(store, is_json=args.json)
    names = list(dict.fromkeys(args.names)) or [job.name for job in _untrusted(store)]
    trusted: list[str] = []
    troubles: list[AirExecutorError] = []
    for name in names:
        try:
            store.trust(store.files(name).read_job())
            trusted.append(name)
        except AirExecutorError as error:
            troubles.append(error)
    if troubles and not trusted:
        raise troubles[0]
    if troubles:
        raise JobError("; ".join(map(str, troubles)), hint=f"these are trusted from now on: {', '.join(trusted)}")
    if args.json:
        print_json({"trusted": trusted})
    else:
        print(f"trusted from now on: {', '.join(trusted) or 'no job was left to trust'}")
    return EXIT_OK


def _list(store: JobStore, *, is_json: bool) -> int:
    found = _untrusted(store)
    if is_json:
        print_json({"untrusted": [job.name for job in found]})
        return EXIT_OK
    if not found:
        print("all jobs here are trusted", file=sys.stderr)
        return EXIT_OK
    shown = Listing("JOB", "STATE", "UPDATED (UTC)")
    for job in found:
        shown.add_row(job.name, job.state.value, job.updated_at[:19].replace("T", " "))
    show(shown)
    print("look at them (`air-executor job NAME`), then: air-executor trust NAME… or --all", file=sys.stderr)
    return EXIT_NO


def _untrusted(store: JobStore) -> list[Job]:
    found = []
    for name in store.names():
        try:
            job = store.files(name).read_job()
            is_known = store.private.is_trusted(job)
            is_untrusted = not is_known or (not job.state.is_end and store.distrust(job) is not None)
        except AirExecutorError as error:
            print(f"job {name} can't be looked at: {error}", file=sys.stderr)
            continue
        if is_untrusted:
            found.append(job)
    return found


COMMANDS: tuple[Command, ...] = (
    Command(
        "trust",
        "let jobs run that were not submitted here, but came with a repository; without NAME, list them",
        _trust,
        (
            Argument(("names",), {"nargs": "*", "metavar": "NAME", "help": "name of a job"}),
            Argument(("--all",), {"action": "store_true", "help": "all that are here now"}),
            JSON,
        ),
    ),
)
