"""Writes the pages of ``docs/reference`` that say what the code says: options, commands, Python functions, files.

It also copies the README's table of figures from the page of the benchmarks.

``.venv/bin/python scripts/reference`` writes them; with ``--check`` it writes nothing, names the pages that differ from
the code, and ends with 1. A test does the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from api import api
from commands import commands
from figures import with_figures
from files import files, schemas
from metrics import metrics
from options import configuration

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "reference"


def main() -> int:
    """Write the pages, or check them, and return the exit code."""
    parser = argparse.ArgumentParser(description="The reference pages, made from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a page is out of date")
    is_check = parser.parse_args().check
    stale = []
    for path, text in pages().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not is_check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(REPOSITORY)}: {'is out of date' if is_check else 'written'}")
    return 1 if is_check and stale else 0


def pages() -> dict[Path, str]:
    """Return the text of each page, by its path."""
    made = {
        FOLDER / "configuration.md": configuration(),
        FOLDER / "cli.md": commands(),
        FOLDER / "python.md": api(),
        FOLDER / "files.md": files(),
        FOLDER / "metrics.md": metrics(),
    }
    readme, benchmarks = REPOSITORY / "README.md", REPOSITORY / "docs" / "benchmarks" / "README.md"
    made[readme] = with_figures(readme.read_text(encoding="utf-8"), benchmarks.read_text(encoding="utf-8"))
    for name, (_, schema) in schemas().items():
        made[FOLDER / "schemas" / name] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    return made


if __name__ == "__main__":
    sys.exit(main())
