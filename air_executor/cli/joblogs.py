"""Printing the logs of jobs' tasks, unchanged."""

from __future__ import annotations

import codecs
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from air_executor.cli import where
from air_executor.cli.jsonout import print_line
from air_executor.cli.tasklogs import ALL, Filter, tail_position
from air_executor.errors import JobError
from air_executor.jobs.model import Task, is_name
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.machine.safe_files import open_log

#: How often a log that is followed is read again, in seconds.
_LOOK_S = 0.2

#: At most this share of the time goes into looking whether a task has ended.
_SHARE = 0.05

#: This many tasks are named to choose from.
_NAMED = 10

#: A longer line is taken for several: a progress bar is one line, however long its task runs.
_MAX_LINE = 1 << 20


def only_task(name: str) -> str | None:
    """Return the task of a job that has one only; ``None`` when there is no job of that name.

    :raises JobError: it has several; the message names them.
    """
    store = where.job_store()
    if not is_name(name) or not (store.folder(name) / "state.json").is_file():
        return None
    tasks = list(store.open(name).tasks)
    if len(tasks) == 1:
        return tasks[0]
    named = ", ".join(tasks[:_NAMED]) + (f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else "")
    raise JobError(f"{name} is a job: name one of its tasks, as in `air-executor logs {name} TASK`: {named or 'none'}")


def print_task_log(name: str, task_id: str, wanted: Filter = ALL, *, is_followed: bool = False) -> None:
    """Print what a task of a job has printed, and what it prints until it has ended."""
    store = where.job_store()
    path = _task(store, name, task_id)[0].log_file(task_id)
    position = 0 if wanted.tail is None or wanted.pattern else tail_position(path, wanted.tail)
    pieces = _pieces(path, position, _end_of(store, name, task_id), is_followed=is_followed)
    for text in pieces if wanted.pattern is None else _wanted_lines(pieces, wanted):
        sys.stdout.write(text)
        sys.stdout.flush()
    task = _task(store, name, task_id)[1]
    if task.error:
        print(f"-- task {task.id} {task.status.value}: {task.error}")


def stream_task_log(name: str, task_id: str, wanted: Filter = ALL) -> None:
    """Print what a task of a job prints until it has ended, as NDJSON: an object for each line, and one for its end."""
    store = where.job_store()
    path = _task(store, name, task_id)[0].log_file(task_id)
    pieces = _pieces(path, 0, _end_of(store, name, task_id), is_followed=True)
    for line in _wanted_lines(pieces, wanted):
        print_line({"job": name, "task": task_id, "line": line.removesuffix("\n")})
    task = _task(store, name, task_id)[1]
    end = {"status": task.status.value, "exit_code": task.exit_code, "error": task.error}
    print_line({"job": name, "task": task_id, **end})


def _end_of(store: JobStore, name: str, task_id: str) -> Callable[[], bool]:
    """Return a function that tells whether a task has ended, with few looks: one costs as much as the job is long."""
    seen: tuple[object, ...] = ()
    has_ended, due_s = False, float("-inf")

    def look() -> bool:
        nonlocal seen, has_ended, due_s
        began_s = time.monotonic()
        files = store.files(name)
        now = files.signature(), files.journal_size()
        if not has_ended and now != seen and (began_s >= due_s or files.is_ended()):
            seen, has_ended = now, _task(store, name, task_id)[1].status.is_end
            due_s = began_s + (time.monotonic() - began_s) / _SHARE
        return has_ended

    return look


def _task(store: JobStore, name: str, task_id: str) -> tuple[JobFiles, Task]:
    files = store.open(name)
    if task_id not in files.tasks:
        raise JobError(f"there is no task {task_id!r} in job {name}")
    return files, files.tasks[task_id]


def _pieces(path: Path, position: int, has_ended: Callable[[], bool], *, is_followed: bool) -> Iterator[str]:
    """Yield what is there, and what comes until the task has ended; an empty piece when that was all for now."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        is_last = not is_followed or has_ended()
        try:
            with open_log(path) as file:
                file.seek(position)
                while data := file.read(1 << 16):
                    position += len(data)
                    yield decoder.decode(data)
        except FileNotFoundError:
            pass
        if is_last:
            yield decoder.decode(b"", final=True)
            return
        yield ""
        time.sleep(_LOOK_S)


def _wanted_lines(pieces: Iterable[str], wanted: Filter) -> Iterator[str]:
    """Yield the lines that are wanted: of those that are there when it begins, the last ones."""
    past: deque[str] = deque(maxlen=wanted.tail)
    is_past = wanted.tail is not None
    for line in _lines(pieces):
        if line is None:
            is_past = False
            yield from past
            past.clear()
        elif wanted.pattern is None or wanted.pattern.search(line):
            if is_past:
                past.append(line)
            else:
                yield line
    yield from past


def _lines(pieces: Iterable[str]) -> Iterator[str | None]:
    """Yield lines with their ends; ``None`` when that was all for now."""
    rest = ""
    for piece in pieces:
        if not piece:
            yield None
            continue
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield line + "\n"
        if len(rest) > _MAX_LINE:
            yield rest
            rest = ""
    if rest:
        yield rest + "\n"
