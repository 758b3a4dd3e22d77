"""Clocks that pass only when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Time:
    """The clocks of this process, see the fixture ``clock``."""

    def __init__(self) -> None:
        self.mono_s, self.wall_s = 1000.0, 1.7e9

    def run(self, seconds: float, look: Callable[[], Any]) -> None:
        """Let time pass while whoever looks at the clock does so every few seconds."""
        for _ in range(round(seconds)):
            self.pause(1.0)
            look()

    def pause(self, seconds: float) -> None:
        """Let time pass while everything stands still."""
        self.mono_s += seconds
        self.wall_s += seconds
