"""The command that prints the JSON Schema of job files."""

from __future__ import annotations

import argparse

from air_executor.cli.table import EXIT_OK, JSON, Command, print_json
from air_executor.jobs.schema import job_file


def _schema(_: argparse.Namespace) -> int:
    print_json(job_file())
    return EXIT_OK


COMMANDS: tuple[Command, ...] = (
    Command("schema", "print the JSON Schema of job files, for editors and programs", _schema, (JSON,)),
)
