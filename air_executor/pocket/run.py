"""Runs a DAG: starts its Airflow, passes on what that tells, and returns what became of the run."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from air_executor import jsontext
from air_executor.errors import StateDirError
from air_executor.launcher.address import module_command
from air_executor.machine import system
from air_executor.pocket.folder import RunFolder, claim, dags_dir
from air_executor.pocket.leftover import end_launchers
from air_executor.pocket.request import DagError, Request, RunFailedError, check
from air_executor.pocket.settings import environment, write_settings

#: How long an interrupted Airflow has to stop its tasks and to end, in seconds.
_END_S = 60.0

#: A disk with less room than this is full: so much a database needs to write anything.
_LEAST_BYTES = 1 << 20

#: Of the log of each part of an Airflow that could not begin, this many lines are told.
_LAST_LINES = 5

#: What a run tells: an object with a name for what happened in ``event``.
Event = dict[str, Any]


def run(
    request: Request,
    on_event: Callable[[Event], None],
    *,
    restart: bool = False,
    state_dir: str | os.PathLike[str] | None = None,
) -> RunFolder:
    """Run a DAG to its end, and return its folder, which has the result.

    :param on_event: called with all that happens, in this thread.
    :param restart: begin anew what was interrupted.
    :param state_dir: where its folder is made, if not where the command line makes it.
    :raises DagError: the DAG can't be run; nothing of it was.
    :raises RunFailedError: its Airflow did not last.
    :raises KeyboardInterrupt: as raised here, once the tasks that ran have been stopped.
    """
    request, parent = check(request), dags_dir(state_dir)
    with _naming(parent):
        folder, lock, is_begun = claim(parent, request, restart=restart)
    try:
        on_event({"event": "begun", "name": folder.name, "folder": str(folder.path), "goes_on": is_begun})
        with _naming(folder.path, RunFailedError if is_begun else DagError):
            write_settings(folder, request)
        _work(folder, request, on_event)
    except BaseException:
        if not folder.has_begun():
            # Nothing has begun that could be resumed. An Airflow that was interrupted early has not ended its launcher.
            end_launchers(folder.state_dir, wait=True)
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    finally:
        if folder.has_ended() and not request.keep:
            # Only a run that goes on needs its database and settings.
            shutil.rmtree(folder.home, ignore_errors=True)
        lock.release(keep_file=True)
    return folder


def _work(folder: RunFolder, request: Request, on_event: Callable[[Event], None]) -> None:
    log = folder.parts / "pocket.log"
    with _naming(folder.path, RunFailedError if folder.has_begun() else DagError):
        log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    told_error: Event | None = None
    with open(log_fd, "ab") as output, system.signals_held(system.TO_END) as release:
        # An interruption comes before there is an Airflow, or when that can be told of it.
        process = subprocess.Popen(
            [*module_command("air_executor.airflow.pocket"), str(folder.path)],
            env=environment(folder, request),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
            preexec_fn=functools.partial(_prepare, os.getpid()),
        )
        assert process.stdout is not None
        with process.stdout as told:
            try:
                release()
                told_error = _follow(told, on_event)
            except BaseException:  # as Ctrl-C, or because nobody reads any more what on_event prints
                _interrupt(process, told, on_event)
                raise
            finally:
                _reap(process)
    error = None if told_error is None else str(told_error["error"])
    if error is not None and process.returncode == DagError.exit_code:
        raise DagError(error)
    cause = _system_error(told_error)
    if cause is None and (cause := _full_disk(folder)) is not None:
        error = f"{error or 'its Airflow has ended'}: {cause.strerror} for {folder.path}"
    if error is not None and folder.has_begun() and not folder.has_ended():
        raise RunFailedError(f"{error}; the same command resumes the run") from cause
    said = "".join(f"\n  {line}" for line in _last_lines(folder)) if not folder.has_ended() else ""
    if not folder.has_ended() and not folder.has_begun():
        what = error or f"the run's Airflow ended with {process.returncode}"
        raise RunFailedError(f"{what}, before the run began:{said}") from cause
    if not folder.has_ended():
        raise RunFailedError(
            f"the run's Airflow ended with {process.returncode}, and the run has not: see {folder.parts}; "
            f"the same command resumes it{':' if said else ''}{said}"
        )


def _prepare(parent: int) -> None:
    """Have a run's Airflow die with its parent, and hear of an interruption as soon as it can handle it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has its commands ignore it that are in the background
    system.die_with_parent(parent)


@contextlib.contextmanager
def _naming(path: Path, unfit: type[DagError] = DagError) -> Iterator[None]:
    """Within this, an error of the system is one of the run's, which names where it happened.

    :raises DagError: or what ``unfit`` is, instead of OSError and StateDirError.
    """
    try:
        yield
    except StateDirError as error:
        raise unfit(str(error)) from error.__cause__
    except OSError as error:
        raise unfit(f"{error.filename or path} can't be used: {error.strerror or error}") from error


def _system_error(told: Event | None) -> OSError | None:
    """Return the error of the system that has ended the run's Airflow, if one has."""
    number = None if told is None else told.get("errno")
    return None if number is None else OSError(number, os.strerror(number))


def _full_disk(folder: RunFolder) -> OSError | None:
    """Return the error that whoever writes to the run's folder gets, if its disk is full."""
    try:
        there = os.statvfs(folder.path)
    except OSError:  # somebody has removed it
        return None
    has_room = not there.f_blocks or there.f_bavail * there.f_frsize >= _LEAST_BYTES
    has_names = not there.f_files or there.f_favail > 0
    return None if has_room and has_names else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _last_lines(folder: RunFolder) -> list[str]:
    """Return the end of what the parts have printed."""
    lines = []
    for log in sorted(folder.parts.glob("*.log")):
        lines += log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    return lines


def _follow(told: IO[bytes], on_event: Callable[[Event], None]) -> Event | None:
    """Pass on what the run tells, and return the error that it ended with."""
    error = None
    for line in told:
        event = jsontext.loads(line)
        if event["event"] == "error":
            error = event
        else:
            on_event(event)
    return error


def _interrupt(process: subprocess.Popen[bytes], told: IO[bytes], on_event: Callable[[Event], None]) -> None:
    """Have the run stop its tasks and end. A second Ctrl-C ends it at once."""

    def quietly(event: Event) -> None:
        with contextlib.suppress(Exception, SystemExit):
            on_event(event)

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGHUP):  # they may come twice; only a second Ctrl-C means "at once"
            signal.signal(signum, signal.SIG_IGN)
    process.send_signal(signal.SIGINT)
    try:
        quietly({"event": "interrupted"})
        if (error := _follow(told, quietly)) is not None:
            quietly({"event": "warning", "warning": error["error"]})
    except KeyboardInterrupt:
        process.kill()  # its parts die with it


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait until the run's Airflow has ended; end it by force if it doesn't."""
    try:
        process.wait(_END_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()  # its parts die with it
        process.wait()
