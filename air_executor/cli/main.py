"""The ``air-executor`` command."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from air_executor.cli.commands import needed_for
from air_executor.cli.parser import build
from air_executor.machine import system


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of ``air-executor``, or as much of it as a command line needs."""
    return build(needed_for(arguments))[0]


def main() -> None:
    """Run the command line."""
    _open_closed_streams()
    system.hear_signals()
    # A log may hold any character, a terminal may not.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    args = parser(sys.argv[1:]).parse_args()
    args.func(args)


def _open_closed_streams() -> None:
    """Open what of stdin, stdout and stderr was closed (`>&-`), so that no file of ours gets its number."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8", closefd=False))


if __name__ == "__main__":
    main()
