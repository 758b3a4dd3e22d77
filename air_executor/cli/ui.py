"""The command for pages in a browser."""

from __future__ import annotations

import argparse

from air_executor.cli import where
from air_executor.cli.jsonout import print_line
from air_executor.cli.runs import me, stop_run
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command
from air_executor.errors import AirExecutorError
from air_executor.web.server import PagesServer


def _ui(args: argparse.Namespace) -> int:
    where.all_runs()  # so that what is wrong is said at once
    try:
        server = PagesServer(args.port, where.all_runs, stop_run, me())
    except OSError as error:
        raise AirExecutorError(f"cannot listen at 127.0.0.1:{args.port}: {error.strerror or error}") from None
    with server:
        if args.json:
            print_line({"url": server.url})
        else:
            print(f"runs and jobs: {server.url}\nuntil Ctrl-C; the address is for you alone", flush=True)
        server.serve_forever()
    return EXIT_OK


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


COMMANDS: tuple[Command, ...] = (
    Command(
        "ui",
        "show runs and jobs in a browser, until Ctrl-C",
        _ui,
        (
            Argument(
                ("--port",),
                {"type": _port, "default": 0, "help": "listen at this port of 127.0.0.1 (default: any that is free)"},
            ),
            JSON,
        ),
    ),
)
