"""The run of this process, of which there is one, and how its requests to the API server wait."""

from __future__ import annotations

import time
from typing import Any, Protocol

from air_executor.airflow.compat import tokens
from air_executor.airflow.patience import Patience
from air_executor.runner.active import ActiveRun

#: While it waits for the API server, the runner leaves a sign of life at this interval, in seconds.
BEAT_S = 5.0


class TaskGoneError(Exception):
    """The task process has ended, or is to end, so what it asked of the API server does not matter any more."""


class Supervisor(Protocol):
    """What waits while the task's output is read and its limits are kept."""

    is_finishing: bool

    def nap(self, seconds: float) -> None:
        """See :meth:`air_executor.airflow.supervision.supervisor.AirSupervisor.nap`."""


#: The run of this process.
run: ActiveRun | None = None

#: The supervisor of its task process, once there is one.
supervisor: Supervisor | None = None

#: The rules by which this process retries requests, since :func:`begin`.
patience: Patience


def begin(new: ActiveRun) -> None:
    """Make ``new`` the run of this process, and let its requests to the API server be retried with its patience."""
    global run, patience
    run = new
    patience = Patience(new.patience_s, nap, new.awake, renew_token)
    patience.install()


def forget() -> None:
    """Let this process have no run any more."""
    global run, supervisor
    run = supervisor = None


def renew_token(client: Any) -> bool:
    """Sign a new token for ``client`` if its own is not valid and the run may; return whether it has one."""
    if run is None or not run.may_sign_tokens or not tokens.replace_bad_token(client):
        return False
    run.signed_token()
    return True


def nap(seconds: float) -> None:
    """Wait before a request is retried, and supervise the task meanwhile.

    :raises TaskGoneError: the task process has ended, or the run was stopped.
    """
    if supervisor is not None and not supervisor.is_finishing:
        supervisor.nap(seconds)
        return
    deadline_s = time.monotonic() + seconds
    while (left_s := deadline_s - time.monotonic()) > 0:
        if run is not None:
            run.beat()
            if run.is_asked_to_stop():
                raise TaskGoneError("the run was stopped while the API server was away")
        time.sleep(min(left_s, BEAT_S))
