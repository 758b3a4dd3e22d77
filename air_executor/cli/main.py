"""The ``air-executor`` command."""

from __future__ import annotations

import argparse
import io
import sys

from air_executor.cli.commands import COMMANDS
from air_executor.cli.parser import build


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``air-executor``."""
    return build(COMMANDS)[0]


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
