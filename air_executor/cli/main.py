"""The ``air-executor`` command."""

from __future__ import annotations

import argparse
import io
import sys

from air_executor import __version__
from air_executor.cli import help
from air_executor.cli.commands import COMMANDS
from air_executor.cli.failure import Parser
from air_executor.cli.table import STATE_DIR, call


class _Parser(Parser):
    """The parser of the whole command line, whose help shows the commands in groups."""

    def format_help(self) -> str:
        return help.overview(self, COMMANDS)


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``air-executor``."""
    top = _Parser(prog="air-executor", description=help.DESCRIPTION)
    top.add_argument("--version", action="version", version=f"air-executor {__version__}")
    top.add_argument(*STATE_DIR.flags, **STATE_DIR.options)
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        sub = subparsers.add_parser(
            command.name,
            help=command.help,
            description=help.sentence(command),
            epilog=help.epilog(command, "air-executor"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument in (*command.arguments, STATE_DIR):
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
