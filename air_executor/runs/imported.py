"""What launchers import ahead: which modules tasks have imported, and what was learned about packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from air_executor.errors import RecordError, StateDirError
from air_executor.machine.safe_files import replace_file
from air_executor.runs.files import MAX_FILE_BYTES, RunFiles


def write_imports(files: RunFiles, run_id: str, names: list[str]) -> None:
    """Record which modules the task of a run has imported.

    :raises StateDirError: it cannot be written.
    """
    replace_file(files.path(run_id, "imports.json"), orjson.dumps(names))


def read_imports(files: RunFiles, run_id: str) -> list[str]:
    """Return which modules the task of a run has imported, as far as it was recorded."""
    return [name for name in _read_list(files, files.path(run_id, "imports.json")) if isinstance(name, str)]


def write_preload(files: RunFiles, verdicts: list[dict[str, Any]]) -> None:
    """Record what was learned about packages. The oldest are left out if it is more than can be read again.

    :raises StateDirError: it cannot be written.
    """
    while len(data := orjson.dumps(verdicts, option=orjson.OPT_INDENT_2)) > MAX_FILE_BYTES:
        verdicts = verdicts[len(verdicts) // 10 + 1 :]
    replace_file(files.root / "preload.json", data)


def read_preload(files: RunFiles) -> list[dict[str, Any]]:
    """Return what was learned about packages."""
    return [each for each in _read_list(files, files.root / "preload.json") if isinstance(each, dict)]


def _read_list(files: RunFiles, path: str | Path) -> list[Any]:
    try:
        found = orjson.loads(files.read_document(path) or b"[]")
    except (orjson.JSONDecodeError, RecordError, StateDirError):
        return []
    return found if isinstance(found, list) else []
