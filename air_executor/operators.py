"""Jobs of the standalone engine as tasks of a dag: :class:`AirJobOperator`."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.operator import BaseOperator

from air_executor import config
from air_executor.errors import AirExecutorError, JobError, ManagedError
from air_executor.jobs import api
from air_executor.jobs.manager import Manager
from air_executor.jobs.model import JobState
from air_executor.jobs.progress import Progress, describe_failures
from air_executor.jobs.store import JobStore
from air_executor.triggers import AirJobTrigger

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

#: How often the files of a job are looked at while it is waited for, in seconds.
POLL_S = 1.0


def state_dir_of(given: str | None) -> str:
    """Return where jobs are kept: ``given``, or below ``[air_executor] state_dir``."""
    return given or config.load_plain().state_dir


def results_of(state_dir: str | Path, name: str) -> dict[str, Any]:
    """Return what the functions of a job have returned, by the ids of their tasks.

    :raises JobError: the job has failed; the message has the errors of its tasks.
    """
    found = api.results(name, state_dir=state_dir)
    if found.job.state is not JobState.COMPLETED:
        raise JobError(describe_failures(found))
    return found.values


class AirJobOperator(BaseOperator):
    """Submits a job to the standalone engine, waits for its end, and returns what its functions returned.

    :param tasks: as in ``tasks.json``; templated.
    :param job_name: name of the job; templated. Unless given it is made of the dag, the task and the dag run.
    :param max_runners: how many of its tasks may run at a time.
    :param folder: working directory of the tasks; templated. Unless given it is that of the Airflow task.
    :param env: variables for the job's tasks; templated.
    :param state_dir: where jobs are kept, unless below ``[air_executor] state_dir``.
    :param manager: ``running``: a manager works there (``air-executor start``), or the task fails and says so. ``own``:
        this task works on the job itself.
    :param deferrable: wait in the triggerer and hold no slot; needs a manager that is running.

    A further try of the Airflow task goes on with the job: it tries the failed tasks again, and repeats no other.
    """

    template_fields: Sequence[str] = ("tasks", "job_name", "folder", "env")

    def __init__(
        self,
        *,
        tasks: Sequence[Mapping[str, Any]],
        job_name: str | None = None,
        max_runners: int = 1,
        folder: str | None = None,
        env: Mapping[str, str] | None = None,
        state_dir: str | None = None,
        manager: str = "running",
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if manager not in ("running", "own"):
            raise ValueError(f"manager must be 'running' or 'own', not {manager!r}")
        if deferrable and manager == "own":
            raise ValueError("a deferred task can't work on the job itself: manager='own' needs deferrable=False")
        self.tasks = tasks
        self.job_name = job_name
        self.max_runners = max_runners
        self.folder = folder
        self.env = env
        self.state_dir = state_dir
        self.manager = manager
        self.deferrable = deferrable
        self._submitted: str | None = None

    def execute(self, context: Context) -> Any:
        """Submit the job and wait."""
        state_dir = state_dir_of(self.state_dir)
        store = JobStore(state_dir)
        if self.manager == "running" and store.manager() is None:
            raise JobError(
                f"no manager works on the jobs below {store.root}: run `air-executor start --detach` with this state "
                "directory, or let the task work on the job itself with manager='own'"
            )
        name = self.job_name or _name(context)
        self._submitted = name
        self._submit(store, name, state_dir)
        self.log.info("Job %s has %d tasks; its files are in %s", name, len(self.tasks), store.folder(name))
        if self.deferrable:
            timeout = self.execution_timeout if isinstance(self.execution_timeout, timedelta) else None
            self.defer(trigger=AirJobTrigger(job_name=name, state_dir=state_dir), method_name="resume", timeout=timeout)
        progress = Progress(store, name)
        if self.manager == "own":
            self._work(state_dir, name, progress)
        else:
            for line in progress.lines(POLL_S):
                self.log.info("%s", line)
        return results_of(state_dir, name)

    def _submit(self, store: JobStore, name: str, state_dir: str) -> None:
        if name not in store.names():
            options = {"max_runners": self.max_runners, "folder": self.folder, "env": self.env}
            api.submit(name, self.tasks, state_dir=state_dir, **options)  # type: ignore[arg-type]
            return
        job = store.open(name).job
        self.log.info("Job %s is there already, and is %s", name, job.state.value)
        if job.state in (JobState.FAILED, JobState.CANCELLED):
            store.ask(name, "retry")

    def _work(self, state_dir: str, name: str, progress: Progress) -> None:
        def is_over() -> bool:
            for line in progress.news_if_due(POLL_S):
                self.log.info("%s", line)
            return progress.is_over

        while not is_over():
            try:
                Manager(config.load_plain(state_dir), only=frozenset({name}), heeds_signals=False).serve(until=is_over)
            except ManagedError:
                time.sleep(POLL_S)  # another works on it; should it leave the job, this one takes it

    def resume(self, context: Context, event: dict[str, Any]) -> Any:  # noqa: ARG002
        """Go on after the deferral."""
        return results_of(event["state_dir"], event["job_name"])

    def on_kill(self) -> None:
        """Cancel the job."""
        if self._submitted is None:
            return
        state_dir = state_dir_of(self.state_dir)
        try:
            JobStore(state_dir).ask(self._submitted, "cancel")
        except AirExecutorError as error:
            self.log.error("Job %s can't be cancelled: %s", self._submitted, error)
            return
        self.log.info("Job %s is cancelled", self._submitted)
        if self.manager == "own":
            with contextlib.suppress(JobError):
                Manager(config.load_plain(state_dir), only=frozenset({self._submitted}), heeds_signals=False).apply()


def _name(context: Context) -> str:
    instance = context["ti"]
    parts = [instance.dag_id, instance.task_id, instance.run_id]
    if (index := getattr(instance, "map_index", -1)) is not None and index >= 0:
        parts.append(str(index))
    return re.sub(r"[^A-Za-z0-9_.:+@=-]", "_", ".".join(parts))[:200]
