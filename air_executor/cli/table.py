"""What a command is, for argparse and for Airflow's command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from air_executor.errors import AirExecutorError

#: Exit codes: it is so; it is not so, or it did not work; it was asked wrongly.
EXIT_OK, EXIT_NO, EXIT_USAGE = 0, 1, 2


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


def call(command: Command) -> Callable[[argparse.Namespace], None]:
    """Return a function that runs ``command`` and leaves with its exit code; errors become one line."""

    def run(args: argparse.Namespace) -> None:
        try:
            code = command.run(args)
        except AirExecutorError as error:
            print(f"air-executor: {error}", file=sys.stderr)
            code = EXIT_USAGE
        except KeyboardInterrupt:
            code = 130
        except BrokenPipeError:
            code = EXIT_OK  # the reader, such as `head`, has seen enough
            sys.stderr.close()
        if code:
            sys.exit(code)

    return run


def print_json(value: Any) -> None:
    """Print ``value`` as JSON for people and programs."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()


def at_least_zero(text: str) -> float:
    """Return a number of seconds, days and the like that argparse has read."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def count(text: str) -> int:
    """Return a whole number that argparse has read."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


JSON = Argument(("--json",), {"action": "store_true", "help": "print JSON"})
