"""``air-executor dag``: runs a DAG's file to its end, without a set-up, and shows what became of such runs."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from air_executor import jsontext
from air_executor.cli import dagview
from air_executor.cli.jsonout import print_line
from air_executor.cli.listing import Listing, show
from air_executor.cli.table import EXIT_NO, EXIT_OK, JSON, Argument, Command, at_least_zero, print_json
from air_executor.cli.tasklogs import LogReader
from air_executor.cli.working import end_as_ctrl_c
from air_executor.errors import AirExecutorError
from air_executor.pocket.folder import RunFolder, age_s, all_folders, dags_dir, find
from air_executor.pocket.request import PLACES, BusyError, DagError, Request, RunFailedError, parse_conf
from air_executor.pocket.result import DagResult
from air_executor.pocket.run import run

_DAY_S = 86400.0


def _dag(args: argparse.Namespace) -> int:
    actions = {"run": _run, "list": _list, "show": _show, "logs": _logs, "clean": _clean}
    return actions[args.action](args)


def _run(args: argparse.Namespace) -> int:
    if not 1 <= len(args.names) <= 2:
        raise DagError("say what to run: air-executor dag run FILE [DAG_ID]")
    request = Request(
        target=args.names[0],
        dag_id=args.names[1] if len(args.names) > 1 else None,
        conf=parse_conf(args.conf) if args.conf else {},
        run_id=args.run_id,
        logical_date=args.logical_date,
        tasks=tuple(args.task),
        on=args.on,
        listen=args.listen,
        parallelism=args.parallelism,
        connections=args.connections,
        variables=args.variables,
        pools=args.pools,
        env_file=args.env_file,
        config_from=tuple(args.config_from),
        keep=args.keep,
    )
    end_as_ctrl_c()
    try:
        if args.json:
            folder = run(request, print_line, restart=args.restart)
        else:
            with dagview.view() as display:
                folder = run(request, display.take, restart=args.restart)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        args.json = False
        raise RunFailedError("the reader of the output is gone; the same command resumes the run") from None
    result = DagResult.of(folder)
    if args.json:
        print_line({"event": "result", **_document(result, args)})
    else:
        show(*_summary(result, args))
    return EXIT_OK if result.ok else EXIT_NO


def _list(args: argparse.Namespace) -> int:
    found = [_line(folder) for folder in all_folders(dags_dir())]
    if args.json:
        print_json(found)
        return EXIT_OK
    shown = Listing("NAME", "STATE", "AGE", "WHAT", right=("AGE",), wraps="WHAT")
    for each in found:
        shown.add_row(each["name"], dagview.state(each["state"]), dagview.duration(each["age_s"]), each["what"])
    show(shown if found else Text("no DAG was run here: air-executor dag run FILE"))
    return EXIT_OK


def _line(folder: RunFolder) -> dict[str, Any]:
    what, state = "", "unreadable"
    with contextlib.suppress(AirExecutorError, OSError, KeyError):
        request = folder.request()
        what = f"{request.target} {request.dag_id or ''}".rstrip()
        result = folder.result()
        state = result["state"] if result else "running" if folder.is_busy() else "interrupted"
    return {
        "name": folder.name,
        "state": state,
        "age_s": round(age_s(folder)),
        "what": what,
        "folder": str(folder.path),
    }


def _show(args: argparse.Namespace) -> int:
    folder = find(dags_dir(), args.names[0] if args.names else None)
    if not folder.has_ended():
        line = _line(folder)
        if args.json:
            print_json(line)
        else:
            show(Text(f"{line['name']} {line['state']}: {line['what']}"))
        return EXIT_OK
    result = DagResult.of(folder)
    if args.json:
        print_json(_document(result, args))
    else:
        show(*_summary(result, args))
    return EXIT_OK


def _document(result: DagResult, args: argparse.Namespace) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": result.name,
        "dag_id": result.dag_id,
        "run_id": result.run_id,
        "state": result.state,
        "folder": str(result.folder),
        "tasks": list(result.tasks),
        "triggered": list(result.triggered),
    }
    if args.xcoms:
        document["xcoms"] = _leaves(result)
    return document


def _leaves(result: DagResult) -> list[dict[str, Any]]:
    return [each for each in result.xcoms if each["task_id"] in result.leaves]


def _summary(result: DagResult, args: argparse.Namespace) -> list[RenderableType]:
    """Return a table of the tasks, and where to look further."""
    table = Listing("TASK", "STATE", "TRY", "TOOK", right=("TRY", "TOOK"))
    for task in result.tasks:
        took = dagview.took_s(task)
        table.add_row(
            dagview.label(task),
            dagview.state(task["state"]),
            str(task["try_number"] or ""),
            "" if took is None else dagview.duration(took),
        )
    parts: list[RenderableType] = [table]
    if args.xcoms:
        for each in _leaves(result):
            value = jsontext.dumps(each["value"]).decode() if "value" in each else f"({each['omitted_bytes']} bytes)"
            parts.append(Text(f"{dagview.label(each)} {each['key']} = {value}"))
    for other in result.triggered:
        of = Text.assemble("triggered ", other["dag_id"], " ", dagview.state(other["state"]), f"  {other['run_id']}")
        parts.append(of)
    head = Text.assemble((result.dag_id, "bold"), " ", dagview.state(result.state), f"  {result.run_id}")
    logs = Text(f"logs: air-executor dag logs {result.name} [TASK]   in {RunFolder(result.folder).logs}", style="dim")
    return [Group(head, *parts, logs)]


def _logs(args: argparse.Namespace) -> int:
    folder = find(dags_dir(), args.names[0] if args.names else None)
    wanted = args.names[1] if len(args.names) > 1 else None
    logs = sorted(folder.logs.rglob("attempt=*.log"), key=lambda path: path.stat().st_mtime)
    logs = [path for path in logs if wanted is None or wanted in _labels(path)]
    if not logs:
        raise DagError(f"run {folder.name} has no log" + (f" of task {wanted!r}" if wanted else ""))
    runs = {path.relative_to(folder.logs).parts[:2] for path in logs}
    for path in logs:
        title = " ".join(path.relative_to(folder.logs).parts[0 if len(runs) > 1 else 2 :])
        lines = LogReader(str(path)).lines(is_over=True)
        if args.json:
            for line in lines:
                print_line({"log": title.removesuffix(".log"), "line": line})
            continue
        if len(logs) > 1:
            print(f"== {title.removesuffix('.log')}")
        for line in lines:
            print(line)
    return EXIT_OK


def _labels(log: Path) -> set[str]:
    """Return how the task of a log may be named: with its map index, or without."""
    parts = dict(part.split("=", 1) for part in log.parts if "=" in part)
    task_id, index = parts.get("task_id", ""), parts.get("map_index")
    return {task_id} if index is None else {task_id, f"{task_id}[{index}]"}


def _clean(args: argparse.Namespace) -> int:
    folders = [find(dags_dir(), name) for name in args.names] if args.names else all_folders(dags_dir())
    removed = []
    for folder in folders:
        if not args.names and not folder.has_ended():
            continue  # it can be resumed
        if not args.names and age_s(folder) < args.older_than * _DAY_S:
            continue
        try:
            folder.remove()
        except BusyError:
            if args.names:
                raise
            continue
        removed.append(folder.name)
    if args.json:
        print_json({"removed": removed})
    else:
        print(f"removed: {', '.join(removed)}" if removed else f"nothing to remove in {dags_dir()}")
    return EXIT_OK


def _file(help_text: str) -> dict[str, Any]:
    return {"metavar": "FILE", "help": f"run: {help_text}"}


def _parallelism(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


COMMANDS: tuple[Command, ...] = (
    Command(
        "dag",
        "run a DAG's file to its end, in an Airflow of its own that needs no set-up; list, show, clean such runs, and "
        "print their logs",
        _dag,
        (
            Argument(
                ("action",),
                {
                    "choices": ["run", "list", "show", "logs", "clean"],
                    "help": "run FILE [DAG_ID]: a file, a folder or package.module:dag; the exit code is 0 if the run "
                    "succeeds, 1 if it fails, 2 if there is no such DAG or it can't be imported; an interrupted run is "
                    "resumed. list. show [NAME]. logs [NAME [TASK]]. clean [NAME...]: remove runs that have ended",
                },
            ),
            Argument(("names",), {"nargs": "*", "metavar": "NAME", "help": "what the action is for"}),
            Argument(
                ("--conf",), {"metavar": "JSON|@FILE", "help": "run: the run's configuration, checked against params"}
            ),
            Argument(("--connections",), _file("connections, as for `airflow connections import`")),
            Argument(("--variables",), _file("variables, as for `airflow variables import`")),
            Argument(("--pools",), _file("pools, as for `airflow pools import`")),
            Argument(("--env-file",), _file("environment variables for the tasks")),
            Argument(
                ("--config-from",),
                {
                    "metavar": "FILE|env",
                    "action": "append",
                    "default": [],
                    "help": "run: an airflow.cfg whose options matter to tasks, such as secrets backends and remote "
                    "logs; `env` takes the AIRFLOW__... variables",
                },
            ),
            Argument(("--run-id",), {"metavar": "ID", "help": "run: the run's id"}),
            Argument(("--logical-date",), {"metavar": "DATE", "help": "run: in ISO 8601 (default: now)"}),
            Argument(
                ("--parallelism",),
                {"type": _parallelism, "default": 32, "help": "run: this many tasks at a time (default: 32)"},
            ),
            Argument(
                ("--task",),
                {
                    "metavar": "GLOB",
                    "action": "append",
                    "default": [],
                    "help": "run: only these tasks, and what they depend on",
                },
            ),
            Argument(
                ("--on",),
                {
                    "choices": list(PLACES),
                    "default": "local",
                    "help": "run: tasks run here, or by the workers of a Temporal server",
                },
            ),
            Argument(
                ("--listen",),
                {
                    "metavar": "ADDRESS",
                    "default": "127.0.0.1",
                    "help": "run: with --on temporal, the address of this machine that the workers know",
                },
            ),
            Argument(("--restart",), {"action": "store_true", "help": "run: begin an interrupted run anew"}),
            Argument(
                ("--keep",),
                {"action": "store_true", "help": "run: keep the run's database and airflow.cfg, in its folder's home"},
            ),
            Argument(("--xcoms",), {"action": "store_true", "help": "run, show: with what the last tasks returned"}),
            Argument(
                ("--older-than",),
                {
                    "type": at_least_zero,
                    "default": 0.0,
                    "metavar": "DAYS",
                    "help": "clean: only what was begun so long ago",
                },
            ),
            JSON,
        ),
        telling="run",
    ),
)
