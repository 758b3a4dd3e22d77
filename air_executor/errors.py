"""The one exception family of AirExecutor. Messages say what was being done, what was wrong and what to do."""

from __future__ import annotations


class AirExecutorError(Exception):
    """Base of every error that AirExecutor raises on purpose."""


class ConfigError(AirExecutorError):
    """An option in ``[air_executor]`` has a value that cannot be used. The message names the option."""


class StateDirError(AirExecutorError):
    """The state directory cannot be used as it is, or a file in it cannot be written."""


class RecordError(AirExecutorError):
    """A run's state document is missing or cannot be understood."""


class RecordVersionError(RecordError):
    """A run's state document was written by a newer AirExecutor."""


class IllegalTransitionError(AirExecutorError):
    """A run was asked to take a state that cannot follow the state it is in."""


class ProtocolError(AirExecutorError):
    """A peer on the launcher's socket sent something that is not a message."""


class LauncherAwayError(AirExecutorError):
    """The launcher that should run as a service does not."""


class LimitsError(AirExecutorError):
    """``executor_config["air"]`` of a task is not something a runner can apply."""


class RunBusyError(AirExecutorError):
    """Another runner holds the lock of this workload."""


class JobError(AirExecutorError):
    """A job, or a task of one, is not what it should be. The message names the file, the task and the field."""


class ManagedError(JobError):
    """A manager works on these jobs already."""


class JobChangedError(JobError):
    """Somebody else has changed the files of a job that were about to be written."""
