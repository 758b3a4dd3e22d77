"""Waiting for a job that somebody else has submitted: :class:`AirJobSensor`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.sensor import BaseSensorOperator, PokeReturnValue

from air_executor.jobs.progress import Progress
from air_executor.jobs.store import JobStore
from air_executor.operators import defer, is_awaited, results_of, state_dir_of
from air_executor.triggers import AirJobTrigger

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context


class AirJobSensor(BaseSensorOperator):
    """Waits for the end of a job and returns what its functions returned; fails if the job fails.

    :param job_name: the job; templated.
    :param state_dir: the folder that jobs are kept in, by default ``[air_executor] state_dir``.
    :param deferrable: wait in the triggerer, without a slot.
    """

    template_fields: Sequence[str] = ("job_name",)

    def __init__(self, *, job_name: str, state_dir: str | None = None, deferrable: bool = False, **kwargs: Any) -> None:
        super().__init__(**{"poke_interval": 2.0, **kwargs})
        self.job_name = job_name
        self.state_dir = state_dir
        self.deferrable = deferrable
        self._progress: Progress | None = None

    def execute(self, context: Context) -> Any:
        """Wait, here or in the triggerer."""
        if self.deferrable:
            trigger = AirJobTrigger(job_name=self.job_name, state_dir=state_dir_of(self.state_dir))
            defer(self, trigger, time.time() + self.timeout)
        return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002
        """Return whether the job has ended, and if so, its results."""
        state_dir = state_dir_of(self.state_dir)
        if self._progress is None:
            self._progress = Progress(JobStore(state_dir), self.job_name)
        for line in self._progress.news():
            self.log.info("%s", line)
        if not self._progress.is_over:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=results_of(state_dir, self.job_name))

    def resume(
        self,
        context: Context,  # noqa: ARG002
        event: Any,
        waits_for: dict[str, Any] | None = None,
        until_s: float | None = None,
    ) -> Any:
        """Continue after the deferral, see :meth:`.AirJobOperator.resume`."""
        if waits_for is not None and not is_awaited(self, event, waits_for):
            defer(self, AirJobTrigger(**waits_for), until_s)
        return results_of(event["state_dir"], event["job_name"])
