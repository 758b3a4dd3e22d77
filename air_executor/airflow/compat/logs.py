"""Logging, and the masking of secrets, in launchers, runners and task processes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any


def keep_loggers_unbound() -> None:
    """Let structlog's loggers look up at each use where messages go, here and in forks, until a task sets logging up.

    Otherwise a module's logger keeps what it found at its first use. In a fork, what a task writes to it would go to
    the launcher's output, as text for a console.
    """
    import structlog

    structlog.configure(cache_logger_on_first_use=False)


def forget_secrets() -> None:
    """Let this process mask no secrets. Airflow's supervisor does so before it forks a task process."""
    from airflow.sdk._shared.secrets_masker import reset_secrets_masker

    reset_secrets_masker()


@contextlib.contextmanager
def secrets_kept() -> Iterator[None]:
    """Restore, at the end, which secrets this process masks."""
    from airflow.sdk._shared.secrets_masker import secrets_masker

    masker = secrets_masker._secrets_masker()
    patterns, replacer = masker.patterns, masker.replacer
    masker.patterns = set(patterns)
    try:
        yield
    finally:
        masker.patterns, masker.replacer = patterns, replacer


#: structlog's configuration in task processes, once :func:`share_log_setup` has found it.
_task_logs: dict[str, Any] = {}


@contextlib.contextmanager
def loggers_of_tasks() -> Iterator[None]:
    """Let loggers that modules bind at import write to the log of the task that uses them later."""
    import structlog

    before = structlog.get_config()
    structlog.configure(**_task_logs)
    try:
        yield
    finally:
        structlog.configure(**before)


def outlive_full_disks() -> None:
    """Let supervisors in this process lose what a task's log has no room for. Airflow's end the task for it."""
    import structlog
    from airflow.sdk.execution_time import supervisor

    from air_executor.runs.tasklog import LossyLog

    configure = supervisor._configure_logging

    def configure_lossy(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        logger, file = configure(*args, **kwargs)
        log = LossyLog(file)  # whose name and descriptor are for upload_to_remote
        # It has all of a file that structlog uses; there is no public way to the file that a logger writes to.
        logger._logger = structlog.BytesLogger(log)  # type: ignore[arg-type,attr-defined]
        return logger, log

    # Airflow's own declares which kinds of file it returns.
    supervisor._configure_logging = configure_lossy  # type: ignore[assignment]


def share_log_setup() -> None:
    """Set logging up once as every task process does, for forks of this process to take over.

    Setting it up touches every logger there is. Only what remote logs need is still looked up in each task.
    """
    import structlog
    from airflow.sdk import log
    from airflow.sdk.execution_time import supervisor

    root, before = logging.getLogger(), structlog.get_config()
    handlers, hook, remote = root.handlers[:], sys.excepthook, log.load_remote_log_handler
    # The channel will have this number in every task process: dup2 gives it to the one that the task was given.
    channel = os.open(os.devnull, os.O_WRONLY)
    log.load_remote_log_handler = lambda: None
    try:
        supervisor._configure_logs_over_json_channel(channel)
    finally:
        log.load_remote_log_handler = remote
    shared, shared_handlers, shared_hook = structlog.get_config(), root.handlers[:], sys.excepthook
    structlog.configure(**before)
    _task_logs.update(shared, cache_logger_on_first_use=False)
    root.handlers[:], sys.excepthook = handlers, hook
    *processors, writer = shared["processors"]
    formatter: Any = shared_handlers[0].formatter
    foreign_pre_chain = formatter.foreign_pre_chain

    def configure(log_fd: int) -> None:
        os.dup2(log_fd, channel, inheritable=False)
        remote_processors = getattr(log.load_remote_log_handler(), "processors", ())
        structlog.configure(**{**shared, "processors": [*processors, *remote_processors, writer]})
        formatter.foreign_pre_chain = [*foreign_pre_chain, *remote_processors]
        root.handlers[:], sys.excepthook = shared_handlers, shared_hook

    supervisor._configure_logs_over_json_channel = configure
