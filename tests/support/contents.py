"""What is in files that others may be removing meanwhile."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def contents(folder: Path) -> dict[Path, bytes]:
    """Return what is in each file below a folder, without those that vanish while they are read."""
    found = {}
    for parent, _, names in os.walk(folder):  # passes over folders that vanish
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found[path] = path.read_bytes()
    return found
