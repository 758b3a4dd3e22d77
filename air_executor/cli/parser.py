"""The parser of ``air-executor``, made from the table of commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from air_executor import __version__
from air_executor.cli import help
from air_executor.cli.failure import Parser
from air_executor.cli.table import STATE_DIR, Command, call


class _TopParser(Parser):
    """The parser of the whole command line, whose help shows the commands in groups."""

    commands: Sequence[Command] = ()

    def format_help(self) -> str:
        return help.overview(self, self.commands)


def build(commands: Sequence[Command]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of ``air-executor``, and those of its commands by their names.

    What it parses has a function ``func`` that runs the command and ends the process with its exit code.
    """
    top = _TopParser(prog="air-executor", description=help.DESCRIPTION)
    top.commands = commands
    top.add_argument("--version", action="version", version=f"air-executor {__version__}")
    top.add_argument(*STATE_DIR.flags, **STATE_DIR.options)
    subparsers: argparse._SubParsersAction[Parser] = top.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    parsers: dict[str, argparse.ArgumentParser] = {}
    for command in commands:
        sub = parsers[command.name] = subparsers.add_parser(
            command.name,
            help=command.help,
            description=help.sentence(command),
            epilog=help.epilog(command, "air-executor"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.telling = command.telling
        for argument in (*command.arguments, STATE_DIR):
            sub.add_argument(*argument.flags, **argument.options)
        sub.set_defaults(func=call(command))
    return top, parsers
