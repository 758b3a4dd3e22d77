"""The commands that show and stop runs, and the one that shows all that is live."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pwd
import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from air_executor.cli import elsewhere, jobviews, manager, select, views, where
from air_executor.cli.jsonout import print_line
from air_executor.cli.listing import say_where, show
from air_executor.cli.table import EXIT_NO, EXIT_OK, JSON, Argument, Command, at_least_zero, count, print_json
from air_executor.errors import AirExecutorError, WrongStateError
from air_executor.observe import budget
from air_executor.observe.everywhere import AllRuns
from air_executor.observe.jobs import summaries
from air_executor.observe.query import launchers, observe_runs, waiting_for_gpus
from air_executor.observe.stopping import stop_here
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.records import public
from air_executor.runs.statedir import locate
from air_executor.runs.store import RunStore

#: How often `stop --wait` looks, in seconds.
_LOOK_S = 0.1


def _status(args: argparse.Namespace) -> int:
    runs = where.all_runs()
    if args.json:
        while args.watch:
            print_line(_plain_status(runs))
            time.sleep(args.interval)
        print_json(_plain_status(runs))
        return EXIT_OK
    line = f"state directory {locate()}"
    if not args.watch:
        say_where(line)
        show(_shown_status(runs))
        return EXIT_OK
    console = Console()
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            live.update(Group(Text(line, style="dim"), _shown_status(runs)), refresh=True)
            time.sleep(args.interval)


def _plain_status(runs: AllRuns) -> dict[str, Any]:
    room = budget.look_if_possible()
    return {
        "launchers": launchers(runs.here),
        "runs": [run.to_dict() for run in observe_runs(runs)],
        "waiting": [*waiting_for_gpus(runs.here), *(budget.documents(room.waiting) if room else ())],
        "budget": room.to_dict() if room else None,
        "jobs": [dataclasses.asdict(job) for job in summaries(runs.here.root, ended=False)],
    }


def _shown_status(runs: AllRuns) -> Group:
    jobs = summaries(runs.here.root, ended=False)
    live = observe_runs(runs)
    hosts = any(runs.is_elsewhere(run.record.id) for run in live)
    parts = [views.status(launchers(runs.here), live, waiting_for_gpus(runs.here), hosts=hosts)]
    if (room := budget.look_if_possible()) is not None:
        parts.append(views.room(room))
    return Group(*parts, *([jobviews.jobs(jobs)] if jobs else []))


def _runs(args: argparse.Namespace) -> int:
    runs = where.all_runs()
    wanted = [
        record
        for record in runs.records()
        if (not args.state or record.state.value in args.state) and select.is_wanted(record, args)
    ]
    wanted.sort(key=lambda record: record.queued_at or "", reverse=True)
    wanted = wanted[: args.limit] if args.limit else wanted
    if args.json:
        print_json([public(record) for record in wanted])
    else:
        say_where(f"state directory {locate()}")
        show(views.runs(wanted, hosts=any(runs.is_elsewhere(record.id) for record in wanted)))
    return EXIT_OK


def _show(args: argparse.Namespace) -> int:
    runs = where.all_runs()
    record = runs.settled(select.one(runs, args))
    if args.json:
        print_json(public(record))
    else:
        show(views.run(runs.store_of(record.id), record))
    return EXIT_OK


# Stopping


def _stop(args: argparse.Namespace) -> int:
    if not select.names_runs(args) and args.run is None:
        if not args.json:
            print("without a run this ends the manager of the jobs, as `air-executor shutdown` does", file=sys.stderr)
        return manager.shutdown(args)
    runs = where.all_runs()
    runs.here.refuse_strangers()
    if args.run is not None:
        return _show_stopped(runs, [_stop_run(runs, runs.settled(runs.find(args.run)), args)], args)
    stopped, errors = [], []
    for record in select.matching(runs, args, live=True):
        try:
            stopped.append(_stop_run(runs, record, args))
        except AirExecutorError as error:
            errors.append(str(error))
    code = _show_stopped(runs, stopped, args) if stopped else EXIT_NO
    if errors:
        raise WrongStateError("; ".join(errors))
    return code


def _stop_run(runs: AllRuns, record: RunRecord, args: argparse.Namespace) -> RunRecord:
    """Have a run stopped.

    :raises WrongStateError: it has ended, or nobody can reach it.
    """
    stop_run(runs, record, f"{args.reason}, by {me()}")
    return record


def stop_run(runs: AllRuns, record: RunRecord, reason: str) -> None:
    """Have a run stopped, here or on another host.

    :raises WrongStateError: it has ended, or nobody can reach it.
    """
    if runs.is_elsewhere(record.id) and not record.state.is_end:
        elsewhere.stop(record, reason)
    else:
        stop_here(runs, record, reason)


def me() -> str:
    """Return the name of the user of this process, for the audit log."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"user {os.getuid()}"
    asked = os.environ.get("SUDO_USER", name)
    return name if asked == name else f"{asked} as {name}"


def _show_stopped(runs: AllRuns, stopped: list[RunRecord], args: argparse.Namespace) -> int:
    if args.wait:
        stopped = [_wait_for_end(runs.store_of(record.id), record) for record in stopped]
    if args.json:
        plain = [public(record) for record in stopped]
        print_json(plain[0] if args.run is not None else plain)
        return EXIT_OK
    for record in stopped:
        print(f"run {record.id} of {record.label}: {record.state.value if args.wait else 'is being stopped'}")
    return EXIT_OK


def _wait_for_end(store: RunStore, record: RunRecord) -> RunRecord:
    while not record.state.is_end:
        time.sleep(_LOOK_S)
        record = store.settled(store.read(record.id))
    return record


COMMANDS: tuple[Command, ...] = (
    Command(
        "status",
        "show the launchers and what runs now",
        _status,
        (
            Argument(
                ("-w", "--watch"),
                {
                    "action": "store_true",
                    "help": "stay and keep the display up to date; with --json: NDJSON, a line at each look",
                },
            ),
            Argument(
                ("--interval",),
                {"type": at_least_zero, "default": 1.0, "help": "seconds between two looks of --watch (default 1)"},
            ),
            JSON,
        ),
    ),
    Command(
        "runs",
        "list runs, the newest first",
        _runs,
        (
            Argument(
                ("-s", "--state"),
                {
                    "action": "append",
                    "choices": [state.value for state in RunState],
                    "help": "only runs in this state; may be given more than once",
                },
            ),
            *select.FILTERS,
            Argument(
                ("-n", "--limit"), {"type": count, "default": 50, "help": "at most this many; 0 for all (default 50)"}
            ),
            JSON,
        ),
    ),
    Command("show", "show everything about one run", _show, (select.RUN, *select.ARGUMENTS, JSON)),
    Command(
        "stop",
        "stop a run, or all that are named: a task gets time for on_kill, then it is killed",
        _stop,
        (
            select.RUN,
            *select.ARGUMENTS,
            Argument(
                ("--reason",),
                {
                    "default": "stopped from the command line",
                    "help": "noted in the record and in Airflow's audit log, with your name",
                },
            ),
            manager.WAIT,
            JSON,
        ),
    ),
)
