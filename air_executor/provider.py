"""What Airflow reads from the ``apache_airflow_provider`` entry point, and the commands of ``airflow air``."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from air_executor import __version__, config


def get_provider_info() -> dict[str, Any]:
    """Return AirExecutor's description in the form of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "air-executor",
        "name": "AirExecutor",
        "description": "Runs every task in its own short-lived process on one machine.",
        "versions": [__version__],
        "executors": ["air_executor.executor.AirExecutor"],
        "cli": ["air_executor.provider.get_cli_commands"],
        "config": {
            config.SECTION: {
                "description": _described(),
                "options": {
                    option.name: {
                        "description": option.description,
                        "version_added": __version__,
                        "type": option.type,
                        "example": option.example,
                        "default": option.default,
                        **({"sensitive": True} if option.is_secret else {}),
                    }
                    for option in config.OPTIONS
                },
            }
        },
    }


def _described() -> str:
    groups = groupby(config.OPTIONS, key=lambda option: option.group)
    named = (f"{group.value}: {', '.join(option.name for option in options)}." for group, options in groups)
    return f"Options of AirExecutor. {' '.join(named)}"


def get_cli_commands() -> list[Any]:
    """Return the command group ``airflow air``: the same commands as ``air-executor``."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand
    from rich.markup import escape

    from air_executor.cli import help
    from air_executor.cli.commands import all_commands
    from air_executor.cli.table import STATE_DIR, Argument, call

    def arg(argument: Argument) -> Arg:
        # Airflow's help takes brackets for markup.
        options = {**argument.options, "help": escape(argument.options.get("help", ""))}
        return Arg(argument.flags, **options)

    return [
        GroupCommand(
            name="air",
            help="See and control the runs of AirExecutor",
            subcommands=[
                ActionCommand(
                    name=command.name,
                    help=escape(command.help),
                    description=escape(help.sentence(command)),
                    epilog=escape(help.epilog(command, "airflow air")),
                    func=call(command),
                    args=[arg(argument) for argument in (*command.arguments, STATE_DIR)],
                )
                for command in all_commands()
            ],
        )
    ]
