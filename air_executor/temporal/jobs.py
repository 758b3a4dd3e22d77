"""A place for the runs of the standalone engine's jobs: many hosts, without an Airflow."""

from __future__ import annotations

import time

from air_executor.config import Config
from air_executor.runs.record import Identity
from air_executor.temporal.backend import TemporalBackend
from air_executor.temporal.settings import Settings
from air_executor.temporal.workflow import ALIVE, LOST

#: A run whose host does not answer is lost after so many seconds. Its runner has ended the task by then.
_LOST_S = 240.0


class _Judge:
    """Says that a run is lost when its host has not answered for long. Nobody else hears of it meanwhile."""

    def __init__(self) -> None:
        self._asked_s: dict[str, float] = {}

    def __call__(self, who: Identity) -> str:
        since_s = time.monotonic() - self._asked_s.setdefault(f"{who.workload_id}/{who.try_number}", time.monotonic())
        return LOST if since_s > _LOST_S else ALIVE


def make_backend(config: Config, settings: Settings) -> TemporalBackend:
    """Return the place for the runs of a manager of jobs."""
    return TemporalBackend(config, settings, _Judge())
