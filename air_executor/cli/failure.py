"""What a command says when it fails: one line for people, one JSON object for programs."""

from __future__ import annotations

import argparse
import errno
import re
import sys
from typing import Any, NoReturn

from air_executor.cli.jsonout import print_line, printable
from air_executor.errors import AirExecutorError

#: The system lacks something that may be there again soon.
_SCARCE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EBUSY}
)

#: The part of a message that names a command to call.
_ADVICE = re.compile(r"[^;:.]*`air-executor [^`]*`.*", re.DOTALL)


def envelope(error: BaseException, event: str | None = None) -> dict[str, Any]:
    """Return a failure as programs read it: ``error``, ``retryable`` and ``hint``.

    :param event: the name by which a command that tells events calls it.
    """
    named = {} if event is None else {"event": event}
    if isinstance(error, KeyboardInterrupt):
        return named | {"error": "interrupted", "retryable": True, "hint": None}
    text = str(error) if isinstance(error, AirExecutorError) else f"{type(error).__name__}: {error}"
    return named | {"error": printable(text), "retryable": is_retryable(error), "hint": hint_of(error)}


def is_retryable(error: BaseException) -> bool:
    """Tell whether the same call may work later, though nobody mends anything."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _SCARCE:
            return True
        cause = cause.__cause__
    return isinstance(error, AirExecutorError) and error.retryable


def hint_of(error: BaseException) -> str | None:
    """Return what to do about an error: what it says of itself, or the command that its message names."""
    if not isinstance(error, AirExecutorError):
        return None
    advice = _ADVICE.search(str(error))
    given = error.__dict__.get("hint") or (advice[0].strip() if advice else error.hint)
    return printable(given) if given else None


def report(error: AirExecutorError | KeyboardInterrupt, args: argparse.Namespace) -> int:
    """Say what went wrong with a command, and return the exit code."""
    if getattr(args, "json", False):
        print_line(envelope(error, getattr(args, "error_event", None)))
    elif isinstance(error, AirExecutorError):
        hint = error.__dict__.get("hint")
        print(f"air-executor: {error}" + (f"; {hint}" if hint else ""), file=sys.stderr)
    return error.exit_code if isinstance(error, AirExecutorError) else 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are JSON too, when the command line asks for JSON."""

    def error(self, message: str) -> NoReturn:
        """Leave with the exit code of wrong use."""
        words = sys.argv[1:]
        if "--json" not in (words[: words.index("--")] if "--" in words else words):  # what follows is a task's
            super().error(message)
        named = {"event": "error"} if self.prog.endswith(" dag") and "run" in words else {}
        print_line(
            named | {"error": printable(message), "retryable": False, "hint": f"`{self.prog} --help` shows the usage"}
        )
        sys.exit(AirExecutorError.exit_code)
