"""What a task process had to import, for the launcher to import ahead next time."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from itertools import islice

from air_executor.errors import StateDirError
from air_executor.runner.stash import stash
from air_executor.runs import imported
from air_executor.runs.store import RunStore

#: At most this many modules are noted.
_MOST = 3000


def note(store: RunStore, run_id: str, known: int) -> None:
    """In the task process of a run: note what it imported after its first ``known`` modules."""
    if names := new_packaged_modules(known):
        with contextlib.suppress(StateDirError):
            imported.write_imports(store, run_id, names)


def new_packaged_modules(known: int) -> list[str]:
    """Return the modules of installed packages that were imported after the first ``known`` modules, in order."""
    # From the end: touching every module would copy pages that are shared with the launcher.
    new = list(islice(reversed(sys.modules), max(0, len(sys.modules) - known)))[::-1]
    folders = tuple({sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib")})
    return [name for name in new if name not in stash and _origin(name).startswith(folders)][:_MOST]


def _origin(name: str) -> str:
    return str(getattr(getattr(sys.modules.get(name), "__spec__", None), "origin", None))
