"""Keeping what goes wrong with one run away from all others: an exception of its executor ends Airflow's scheduler."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

#: This many series of failures are remembered. More are forgotten, and told again, rather than kept for ever.
_MAX_SERIES = 1000


class Guard:
    """Logs exceptions instead of passing them on.

    What fails again and again in the same way is logged once, with its traceback, until it has worked again.
    """

    def __init__(self, log: logging.Logger | Any) -> None:
        self._log = log
        self._failing: dict[str, type[BaseException]] = {}

    def __call__(self, what: str) -> Attempt:
        """Return the context for one attempt.

        :param what: what is attempted and with which run, as the subject of "... failed".
        """
        return Attempt(self, what)

    def _succeeded(self, what: str) -> None:
        if self._failing:
            self._failing.pop(what, None)

    def _failed(self, what: str, error: Exception) -> None:
        if self._failing.get(what) is type(error):
            return
        if len(self._failing) >= _MAX_SERIES:
            self._failing.clear()
        self._failing[what] = type(error)
        self._log.error("%s failed; everything else continues: %s", what, error, exc_info=error)


class Attempt:
    """One attempt at something that may fail. Signals' exceptions, such as ``SystemExit``, pass through."""

    __slots__ = ("_guard", "_what", "error")

    def __init__(self, guard: Guard, what: str) -> None:
        self._guard = guard
        self._what = what
        self.error: Exception | None = None
        """What it has failed with."""

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self._guard._succeeded(self._what)
            return False
        if not isinstance(error, Exception):
            return False
        self.error = error
        self._guard._failed(self._what, error)
        return True
