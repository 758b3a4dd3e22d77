"""The one exception family of AirExecutor. Messages say what was being done, what was wrong and what to do."""

from __future__ import annotations


class AirExecutorError(Exception):
    """Base of every error that AirExecutor raises on purpose."""

    retryable = False
    """Whether the same call may work later without any repair."""
    hint: str | None = None
    """What to do about it, where the message does not say so itself."""
    exit_code = 2
    """How the command line ends: 2 for what was asked wrongly, 1 for what cannot be done as things are."""

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class WrongStateError(AirExecutorError):
    """The request does not fit the present state, such as cancelling a job that has ended."""

    exit_code = 1


class ConfigError(AirExecutorError):
    """An option in ``[air_executor]`` has a value that cannot be used. The message names the option."""

    hint = "`air-executor doctor --json` shows what is wrong with the configuration"


class StateDirError(AirExecutorError):
    """The state directory cannot be used as it is, or a file in it cannot be written."""

    hint = "`air-executor doctor --json` shows what is wrong with the state directory"


class RecordError(AirExecutorError):
    """A run's state document is missing or cannot be understood."""

    hint = "`air-executor runs --json` lists the runs"


class RecordVersionError(RecordError):
    """A run's state document was written by a newer AirExecutor."""

    hint = "use the air-executor that wrote it, or a newer one"


class IllegalTransitionError(AirExecutorError):
    """A run was asked to take a state that cannot follow the state it is in."""


class ProtocolError(AirExecutorError):
    """A peer on the launcher's socket sent something that is not a message."""


class LauncherAwayError(AirExecutorError):
    """The launcher that should run as a service does not."""

    retryable = True
    hint = "start the service that runs `air-executor launcher`"


class LimitsError(AirExecutorError):
    """``executor_config["air"]`` of a task is not something a runner can apply."""


class RunBusyError(AirExecutorError):
    """Another runner holds the lock of this workload."""

    retryable = True


class JobError(AirExecutorError):
    """A job, or a task of one, is not what it should be. The message names the file, the task and the field."""


class UnknownJobError(JobError):
    """There is no such job."""

    hint = "`air-executor jobs --json` lists the jobs"


class JobExistsError(JobError):
    """There is a job of that name already."""


class ManagedError(JobError):
    """A manager works on these jobs already."""

    retryable = True


class UntrustedJobError(JobError):
    """A job was not submitted here, and nobody has said that it is trusted. Nothing of it is run."""


class JobChangedError(JobError):
    """Somebody else has changed the files of a job that were about to be written."""

    retryable = True
