"""All commands: the table that both argparse and Airflow's command line are made from.

To import them all takes longer than what most of them do, so a command line that begins with a command imports that
alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from air_executor.cli import helping
from air_executor.cli.table import Command

#: The modules of this package with commands, and the names of these.
MODULES = {
    "runs": ("status", "runs", "show", "stop"),
    "logs": ("logs",),
    "usage": ("usage", "advise"),
    "making": ("init", "submit", "queue"),
    "running": ("run",),
    "adding": ("add",),
    "jobs": ("jobs", "job", "wait", "results"),
    "control": ("pause", "resume", "cancel", "retry", "reset"),
    "trust": ("trust",),
    "dag": ("dag",),
    "cleaning": ("prune", "remove"),
    "schema": ("schema",),
    "manager": ("start", "shutdown"),
    "service": ("launcher", "doctor", "mcp"),
    "metrics": ("metrics",),
    "ui": ("ui",),
    "worker": ("worker",),
    "temporal": ("temporal",),
}


def of_module(module: str) -> tuple[Command, ...]:
    """Return the commands of one of :data:`MODULES`."""
    commands: tuple[Command, ...] = importlib.import_module(f"air_executor.cli.{module}").COMMANDS
    return commands


def all_commands() -> tuple[Command, ...]:
    """Return all commands."""
    return *(command for module in MODULES for command in of_module(module)), helping.command(all_commands)


def needed_for(arguments: Sequence[str]) -> tuple[Command, ...]:
    """Return the commands that a command line may mean: one, if it begins with that, and otherwise all."""
    for module, names in MODULES.items():
        if arguments and arguments[0] in names:
            return tuple(command for command in of_module(module) if command.name == arguments[0])
    return all_commands()
