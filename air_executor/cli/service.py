"""The commands that serve others, and check what they need: launcher, doctor, mcp."""

from __future__ import annotations

import argparse
import os

from rich.console import Console

from air_executor import config
from air_executor.cli import doctor, views
from air_executor.cli.table import EXIT_NO, EXIT_OK, JSON, Argument, Command, print_json
from air_executor.errors import AirExecutorError
from air_executor.launcher.service import serve_as_service
from air_executor.machine.ownership import check_state_dir
from air_executor.runs.statedir import VARIABLE, locate
from air_executor.runs.store import RunStore


def _launcher(_: argparse.Namespace) -> int:
    # Airflow's, unless another is named: a service of Airflow's executor looks for no folder of jobs.
    options = config.load_plain(str(locate().path) if VARIABLE in os.environ else None)
    check_state_dir(options.state_dir)
    store = RunStore(options.state_dir)
    store.prepare()
    serve_as_service(store, options)
    return EXIT_OK


def _doctor(args: argparse.Namespace) -> int:
    checks = doctor.examine()
    if args.json:
        print_json([check.to_dict() for check in checks])
    else:
        console = Console()
        console.print(views.checks(checks), soft_wrap=not console.is_terminal)  # in a pipe a finding is a line
    return EXIT_OK if all(check.ok for check in checks) else EXIT_NO


def _mcp(args: argparse.Namespace) -> int:
    try:
        from air_executor.cli.mcp_server import serve
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("mcp"):
            raise
        raise AirExecutorError(
            'the MCP server needs the package mcp, 2 or newer: install AirExecutor with its extra "mcp", in a '
            "clone: pip install '.[mcp]'"
        ) from None
    serve(may_write=args.write)
    return EXIT_OK


COMMANDS: tuple[Command, ...] = (
    Command("launcher", "run the launcher as a service ([air_executor] launcher = service)", _launcher, (JSON,)),
    Command("doctor", "check the installation, and say how to fix it", _doctor, (JSON,)),
    Command(
        "mcp",
        'run an MCP server for AI agents, on stdin and stdout (needs AirExecutor\'s extra "mcp")',
        _mcp,
        (
            Argument(("--write",), {"action": "store_true", "help": "agents may submit, queue, cancel, and so on"}),
            JSON,
        ),
    ),
)
