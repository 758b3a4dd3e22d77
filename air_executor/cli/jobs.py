"""The commands of the standalone engine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from air_executor import config, jsontext
from air_executor.cli import jobviews, trust
from air_executor.cli.listing import say_where, show
from air_executor.cli.table import EXIT_NO, EXIT_OK, JSON, Argument, Command, at_least_zero, count, print_json
from air_executor.cli.working import work_until
from air_executor.config import Config
from air_executor.errors import AirExecutorError, JobError, ManagedError, StateDirError, WrongStateError
from air_executor.jobs import again, api
from air_executor.jobs.fields import check_names
from air_executor.jobs.manager import Manager
from air_executor.jobs.model import Job, JobState, TaskStatus, When
from air_executor.jobs.private import values_of
from air_executor.jobs.schema import GIVEN
from air_executor.jobs.store import JobFiles, JobStore, is_worked_on
from air_executor.launcher.address import module_command
from air_executor.machine.safe_files import open_to_append, replace_file
from air_executor.runs.lock import is_held
from air_executor.runs.record import RunRecord
from air_executor.runs.statedir import FOLDER, locate
from air_executor.runs.store import RunStore

#: How often something is looked at that is followed, in seconds.
_LOOK_S = 0.2

#: Files of jobs end so.
_SUFFIXES = (".json", ".yaml", ".yml")

#: The path that means stdin.
_STDIN = Path("-")

#: How long `start --detach` waits for the manager to work, in seconds.
_START_S = 30.0


@dataclass(frozen=True)
class Summary:
    """A job in one line."""

    name: str
    state: JobState
    tasks: int
    completed: int
    failed: int
    running: int
    updated_at: str
    error: str | None
    skipped: int = 0
    cancelled: int = 0
    paused: bool = False
    trusted: bool = True
    """Whether it was submitted here, or somebody has said that it is trusted; of one that has ended nobody asks."""
    has_manager: bool | None = None
    """Whether somebody works on it; ``None`` when it has ended."""


def options() -> Config:
    """Return the options for the present working directory: they say where the state directory is."""
    return config.load_plain(str(api.find_state_dir()))


def _job_options() -> Config:
    return options()


def _store() -> JobStore:
    return JobStore(_job_options().state_dir)


def summaries(state_dir: str | Path, *, ended: bool = True) -> list[Summary]:
    """Return the jobs below a state directory, those that have ``ended`` too; one that can't be read has its error."""
    store = JobStore(state_dir, is_looking=True)
    found = []
    for name in store.names():
        try:
            files = store.files(name)
            if not files.is_ended():
                found.append(_with_trust(store, store.open(name)))
            elif ended:  # of those there may be many
                found.append(_summary(*files.counts()))
        except AirExecutorError as error:
            found.append(Summary(jsontext.shown(name), JobState.FAILED, 0, 0, 0, 0, "", str(error)))
    return found


def _with_trust(store: JobStore, files: JobFiles) -> Summary:
    hint = trust.hint(store, files.job)
    return summary(files) if hint is None else dataclasses.replace(summary(files), trusted=False, error=hint)


def summary(files: JobFiles) -> Summary:
    """Return a job in one line."""
    found = _summary(files.job, Counter(task.status.value for task in files.tasks.values()))
    return found if found.state.is_end else dataclasses.replace(found, has_manager=is_worked_on(files.path))


def _summary(job: Job, counts: Counter[str]) -> Summary:
    return Summary(
        job.name,
        job.state,
        sum(counts.values()),
        counts[TaskStatus.COMPLETED.value],
        counts[TaskStatus.FAILED.value],
        counts[TaskStatus.RUNNING.value],
        job.updated_at,
        job.error,
        counts[TaskStatus.SKIPPED.value],
        counts[TaskStatus.CANCELLED.value],
        job.paused and not job.state.is_end,
    )


# Making jobs


def _init(args: argparse.Namespace) -> int:
    folder = Path.cwd() / FOLDER
    JobStore(folder).prepare()
    ignore = folder / ".gitignore"
    if not os.path.lexists(ignore):
        replace_file(ignore, b"*\n!.gitignore\n!jobs/\n!jobs/*/\n!jobs/*/state.json\n!jobs/*/tasks.json\n")
    if args.json:
        print_json({"jobs": str(folder / "jobs")})
        return EXIT_OK
    print(f"jobs of this folder are kept in {folder / 'jobs'}; their state.json and tasks.json can be committed to git")
    return EXIT_OK


def _read_job(path: Path) -> dict[str, Any]:
    name = path.name.removesuffix(path.suffix if path.suffix in _SUFFIXES else "")
    parse: Callable[[bytes], Any] = _parse_yaml if path.suffix in (".yaml", ".yml") else orjson.loads
    try:
        if path == _STDIN:
            parse = _parse_either
            text = sys.stdin.buffer.read()
            # The same job is the same one again, as a file's is.
            path, name = Path("stdin"), f"stdin-{hashlib.blake2b(text, digest_size=4).hexdigest()}"
        else:
            text = path.read_bytes()
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}") from error
    try:
        document = parse(text)
    except Exception as error:  # of either reader
        raise JobError(f"{path} cannot be understood: {' '.join(str(error).split())}") from None
    if isinstance(document, list):
        document = {"tasks": document}
    if isinstance(document, dict):
        check_names(document, [*GIVEN, "tasks"], str(path))
    if not isinstance(document, dict) or not isinstance(document.get("tasks"), list):
        raise JobError(f"{path} must be a list of tasks, or an object with a list 'tasks'")
    return {"name": name, **document}


def _parse_yaml(text: bytes) -> Any:
    import yaml

    return yaml.safe_load(text)


def _parse_either(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _parse_yaml(text)


def _submit_file(args: argparse.Namespace, path: Path, state_dir: str, existing: str) -> str:
    """Make a job from a file.

    :param existing: what to do when there is a job of that name, unless the command line says so.
    """
    document = _read_job(path)
    if args.replace and args.new_name:
        raise JobError("--replace and --new-name are for the same case: choose one")
    existing = again.REPLACE if args.replace else again.NEW_NAME if args.new_name else existing
    given = {key: value for key, value in document.items() if key not in ("name", "tasks") and value is not None}
    given["private_env"] = values_of(args.env_from)
    given["key"] = getattr(args, "key", None)
    name = args.name or document["name"]
    return api.submit(name, document["tasks"], state_dir=state_dir, existing=existing, **given).name


def _submit(args: argparse.Namespace) -> int:
    name = _submit_file(args, args.file, _job_options().state_dir, again.REFUSE)
    has_manager = _store().manager() is not None
    if args.json:
        print_json({"name": name, "has_manager": has_manager})
    else:
        print(name)
        if not has_manager:
            print("no manager works here; begin with `air-executor start`", file=sys.stderr)
    return EXIT_OK


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise JobError(f"--arguments must be JSON, not {text[:80]!r}: {error}") from None
    if not isinstance(arguments, dict):
        raise JobError(f"--arguments must be a JSON object, as '{{\"n\": 3}}', not {text[:200]!r}")
    return arguments


def _queue(args: argparse.Namespace) -> int:
    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
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
    [task_id] = api.queue_tasks([task], job=job, state_dir=None if job is None else _job_options().state_dir)
    if args.json:
        print_json({"id": task_id})
    else:
        print(task_id)
    return EXIT_OK


# The manager


def _manager(args: argparse.Namespace, **more: Any) -> Manager:
    return Manager(_job_options(), poll_s=args.poll, max_runners=args.max_runners or None, **more)


def _start(args: argparse.Namespace) -> int:
    if args.detach:
        return _start_detached(args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    manager = _manager(args)
    root, is_said = _store().root, False

    def say_it_works() -> bool:
        nonlocal is_said
        if not is_said:
            is_said = True
            if args.json:
                print_json({"pid": os.getpid(), "jobs": str(root)})
            print(f"working on the jobs below {root}; Ctrl-C ends this, and not what runs", file=sys.stderr, flush=True)
        return False

    try:
        manager.serve(until=say_it_works)  # which is asked when there is no other manager
    except ManagedError:
        raise WrongStateError(f"a manager works here already: {root}") from None
    return EXIT_OK


def _start_detached(args: argparse.Namespace) -> int:
    store = _store()
    store.prepare()
    if store.manager() is not None:
        raise WrongStateError(f"a manager works here already: {store.root}")
    trust.warn(store)
    log = store.root / "manager.log"
    command = [*module_command("air_executor.cli.main"), "start", "--poll", str(args.poll)]
    try:
        log_fd = open_to_append(log)
    except OSError as error:
        raise StateDirError(f"cannot write {log}: {error.strerror}") from error
    with os.fdopen(log_fd, "ab") as output:
        process = subprocess.Popen(
            [*command, "--max-runners", str(args.max_runners)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "AIR_EXECUTOR_STATE_DIR": str(store.root.parent)},
        )
    until_s = time.monotonic() + _START_S
    while store.manager() is None:
        if process.poll() is not None or time.monotonic() > until_s:
            raise JobError(f"the manager does not begin; its log is {log}")
        time.sleep(_LOOK_S)
    if args.json:
        print_json({"pid": process.pid, "jobs": str(store.root), "log": str(log)})
    else:
        print(f"the manager works, with pid {process.pid}; its log is {log}")
    return EXIT_OK


def stop_manager(*, is_waited_for: bool, is_json: bool = False) -> int:
    """Stop the manager of the jobs. What runs, runs on."""
    store = _store()
    pid = store.signal_manager(signal.SIGTERM)
    if pid is None:
        raise WrongStateError(f"no manager works here: {store.root}")
    while is_waited_for and is_held(store.root / "manager.lock"):
        time.sleep(_LOOK_S)
    if is_json:
        print_json({"pid": pid, "has_ended": is_waited_for})
        return EXIT_OK
    print(f"the manager with pid {pid} {'has ended' if is_waited_for else 'is being stopped'}")
    return EXIT_OK


def _run(args: argparse.Namespace) -> int:
    store = _store()
    if _is_file(store, args.job):
        name = _submit_file(args, Path(args.job), str(store.root.parent), again.RESUME)
    else:
        name = store.open(args.job).job.name
        store.check_trust(store.files(name).read_job())
        if args.env_from:
            raise JobError("--env-from is for a job that is made: give it with `run FILE`, `submit` or `queue`")
    if (job := store.files(name).read_job()).paused and not job.state.is_end:
        raise WrongStateError(f"job {name} is paused; `air-executor resume {name}` lets it go on")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with _Display(store, name, is_quiet=args.json) as display:
        work_until(
            lambda manager: display.update(None if manager is None else manager.files(name)),
            lambda: _manager(args, only=frozenset({name})),
        )
    return show_results(store.open(name), is_json=args.json)


def _is_file(store: JobStore, given: str) -> bool:
    """Tell whether the file of a job is meant, and not the name of one that is there. Names may have dots."""
    if os.sep in given or Path(given) == _STDIN or Path(given).is_file():
        return True
    if given in store.names():
        return False
    if Path(given).suffix in _SUFFIXES:
        return True
    raise JobError(f"{given!r} is neither a file, nor a job below {store.root}")


class _Display:
    """A bar that shows how far a job has come."""

    def __init__(self, store: JobStore, name: str, *, is_quiet: bool) -> None:
        self._store, self._name = store, name
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=is_quiet,
        )
        self._bar = self._progress.add_task(name, total=None, note="")
        self._due_s = float("-inf")

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, files: JobFiles | None = None) -> bool:
        """Show how it stands now and then; tell whether the job has ended.

        :param files: the job as its manager knows it, if that is this process; otherwise its files are read.
        """
        if time.monotonic() < self._due_s and not self._store.files(self._name).is_ended():
            return False
        began_s = time.monotonic()
        files = files or self._store.open(self._name)
        now = summary(files)
        note = f"{now.running} running" + (f", [red]{now.failed} failed[/]" if now.failed else "")
        note += ", [yellow]paused[/]" if now.paused else ""
        ended = now.completed + now.failed + now.skipped + now.cancelled
        self._progress.update(self._bar, completed=ended, total=now.tasks, note=note)
        self._due_s = began_s + max(_LOOK_S, 20 * (time.monotonic() - began_s))  # it costs as much as the job is long
        return files.job.state.is_end and not files.asks()


# Looking


def _jobs(args: argparse.Namespace) -> int:
    found = summaries(_store().root.parent)
    if args.json:
        print_json([dataclasses.asdict(each) for each in found])
    else:
        say_where(f"state directory {locate()}")
        show(jobviews.jobs(found))
    return EXIT_OK


def _job(args: argparse.Namespace) -> int:
    files = _store().open(args.name)
    hint = trust.hint(_store(), files.job)
    if args.json:
        print_json({**_plain(files), "trusted": hint is None})
        return EXIT_OK
    show(jobviews.job(files, _leftover_runs(files)))
    if hint is not None:
        print(f"job {args.name}: {hint}", file=sys.stderr)
    return EXIT_OK


def _leftover_runs(files: JobFiles) -> dict[str, RunRecord | None] | None:
    """Return what is on record of the tasks that are running, as the files of a job say that has no manager.

    ``None``: the files say what is, as somebody works on the job, or it has ended.
    """
    if files.job.state.is_end or is_worked_on(files.path):
        return None
    runs = RunStore(files.path.parent.parent)
    found: dict[str, RunRecord | None] = {}
    for task in files.tasks.values():
        if task.status is TaskStatus.RUNNING:
            found[task.id] = None
            with contextlib.suppress(AirExecutorError):
                found[task.id] = runs.settled(runs.read(task.run_id or ""))
    return found


def _plain(files: JobFiles) -> dict[str, Any]:
    return {**orjson.loads(files.job.to_json()), "tasks": [task.to_dict() for task in files.tasks.values()]}


def _results(args: argparse.Namespace) -> int:
    return show_results(_store().open(args.name), is_json=args.json)


def show_summary(files: JobFiles, *, is_json: bool) -> int:
    """Print how a job stands, in one line."""
    if is_json:
        print_json(dataclasses.asdict(summary(files)))
    else:
        print(f"job {files.job.name}: {'paused' if summary(files).paused else files.job.state.value}")
    return EXIT_OK


def show_results(files: JobFiles, *, is_json: bool) -> int:
    """Print what became of a job; return 0 if it has completed."""
    if is_json:
        print_json(_plain(files))
    else:
        show(jobviews.results(files))
    return EXIT_OK if files.job.state is JobState.COMPLETED else EXIT_NO


_NAME = Argument(("name",), {"metavar": "NAME", "help": "name of the job"})
_POLL = Argument(
    ("--poll",),
    {"type": at_least_zero, "default": 5.0, "help": "look at the files every so many seconds, told or not (default 5)"},
)
_MAX_RUNNERS = Argument(
    ("--max-runners",),
    {"type": count, "default": 0, "help": "tasks that run at a time, of all jobs (default: 4 for each CPU)"},
)
ENV_FROM = Argument(
    ("--env-from",),
    {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "a variable of this environment for the tasks, whose value stands in no file of the job",
    },
)
_JOB_NAME = Argument(("--name",), {"help": "name of the job (default: the one in the file, or the file's)"})
_REPLACE = Argument(
    ("--replace",),
    {"action": "store_true", "help": "if there is a job of that name: cancel it, and begin it anew with this file"},
)
_NEW_NAME = Argument(
    ("--new-name",), {"action": "store_true", "help": "if there is a job of that name: call this one NAME-2, …"}
)

COMMANDS: tuple[Command, ...] = (
    Command("init", "keep jobs in this folder, in .air-executor", _init, (JSON,)),
    Command(
        "start",
        "work on jobs: be their manager",
        _start,
        (
            Argument(("-d", "--detach"), {"action": "store_true", "help": "in the background"}),
            _POLL,
            _MAX_RUNNERS,
            JSON,
        ),
    ),
    Command(
        "run",
        "run a job to its end, and show how far it has come; the exit code tells what became of it. A file whose job "
        "has ended begins it anew; one whose job has not goes on with it, if it is the same",
        _run,
        (
            Argument(
                ("job",),
                {"metavar": "FILE|NAME", "help": "a job's JSON or YAML file, - for stdin, or the name of a job"},
            ),
            _JOB_NAME,
            _REPLACE,
            _NEW_NAME,
            ENV_FROM,
            _POLL,
            _MAX_RUNNERS,
            JSON,
        ),
    ),
    Command(
        "submit",
        "make a job from a file, for the manager to work on",
        _submit,
        (
            Argument(("file",), {"type": Path, "metavar": "FILE", "help": "a job as JSON or YAML; - for stdin"}),
            _JOB_NAME,
            _REPLACE,
            _NEW_NAME,
            Argument(("--key",), {"help": "of all that is submitted with the same key, there is one job"}),
            ENV_FROM,
            JSON,
        ),
    ),
    Command(
        "queue",
        "queue a task: inside a task of a job for that job, elsewhere for --job",
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
            Argument(("--priority",), {"type": int, "help": "higher ones of the job go first (default 0)"}),
            Argument(("--key",), {"help": "of tasks with the same key, there is one"}),
            Argument(("--timeout",), {"type": at_least_zero, "help": "seconds that it may take"}),
            Argument(("--retries",), {"type": count, "default": 0, "help": "how often it is tried again"}),
            Argument(("--function",), {"metavar": "MODULE:NAME", "help": "a Python function in place of a command"}),
            Argument(("--arguments",), {"metavar": "JSON", "help": "its keyword arguments"}),
            ENV_FROM,
            JSON,
            Argument(("argv",), {"nargs": argparse.REMAINDER, "metavar": "-- COMMAND [ARG…]", "help": "the command"}),
        ),
    ),
    Command("jobs", "list the jobs", _jobs, (JSON,)),
    Command("job", "show a job: its tasks, their times, and who queued whom", _job, (_NAME, JSON)),
    Command("results", "show what became of a job", _results, (_NAME, JSON)),
    Command(
        "trust",
        "let jobs run that were not submitted here, but came with a repository; without NAME, list them",
        lambda args: trust.trust(_store(), args),
        (
            Argument(("names",), {"nargs": "*", "metavar": "NAME", "help": "name of a job"}),
            Argument(("--all",), {"action": "store_true", "help": "all that are here now"}),
            JSON,
        ),
    ),
)
