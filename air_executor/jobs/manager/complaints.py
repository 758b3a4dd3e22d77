"""Lasting problems: each is logged once, not every time it is met."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class Complaints:
    """What was last logged about each job."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def __len__(self) -> int:
        """Return how many jobs have a problem."""
        return len(self._last)

    def log(self, about: str, why: str, message: str) -> None:
        """Log a problem, unless it is the one that was last logged about the same job.

        :param about: the job's name; nothing for all jobs.
        :param why: identifies the problem.
        """
        if self._last.get(about) != why:
            log.error("%s", message)
        self._last[about] = why

    def about(self, about: str) -> str | None:
        """Return the problem that was last logged about a job, if it lasts."""
        return self._last.get(about)

    def clear(self, about: str) -> None:
        """Note that there is no problem any more."""
        self._last.pop(about, None)
