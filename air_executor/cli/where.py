"""The state directory that a command works on, and its options."""

from __future__ import annotations

from air_executor import config
from air_executor.config import Config
from air_executor.jobs import api
from air_executor.jobs.store import JobStore
from air_executor.machine.ownership import check_state_dir
from air_executor.observe.everywhere import AllRuns


def options() -> Config:
    """Return the options for the present working directory.

    :raises AirExecutorError: an option can't be used, or the state directory is somebody else's.
    """
    return config.load_plain(str(api.find_state_dir()))


def job_store() -> JobStore:
    """Return the jobs of that state directory."""
    return JobStore(options().state_dir)


def all_runs() -> AllRuns:
    """Return the runs of that state directory. Root may look at those of another user."""
    state_dir = options().state_dir
    check_state_dir(state_dir, is_looking=True)
    return AllRuns(state_dir)
