"""A place for the runs of the standalone engine's jobs: many hosts, without an Airflow."""

from __future__ import annotations

from air_executor.config import Config
from air_executor.runs.record import Identity
from air_executor.temporal.backend import TemporalBackend
from air_executor.temporal.execution import ALIVE, LOST
from air_executor.temporal.settings import Settings

#: A run whose host does not answer is lost after this many seconds. Its runner has ended the task by then.
_LOST_S = 240.0


def _judge(_: Identity, silent_s: float) -> str:
    """Say that a run is lost when its host has not answered for long: nobody else hears of it meanwhile."""
    return LOST if silent_s > _LOST_S else ALIVE


def make_backend(config: Config, settings: Settings) -> TemporalBackend:
    """Return the place for the runs of a manager of jobs."""
    return TemporalBackend(config, settings, _judge)
