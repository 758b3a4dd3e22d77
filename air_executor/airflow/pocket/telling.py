"""What a run tells: one JSON object per line on stdout."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import Any

from air_executor import jsontext

_stdout = 1


def keep_stdout() -> None:
    """Keep stdout for what is told: what else prints there, as a DAG's file may, goes to stderr from now on."""
    global _stdout
    _stdout = os.dup(1)
    os.dup2(2, 1)


def close() -> None:
    """Tell nothing more from this process."""
    os.close(_stdout)


def tell(event: str, **what: Any) -> None:
    """Tell of an event.

    :param event: its name.
    """
    now = datetime.now(tz=timezone.utc).isoformat(timespec="milliseconds")
    data = memoryview(jsontext.dumps({"event": event, "at": now, **what}) + b"\n")
    while data:
        data = data[os.write(_stdout, data) :]
