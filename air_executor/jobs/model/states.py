"""The states of jobs and tasks, and when a task runs after those that it depends on."""

from __future__ import annotations

import enum


class _Stage(str, enum.Enum):
    @property
    def is_end(self) -> bool:
        """Whether it stays so unless somebody asks for more."""
        return self._value_ in _ENDS


_ENDS = frozenset({"completed", "failed", "skipped", "cancelled"})


class JobState(_Stage):
    """The state of a job."""

    WAITING = "waiting"
    WORKING = "working"
    COMPLETED = "completed"
    FAILED = "failed"
    """At least one of its tasks failed."""
    CANCELLED = "cancelled"


class TaskStatus(_Stage):
    """The state of a task."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """It did not run, because its dependencies did not end as its ``when`` asks."""
    CANCELLED = "cancelled"
    """Its job was cancelled first."""


class When(str, enum.Enum):
    """How the dependencies of a task must have ended for the task to run."""

    SUCCESS = "success"
    """All have completed."""
    FAILED = "failed"
    """All have ended, and one has failed, or was skipped because another one had failed."""
    ALWAYS = "always"
    """All have ended."""
