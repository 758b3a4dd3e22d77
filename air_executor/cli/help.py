"""The pages of ``--help``: commands in groups, each with examples."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from air_executor.cli.table import Command
from air_executor.runs.statedir import RULE

DESCRIPTION = "See and control what AirExecutor runs: tasks of Airflow, and jobs without Airflow."

#: The commands in the order in which they are shown. One that is in no group comes last.
_GROUPS: dict[str, tuple[str, ...]] = {
    "Runs (what Airflow's tasks, and those of jobs, are executed by)": (
        *("status", "runs", "show", "logs", "stop", "usage", "advise"),
    ),
    "Jobs": (
        *("init", "add", "run", "submit", "queue", "jobs", "job", "wait", "results"),
        *("pause", "resume", "cancel", "retry", "reset", "remove", "trust", "schema"),
    ),
    "DAGs without a set-up": ("dag",),
    "Service": (
        "start",
        "shutdown",
        "launcher",
        "worker",
        "temporal",
        "doctor",
        "metrics",
        "ui",
        "prune",
        "mcp",
        "help",
    ),
}
_OTHERS = "Other commands"

_EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "status": (("status --watch", "stay, and keep the display up to date"),),
    "runs": (
        ("runs --state failed", "what failed lately, and why"),
        ("runs --dag sales -n 5 --json", "the last five runs of a DAG, for a program"),
    ),
    "show": (
        ("show 1f0c", "the run whose id begins so"),
        ("show --dag sales --task load --map-index 3", "the newest run of a task instance"),
    ),
    "logs": (
        ("logs 1f0c -f", "follow a run"),
        ("logs --dag sales --task load --tail 20", "the last lines of a task's newest run"),
        ("logs build merge --grep 'error|warn'", "some lines of task merge of job build"),
    ),
    "usage": (
        ("usage 1f0c", "memory and CPU of a run, as plots"),
        ("usage --dag sales --task load", "of a task's newest run"),
    ),
    "advise": (("advise --dag sales", "the memory of a DAG's tasks, and limits to set"),),
    "stop": (
        ("stop 1f0c --wait", "stop one run, and wait for its end"),
        ("stop --dag sales", "stop all that runs of a dag"),
    ),
    "init": (("init", "make .air-executor in this folder"),),
    "run": (
        ("run build.yaml", "run it, and end with its result as exit code; Ctrl-C stops its tasks, and leaves the job"),
        ("run build", "go on with a job that is there"),
    ),
    "add": (
        ("add --wait -- make test", "run one command as a job, and end with its exit code"),
        ("add --key nightly-2026-01-31 -- ./nightly.sh", "however often it is called, there is one job"),
    ),
    "wait": (("wait build --timeout 600", "ends as the job does, or with 124"),),
    "pause": (("pause build", "what runs, runs on; nothing more begins"),),
    "resume": (("resume build", "go on"),),
    "dag": (
        ("dag run my_dag.py", "run a DAG's file to its end, in an Airflow of its own"),
        ('dag run dags sales --conf \'{"day": "monday"}\'', "one of the DAGs in a folder, with a configuration"),
        ("dag run my_dag.py --task 'load*' --json", "some tasks and what they need; NDJSON for programs"),
        ("dag logs my_dag-1 load", "the log of a task"),
    ),
    "worker": (
        ("worker --queues default,gpu --slots 8", "run tasks of these queues, eight at a time"),
        ("worker --drain", "let the worker here end with its last run"),
    ),
    "temporal": (
        ("temporal status", "show hosts, queues, and what runs where"),
        ("temporal up", "start a development server"),
    ),
    "ui": (("ui --port 8800", "the same address each time, with another token"),),
    "metrics": (("metrics --listen 9400", "serve them to Prometheus"),),
    "mcp": (("mcp --write", "agents may change jobs, too"),),
    "help": (("help agents", "the page for programs and AI agents"),),
    "submit": (
        ("submit build.yaml --name build-2", "leave it to the manager"),
        ("submit build.yaml --replace", "cancel the job of that name, and begin it anew"),
        ("submit build.yaml --new-name", "beside the job of that name, as build-2"),
    ),
    "queue": (
        ("queue --job build --after fetch -- ./merge.sh part-1", "one more task"),
        ("queue -- ./work.sh part-2", "the same inside a task, for its own job"),
    ),
    "jobs": (("jobs", "all jobs, a line for each"),),
    "job": (("job build", "its tasks as a tree"),),
    "results": (("results build --json", "what became of it, for a program"),),
    "cancel": (("cancel build", "stop what runs of it, and do not begin the rest"),),
    "retry": (("retry build merge", "try one task again, and what depends on it"),),
    "reset": (("reset build", "begin it anew, as it was submitted"),),
    "trust": (("trust build", "let a job run that came with a repository"),),
    "schema": (("schema > job.schema.json", "for an editor that completes and checks job files"),),
    "start": (
        ("start", "work on the jobs until Ctrl-C, which ends the manager and not what runs"),
        ("start --detach", "the same in the background"),
    ),
    "shutdown": (("shutdown --wait", "end the manager; what runs, runs on"),),
    "launcher": (("launcher", "the main process of a systemd unit or a container"),),
    "doctor": (("doctor", "exit code 1 if something needs fixing"),),
    "prune": (
        ("prune --keep-days 1", "remove records of runs, and jobs, that ended before yesterday"),
        ("prune --keep-jobs 100", "keep the last hundred jobs"),
    ),
    "remove": (("remove build build-2", "with their logs, when they have ended"),),
}

_EXIT_CODES = "Exit codes: 0 it worked, 1 it did not, 2 wrong use or no such thing, 130 Ctrl-C."

_LAUNCHERS_RULE = (
    "It works on the state directory that --state-dir names, or AIR_EXECUTOR_STATE_DIR, or else on Airflow's "
    "([air_executor] state_dir), wherever it is called."
)

#: What the first page shows.
_BEGINNINGS = (
    ("status --watch", "what runs now"),
    ("logs --dag sales --task load -f", "the log of a task's newest run"),
    ("run build.yaml", "run a job to its end"),
    ("start --detach", "work on submitted jobs in the background"),
    ("doctor", "is everything as it should be?"),
)


def sentence(command: Command) -> str:
    """Return what a command does, as a sentence."""
    return textwrap.fill(f"{command.help[:1].upper()}{command.help[1:]}.", _width())


def epilog(command: Command, prog: str) -> str:
    """Return what stands below a command's options."""
    where = textwrap.fill(_LAUNCHERS_RULE if command.name == "launcher" else RULE, _width())
    examples = _EXAMPLES.get(command.name, ())
    return "\n".join([*(_examples(examples, prog) if examples else ()), *([""] if examples else ()), where])


def _examples(examples: Sequence[tuple[str, str]], prog: str) -> Iterator[str]:
    yield "Examples:"
    for line, what in examples:
        yield f"  {prog} {line}"
        yield f"      {what}"


def overview(parser: argparse.ArgumentParser, commands: Sequence[Command]) -> str:
    """Return the first page."""
    parts = [f"usage: {parser.prog} COMMAND …", "", textwrap.fill(DESCRIPTION, _width())]
    for title, members in grouped(commands):
        parts += ["", f"{title}:", *_entries([(each.name, each.help) for each in members])]
    parts += ["", "Options:"]
    parts += _entries(
        [
            ("-h, --help", "this page; after a command: its own, with examples"),
            ("--version", "the version"),
            ("--state-dir FOLDER", "the state directory, for this command"),
        ]
    )
    parts += ["", *_examples(_BEGINNINGS, parser.prog), "", textwrap.fill(RULE, _width())]
    parts += ["", textwrap.fill(_EXIT_CODES, _width())]
    return "\n".join(parts) + "\n"


def grouped(commands: Sequence[Command]) -> Iterator[tuple[str, list[Command]]]:
    """Yield the commands in their groups."""
    left = {command.name: command for command in commands}
    for title, names in _GROUPS.items():
        yield title, [left.pop(name) for name in names if name in left]
    if left:
        yield _OTHERS, list(left.values())


def _entries(entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    longest = max(len(name) for name, _ in entries)
    for name, text in entries:
        lines = textwrap.wrap(text, max(20, _width() - longest - 4)) or [""]
        yield f"  {name:<{longest}}  {lines[0]}"
        yield from (" " * (longest + 4) + line for line in lines[1:])


def _width() -> int:
    return max(40, min(100, shutil.get_terminal_size((80, 24)).columns) - 2)  # as argparse does
