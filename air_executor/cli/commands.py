"""The commands, as a table that both argparse and Airflow's command line are made from."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import signal
import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from air_executor import config
from air_executor.cli import cleaning, doctor, joblogs, jobs, jobviews, programs, schema, select, views
from air_executor.cli.jsonout import print_line
from air_executor.cli.listing import say_where, show
from air_executor.cli.table import EXIT_NO, EXIT_OK, JSON, Argument, Command, at_least_zero, count, print_json
from air_executor.cli.tasklogs import Filter, follow, pattern, print_log, stream
from air_executor.config import Config
from air_executor.errors import WrongStateError
from air_executor.launcher.client.backend import signal_by_pid
from air_executor.launcher.client.control import ask_to_stop
from air_executor.launcher.service import serve_as_service
from air_executor.machine.ownership import check_state_dir
from air_executor.observe.query import launchers, observe_runs, waiting_for_gpus
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.records import public
from air_executor.runs.statedir import VARIABLE, locate
from air_executor.runs.store import RunStore

#: How often `stop --wait` looks, in seconds.
_LOOK_S = 0.1


def _options() -> Config:
    return jobs.options()


def _store() -> RunStore:
    state_dir = _options().state_dir
    check_state_dir(state_dir, is_looking=True)
    return RunStore(state_dir)


def _plain_status(store: RunStore) -> dict[str, Any]:
    return {
        "launchers": launchers(store),
        "runs": [run.to_dict() for run in observe_runs(store)],
        "waiting": waiting_for_gpus(store),
        "jobs": [dataclasses.asdict(job) for job in jobs.summaries(store.root, ended=False)],
    }


def _status(args: argparse.Namespace) -> int:
    store = _store()
    if args.json:
        while args.watch:
            print_line(_plain_status(store))
            time.sleep(args.interval)
        print_json(_plain_status(store))
        return EXIT_OK

    def seen() -> Group:
        working = jobs.summaries(store.root, ended=False)
        parts = [views.status(launchers(store), observe_runs(store), waiting_for_gpus(store))]
        return Group(*parts, *([jobviews.jobs(working)] if working else []))

    where = f"state directory {locate()}"
    if not args.watch:
        say_where(where)
        show(seen())
        return EXIT_OK
    console = Console()
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            live.update(Group(Text(where, style="dim"), seen()), refresh=True)
            time.sleep(args.interval)


def _runs(args: argparse.Namespace) -> int:
    store = _store()
    wanted = [
        record
        for record in store.records()
        if (not args.state or record.state.value in args.state) and select.is_wanted(record, args)
    ]
    wanted.sort(key=lambda record: record.queued_at or "", reverse=True)
    wanted = wanted[: args.limit] if args.limit else wanted
    if args.json:
        print_json([public(record) for record in wanted])
    else:
        say_where(f"state directory {locate()}")
        show(views.runs(wanted))
    return EXIT_OK


def _show(args: argparse.Namespace) -> int:
    store = _store()
    record = store.settled(select.one(store, args))
    if args.json:
        print_json(public(record))
    else:
        show(views.run(store, record))
    return EXIT_OK


def _logs(args: argparse.Namespace) -> int:
    if not args.json:
        return _print_log(args)
    if args.follow:
        return _stream_log(args)
    with contextlib.redirect_stdout(io.StringIO()) as text:
        _print_log(args)
    print_json({"run" if args.task is None else "job": args.run, "task": args.task, "log": text.getvalue()})
    return EXIT_OK


def _stream_log(args: argparse.Namespace) -> int:
    """Print a log as NDJSON, as it grows."""
    wanted = _wanted_log(args)
    if args.task is not None:
        return joblogs.stream_task_log(args.run, args.task, wanted)
    store = _store()
    stream(store, select.one(store, args), wanted)
    return EXIT_OK


def _print_log(args: argparse.Namespace) -> int:
    wanted = _wanted_log(args)
    if args.task is not None:
        return joblogs.print_task_log(args.run, args.task, wanted, is_followed=args.follow)
    store = _store()
    record = select.one(store, args)
    if args.follow:
        follow(store, record, wanted)
    else:
        print_log(store, record, wanted)
    return EXIT_OK


def _wanted_log(args: argparse.Namespace) -> Filter:
    """Return which lines are wanted; of a job that is named alone, find out which of its tasks is meant."""
    if args.task is None and not select.names_runs(args) and args.run is not None:
        args.task = joblogs.only_task(args.run)
    return Filter(tail=args.tail, pattern=args.grep)


def _stop(args: argparse.Namespace) -> int:
    if not select.names_runs(args) and args.run is None:
        if not args.json:
            print("without a run this ends the manager of the jobs, as `air-executor shutdown` does", file=sys.stderr)
        return _shutdown(args)
    store = _store()
    store.refuse_strangers()
    if args.run is not None:
        return _tell_stopped([_stop_run(store, store.settled(store.find(args.run)), args)], args)
    stopped, errors = [], []
    for record in select.matching(store, args, live=True):
        try:
            stopped.append(_stop_run(store, record, args))
        except WrongStateError as error:
            errors.append(str(error))
    code = _tell_stopped(stopped, args) if stopped else EXIT_NO
    if errors:
        raise WrongStateError("; ".join(errors))
    return code


def _stop_run(store: RunStore, record: RunRecord, args: argparse.Namespace) -> RunRecord:
    """Have a run stopped.

    :raises WrongStateError: it has ended, or nobody can reach it.
    """
    if record.state.is_end:
        raise WrongStateError(f"run {record.id} has ended already: {record.state.value}")
    store.request_stop(record.id, args.reason)
    if not ask_to_stop(store, record.id) and not signal_by_pid(store, record.id, signal.SIGTERM):
        raise WrongStateError(
            f"run {record.id} is {record.state.value} on {record.host or 'an unknown host'}, and neither its launcher "
            "nor its process can be reached from here"
        )
    return record


def _tell_stopped(stopped: list[RunRecord], args: argparse.Namespace) -> int:
    if args.wait:
        store = _store()
        stopped = [_wait_for_end(store, record) for record in stopped]
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


def _shutdown(args: argparse.Namespace) -> int:
    return jobs.stop_manager(is_waited_for=args.wait, is_json=args.json)


def _doctor(args: argparse.Namespace) -> int:
    checks = doctor.examine()
    if args.json:
        print_json([check.to_dict() for check in checks])
    else:
        console = Console()
        console.print(views.checks(checks), soft_wrap=not console.is_terminal)  # in a pipe a finding is a line
    return EXIT_OK if all(check.ok for check in checks) else EXIT_NO


def _launcher(_: argparse.Namespace) -> int:
    # Airflow's, unless another is named: a service of Airflow's executor looks for no folder of jobs.
    options = config.load_plain(str(locate().path) if VARIABLE in os.environ else None)
    check_state_dir(options.state_dir)
    store = RunStore(options.state_dir)
    store.prepare()
    serve_as_service(store, options)
    return EXIT_OK


_RUN = Argument(("run",), {"nargs": "?", "metavar": "RUN", "help": "id of the run, or the beginning of it"})

_WAIT = Argument(("--wait",), {"action": "store_true", "help": "wait until it has ended"})

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
                ("-n", "--limit"), {"type": count, "default": 50, "help": "at most so many, 0 for all (default 50)"}
            ),
            JSON,
        ),
    ),
    Command("show", "show everything about one run", _show, (_RUN, *select.ARGUMENTS, JSON)),
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
    Command(
        "stop",
        "stop a run, or all that are named: a task gets time for on_kill, then it is killed",
        _stop,
        (
            _RUN,
            *select.ARGUMENTS,
            Argument(("--reason",), {"default": "stopped from the command line", "help": "noted in the record"}),
            _WAIT,
            JSON,
        ),
    ),
    Command("shutdown", "end the manager of the jobs; what runs, runs on", _shutdown, (_WAIT, JSON)),
    *cleaning.COMMANDS,
    Command(
        "launcher", "be the launcher, as a service of its own ([air_executor] launcher = service)", _launcher, (JSON,)
    ),
    Command("doctor", "check the installation and say how to mend it", _doctor, (JSON,)),
    *jobs.COMMANDS,
    *schema.COMMANDS,
    *programs.COMMANDS,
)
