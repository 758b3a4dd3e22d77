"""A finding of the doctor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    """What to do when it is not ok."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)
