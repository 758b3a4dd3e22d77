"""The ``air-executor`` command."""

from __future__ import annotations

import argparse
import io
import sys

from air_executor import __version__
from air_executor.cli.commands import COMMANDS
from air_executor.cli.failure import Parser
from air_executor.cli.table import call


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``air-executor``."""
    top = Parser(prog="air-executor", description="See and control the runs of AirExecutor.")
    top.add_argument("--version", action="version", version=f"air-executor {__version__}")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(command.name, help=command.help, description=command.help)
        for argument in command.arguments:
            sub.add_argument(*argument.flags, **argument.options)
        sub.set_defaults(func=call(command))
    return top


def main() -> None:
    """Run the command line."""
    # A log may hold any character, a terminal may not.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    args = parser().parse_args()
    args.func(args)


if __name__ == "__main__":
    main()
