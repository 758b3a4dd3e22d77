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


def envelope(error: BaseException, *, is_event: bool = False) -> dict[str, Any]:
    """Return a failure as programs read it: ``error``, ``retryable`` and ``hint``.

    :param is_event: it is the last of the events that a command tells, and says so in ``event``.
    """
    if isinstance(error, KeyboardInterrupt):
        return _envelope("interrupted", is_event=is_event, retryable=True, hint=None)
    text = str(error) if isinstance(error, AirExecutorError) else f"{type(error).__name__}: {error}"
    return _envelope(text, is_event=is_event, retryable=is_retryable(error), hint=hint_of(error))


def _envelope(text: str, *, is_event: bool, retryable: bool, hint: str | None) -> dict[str, Any]:
    named = {"event": "error"} if is_event else {}
    return {**named, "error": printable(text), "retryable": retryable, "hint": hint}


def is_retryable(error: BaseException) -> bool:
    """Tell whether the same call may work later without any repair."""
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
        print_line(envelope(error, is_event=args.tells_events))
    elif isinstance(error, AirExecutorError):
        hint = error.__dict__.get("hint")
        print(f"air-executor: {error}" + (f"; {hint}" if hint else ""), file=sys.stderr)
    return error.exit_code if isinstance(error, AirExecutorError) else 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are JSON too, when the command line asks for JSON."""

    telling: str | None = None
    """See :attr:`air_executor.cli.table.Command.telling`."""

    def error(self, message: str) -> NoReturn:
        """Leave with the exit code of wrong use."""
        words = sys.argv[1:]
        if "--json" not in (words[: words.index("--")] if "--" in words else words):  # what follows is a task's
            super().error(message)
        hint = f"`{self.prog} --help` shows the usage"
        print_line(_envelope(message, is_event=self.telling in words, retryable=False, hint=hint))
        sys.exit(AirExecutorError.exit_code)
