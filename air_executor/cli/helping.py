"""``air-executor help``: how a command is used, and the page for programs and AI agents."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from air_executor.cli.parser import build
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command, print_json
from air_executor.errors import AirExecutorError


def command(all_commands: Callable[[], Sequence[Command]]) -> Command:
    """Return the command ``help``.

    :param all_commands: returns all commands, this one included.
    """

    def run(args: argparse.Namespace) -> int:
        text = _page() if args.topic == "agents" else _usage(args.topic, all_commands())
        if args.json:
            print_json({"topic": args.topic, "text": text})
        else:
            print(text, end="")
        return EXIT_OK

    return Command(
        "help",
        "show how a command is used; or, with the topic agents, the page for programs and AI agents",
        run,
        (Argument(("topic",), {"nargs": "?", "metavar": "COMMAND|agents", "help": "what about"}), JSON),
    )


def _page() -> str:
    return Path(__file__).with_name("agents.md").read_text("utf-8")


def _usage(topic: str | None, commands: Sequence[Command]) -> str:
    top, parsers = build(commands)
    if topic is None:
        return top.format_help()
    if topic not in parsers:
        raise AirExecutorError(
            f"there is no command, and no page, {topic!r}",
            hint="`air-executor help` lists the commands; the page for programs is `air-executor help agents`",
        )
    return parsers[topic].format_help()
