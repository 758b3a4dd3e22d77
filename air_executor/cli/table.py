"""What a command is, for argparse and for Airflow's command line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from air_executor.cli.failure import envelope, report
from air_executor.cli.jsonout import print_json as print_json
from air_executor.cli.jsonout import print_line
from air_executor.errors import AirExecutorError, StateDirError
from air_executor.runs.statedir import VARIABLE, absolute

_LOGGER = logging.getLogger("air_executor")

#: Exit codes: success; failure, or "no" as an answer; wrong use; not ended in time, like timeout(1).
EXIT_OK, EXIT_NO, EXIT_USAGE, EXIT_TIMEOUT = 0, 1, 2, 124


#: The errors of a file that can take no more.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

#: Set by commands that must exit with ``os._exit``, without Python's shutdown.
ends_at_once = False


@dataclass(frozen=True)
class Argument:
    """One argument, in argparse's words."""

    flags: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """One command. ``run`` returns the exit code."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    arguments: tuple[Argument, ...] = ()
    telling: str | None = None
    """The action that tells events with ``--json``: its error is one, too."""


def call(command: Command) -> Callable[[argparse.Namespace], None]:
    """Return a function that runs ``command`` and leaves with its exit code.

    Errors become one line; with ``--json`` one object on stdout, unexpected ones too.
    """

    def run(args: argparse.Namespace) -> None:
        args.command = command.name  # Airflow's command line has its own place for it
        args.tells_events = command.telling is not None and args.action == command.telling
        if (named := getattr(args, "state_dir", None)) == "":
            sys.exit(report(StateDirError("--state-dir names no folder: is a variable not set?"), args))
        try:
            if named is not None:
                # In the environment, so that the processes started by this command have it too.
                os.environ[VARIABLE] = os.path.normpath(absolute(os.path.expanduser(named)))
            with _logging_to_stderr():
                code = command.run(args)
                sys.stdout.flush()
        except (AirExecutorError, KeyboardInterrupt) as error:
            code = report(error, args)
        except BrokenPipeError:
            code = EXIT_OK  # the reader, such as `head`, has seen enough
            sys.stderr.close()
        except OSError as error:
            if error.errno in _FULL and _is_output_lost():
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes at its end what is left
                code = report(StateDirError(f"the output can't be written: {error.strerror}"), args)
            elif error.filename is None:
                _print_unexpected(error, args)
                raise
            else:
                # A path that can't be used is no defect of ours, and needs no traceback.
                code = report(_unusable(error), args)
        except Exception as error:
            _print_unexpected(error, args)
            raise
        if ends_at_once:
            # Threads of Temporal's client may come back to Python while that ends, which aborts it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        if code:
            sys.exit(code)

    return run


def _is_output_lost() -> bool:
    """Tell whether what was printed can't be written."""
    try:
        sys.stdout.flush()
        os.write(1, b"\n")  # without a buffer, nothing is left that would fail again
    except OSError:
        return True
    return False


@contextlib.contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """Print warnings of ours to stderr, also where Airflow's command line would print all that is logged to stdout."""
    handler, propagates = logging.StreamHandler(), _LOGGER.propagate
    _LOGGER.addHandler(handler)
    _LOGGER.propagate = False
    _LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.propagate = propagates
        _LOGGER.setLevel(logging.NOTSET)


def log_progress() -> None:
    """Print from now on also what is logged as information, each message with its time."""
    for handler in _LOGGER.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _LOGGER.setLevel(logging.INFO)


def _print_unexpected(error: Exception, args: argparse.Namespace) -> None:
    if getattr(args, "json", False):
        print_line(envelope(error, is_event=args.tells_events))


def _unusable(error: OSError) -> AirExecutorError:
    path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    unusable = StateDirError(f"{path} cannot be used: {error.strerror or error}")
    unusable.__cause__ = error  # says whether to try again
    return unusable


def command_after(args: argparse.Namespace) -> list[str]:
    """Return the command line that stands behind ``--``, or at the end of a command's own arguments."""
    return list(args.argv[1:] if args.argv[:1] == ["--"] else args.argv)


def at_least_zero(text: str) -> float:
    """Return a number of seconds, days and the like that argparse has read."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or more")
    return value


def whole_number(text: str) -> int:
    """Return a whole number that argparse has read."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def count(text: str) -> int:
    """Return a whole number, 0 or more, that argparse has read."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return value


JSON = Argument(("--json",), {"action": "store_true", "help": "print JSON, an error too"})

#: Every command has it.
STATE_DIR = Argument(
    ("--state-dir",),
    {"metavar": "FOLDER", "default": argparse.SUPPRESS, "help": f"the state directory (default: {VARIABLE} and so on)"},
)
