"""``air-executor run``: works on one job until it has ended, and shows how far it has come."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from air_executor.cli import jobfile, manager, where
from air_executor.cli.jobs import show_results
from air_executor.cli.table import JSON, Argument, Command
from air_executor.cli.working import work_until
from air_executor.errors import JobError, WrongStateError
from air_executor.jobs import again
from air_executor.jobs.store import JobFiles, JobStore, is_worked_on
from air_executor.observe.jobs import summary

#: How often the display is renewed, in seconds.
_LOOK_S = 0.2

#: At most one part in this many of the time goes into reading the job for the display.
_SHARE = 20


def _run(args: argparse.Namespace) -> int:
    store = where.job_store()
    if jobfile.is_file(store, args.job):
        name = jobfile.submit(args, Path(args.job), str(store.root.parent), again.RESUME)
    else:
        name = store.open(args.job).job.name
        store.check_trust(store.files(name).read_job())
        if args.env_from:
            raise JobError("--env-from is for a job that is made: give it with `run FILE`, `submit` or `queue`")
    if (job := store.files(name).read_job()).paused and not job.state.is_end:
        raise WrongStateError(f"job {name} is paused; `air-executor resume {name}` lets it go on")
    with _Display(store, name, is_quiet=args.json) as display:
        is_interrupted = work_until(
            lambda worker: display.update(None if worker is None else worker.files(name)),
            lambda: manager.make(args, only=frozenset({name})),
            lambda: is_worked_on(store.folder(name)),
        )
    if is_interrupted:
        if not args.json:
            print(f"job {name} was interrupted; `air-executor run {name}` goes on with it", file=sys.stderr)
        raise KeyboardInterrupt
    return show_results(store.open(name), is_json=args.json)


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
        """Renew the display if it is time, and return whether the job has ended.

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
        self._due_s = began_s + max(_LOOK_S, _SHARE * (time.monotonic() - began_s))
        return files.job.state.is_end and files.is_over()


COMMANDS: tuple[Command, ...] = (
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
            *jobfile.ARGUMENTS,
            manager.POLL,
            manager.MAX_RUNNERS,
            manager.ON,
            JSON,
        ),
    ),
)
