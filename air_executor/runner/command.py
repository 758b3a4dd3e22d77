"""Executing the tasks of the standalone engine: a command, or a call of a Python function."""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from air_executor import jsontext
from air_executor.errors import AirExecutorError
from air_executor.machine import system
from air_executor.machine.safe_files import open_to_append, replace_file
from air_executor.runner.active import ActiveRun, Ending, Outcome
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import UNWANTED, RunState, now
from air_executor.runs.results import MAX_RESULT_BYTES, RETURNED, WRITTEN
from air_executor.runs.store import RunStore

#: How often a runner shows that it lives, in seconds; and when it does so first.
_BEAT_S, _FIRST_BEAT_S = 5.0, 0.2

#: The line with which a manager that begins a job anew divides a log: how it begins, and its maximum length in bytes.
_DIVIDED, _LAST_BYTES = b"-- generation ", 120

#: A task that has not ended this many seconds after SIGKILL can't be killed.
_GIVE_UP_S = 2.0

#: A shell's exit codes for a command that it can't find, or can't execute.
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126

#: Signals that a task finds at their defaults, as in a shell, whatever this process does with them.
_DEFAULT = (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)

#: Exit code of a process whose function raised an exception, or returned what can't be kept.
_RAISED = 1


class _FolderError(OSError):
    """The working directory of a task can't be used. The path could not tell: the command may have the same."""


def execute(request: RunRequest, active: ActiveRun, store: RunStore) -> Outcome:
    """Execute the task that ``request`` describes, and return what became of it.

    The workload is ``{"argv": [...], "shell": bool}`` or ``{"function": "module:name", "arguments": {...}}``, with
    ``cwd``, the working directory, and ``env_files``, whose variables yield to the request's own. Output goes to the
    request's ``log_file``.
    """
    task, folder = request.workload, store.path(request.id)
    _set_variables(request, folder)
    try:
        log = _open_log(request.log_file)
    except OSError as error:
        raise AirExecutorError(f"the log {request.log_file} cannot be written: {error.strerror}") from error
    with log:
        try:
            _begin_log(log, request)
        except OSError as error:
            raise AirExecutorError(f"the log {request.log_file} cannot be written: {error.strerror}") from error
        try:
            pid = _call(task, log, folder, active) if "function" in task else _command(task, log)
        except OSError as error:
            return _not_begun(task, error, log)
        active.attach(pid)
        active.started(is_short=True)
        status = _supervise(pid, active)
    return _outcome(status, active, _error_of(folder) if "function" in task else None)


def _open_log(path: str | None) -> BinaryIO:
    if path is None:
        return open(os.devnull, "ab")
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.path.islink(folder):
        raise OSError(errno.ELOOP, "its folder is a link, which is not followed")
    return os.fdopen(open_to_append(path), "ab")


def _set_variables(request: RunRequest, folder: str) -> None:
    """Set the variables of env files, and for a command the one that says where its result goes."""
    if paths := request.workload.get("env_files"):
        from air_executor.runner import env_file

        given = (request.air or {}).get("environment", {})
        os.environ.update({name: value for name, value in env_file.read(paths).items() if name not in given})
    if "function" not in request.workload:
        os.environ["AIR_EXECUTOR_RESULT"] = os.path.join(folder, WRITTEN)


def _begin_log(log: BinaryIO, request: RunRequest) -> None:
    """Separate the output of this try from that of earlier tries in the same file."""
    if size := os.fstat(log.fileno()).st_size:
        fd = os.open(request.log_file or os.devnull, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            last = os.pread(fd, _LAST_BYTES, max(0, size - _LAST_BYTES))
        finally:
            os.close(fd)
        if last.removesuffix(b"\n").rpartition(b"\n")[2].startswith(_DIVIDED):
            return
        end = b"" if last.endswith(b"\n") else b"\n"
        line = f"-- try {request.identity.try_number or 1} begins at {now()}\n"
        os.write(log.fileno(), end + line.encode())


def _command(task: dict[str, Any], log: BinaryIO) -> int:
    """Start a command in a process group of its own, and return its pid.

    This process is not forked: after a fork, both would copy the memory that they write to.

    :raises OSError: it can't be started.
    """
    argv = ["/bin/sh", "-c", *task["argv"]] if task["shell"] else task["argv"]
    try:
        os.chdir(task["cwd"])
    except OSError as error:
        raise _FolderError(error.errno, error.strerror) from error
    return os.posix_spawnp(
        argv[0],
        argv,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
        ],
        setpgroup=0,
        setsigdef=_DEFAULT,
    )


def _begin(runner: int, log: BinaryIO) -> None:
    """Set up a forked task process: it leads a process group, dies with its runner, and prints to its log."""
    os.setpgid(0, 0)
    system.die_with_parent(runner)
    signal.set_wakeup_fd(-1)
    for signum in _DEFAULT:
        signal.signal(signum, signal.SIG_DFL)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


def _not_begun(task: dict[str, Any], error: OSError, log: BinaryIO) -> Outcome:
    """Return the outcome of a task that could not be started: the task has failed, as in a shell."""
    if isinstance(error, _FolderError):
        reason = f"its working directory {task['cwd']} cannot be used: {error.strerror}"
    elif "function" in task:
        reason = f"no process for it can be made: {error.strerror}"
    else:
        reason = f"the command {task['argv'][0]!r} cannot be executed: {error.strerror}"
    log.write(f"air-executor: {reason}\n".encode())
    code = _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE
    return Outcome(state=RunState.FAILED, outcome="failed", exit_code=code, reason=reason)


def _supervise(pid: int, active: ActiveRun) -> int | None:
    """Wait for a process to end, enforce its limits, heed requests to stop it, and return its wait status.

    ``None``: it was killed, and does not end.
    """
    pidfd = system.open_pidfd(pid)
    kill_s = give_up_s = float("inf")
    beat_s = time.monotonic() + _FIRST_BEAT_S
    status: int | None = None
    with active.heeding_signals(monitored=True) as wake:
        while True:
            ended, ended_as = os.waitpid(pid, os.WNOHANG)
            if ended:
                status = ended_as
            if ended or time.monotonic() >= give_up_s:
                break
            ending = active.check(told=False)
            if ending is not None:
                _signal(pid, ending.signum)
                kill_s = time.monotonic() + (active.grace_s if ending.grace_s is None else ending.grace_s)
            if time.monotonic() >= kill_s:
                _signal(pid, signal.SIGKILL)
                kill_s, give_up_s = float("inf"), time.monotonic() + _GIVE_UP_S
            if time.monotonic() >= beat_s:
                active.beat()
                beat_s = time.monotonic() + _BEAT_S
            due_s = active.due_in_s()
            wait_s = max(0.0, min(kill_s, give_up_s, beat_s) - time.monotonic())
            if due_s is not None:
                wait_s = min(wait_s, due_s)
            if pidfd is None:
                wait_s = min(wait_s, 0.05)
            with contextlib.suppress(OSError):
                fds = [wake.fileno()] if pidfd is None else [wake.fileno(), pidfd]
                if wake.fileno() in select.select(fds, [], [], wait_s)[0]:
                    wake.recv(4096)
        # Before the handlers change: a signal that comes now must not turn a task that has ended into a stopped one.
        active.note_over()
    if pidfd is not None:
        os.close(pidfd)
    return status


def _signal(pid: int, signum: signal.Signals) -> None:
    """Send a signal to the process group of a task that is not reaped yet.

    A group that may not be signalled, as its processes run as another user through sudo, is left alone.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def _outcome(status: int | None, active: ActiveRun, error: str | None) -> Outcome:
    code = 0 if status is None else os.waitstatus_to_exitcode(status)
    name = system.signal_name(-code) if code < 0 else None
    ending: Ending | None = active.ending
    if ending is not None:
        reason: str | None = ending.reason
    elif name:
        reason = f"it was killed by {name} (signal {-code})" + active.oom_kills.evidence(name)
    else:
        reason = error or (f"it ended with exit code {code}" if code else None)
    was_killed = ending is not None or name is not None
    state = RunState.KILLED if was_killed else RunState.FAILED if code else RunState.SUCCEEDED
    outcome = "success" if state is RunState.SUCCEEDED else "failed"
    return Outcome(
        state=state,
        outcome=UNWANTED if ending is not None and ending.unwanted else outcome,
        exit_code=code if name is None and status is not None else None,
        signal=name,
        reason=reason,
    )


# Functions


def _call(task: dict[str, Any], log: BinaryIO, folder: str, active: ActiveRun) -> int:
    """Call a function in a fork of this process, and return its pid."""
    if not Path(task["cwd"]).is_dir():
        raise _FolderError(errno.ENOENT, "No such directory")
    runner = os.getpid()
    active.expect_fork()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    code = _RAISED
    try:
        _begin(runner, log)
        active.begin_task()
        os.chdir(task["cwd"])
        sys.path.insert(0, task["cwd"])
        code = _call_here(task, folder)
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else int(request.code is not None)
    except BaseException as error:
        traceback.print_exc()
        _note(folder, "error.json", f"{type(error).__name__}: {error}"[:4000])
    finally:
        system.exit_fork(code)


def _call_here(task: dict[str, Any], folder: str) -> int:
    module, _, name = task["function"].partition(":")
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    result = function(**task["arguments"])
    if (strange := _not_finite(result)) is not None:
        raise ValueError(f"{task['function']} returned what is not JSON: {strange}")
    try:
        data = jsontext.dumps(result, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise TypeError(f"{task['function']} returned what is not JSON: {error}") from None
    if len(data) > MAX_RESULT_BYTES:
        raise ValueError(f"{task['function']} returned {len(data)} bytes; write what is larger than 64 KiB to a file")
    replace_file(os.path.join(folder, RETURNED), data)
    return 0


def _not_finite(value: Any) -> float | None:
    """Return a float in plain data that JSON does not have; orjson would write null for it."""
    below, seen = [value], 0
    while below and (seen := seen + 1) <= MAX_RESULT_BYTES:  # more than that is too long anyway
        each = below.pop()
        if isinstance(each, float) and not math.isfinite(each):
            return each
        if isinstance(each, (dict, list, tuple)):
            below.extend(each.values() if isinstance(each, dict) else each)
    return None


def _note(folder: str, name: str, text: str) -> None:
    with contextlib.suppress(AirExecutorError):
        replace_file(os.path.join(folder, name), jsontext.dumps(text))


def _error_of(folder: str) -> str | None:
    try:
        return str(jsontext.loads(Path(folder, "error.json").read_bytes()))
    except (OSError, ValueError):
        return None
