"""Starting the next tasks: their places, their tries, and what a runner gets to execute them."""

from __future__ import annotations

import functools
import uuid
from pathlib import Path
from typing import Any

from air_executor.errors import AirExecutorError, JobError, LimitsError, ProtocolError
from air_executor.jobs import templates
from air_executor.jobs.manager.outcomes import Outcomes
from air_executor.jobs.manager.runs import Owner, Runs
from air_executor.jobs.model import JobState, Task, TaskStatus
from air_executor.jobs.private import VARIABLE as PRIVATE_DIR
from air_executor.jobs.schedule import ActiveJob
from air_executor.jobs.store import JobStore, base_folder
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import Identity, now

#: To try a task costs time, and a manager may have many jobs.
_MOST_REFUSED = 200


class Starts:
    """Starts tasks that are ready."""

    def __init__(self, store: JobStore, runs: Runs, outcomes: Outcomes) -> None:
        self._store, self._runs, self._outcomes = store, runs, outcomes
        self._state_dir = store.root.parent
        self._base = base_folder(self._state_dir)
        #: Names of jobs with tasks that were set aside, as the machine had no room for them.
        self._roomless: set[str] = set()
        self._refused = 0

    @property
    def is_discouraged(self) -> bool:
        """Whether so many tasks were set aside that no other is tried before :meth:`take_roomless`."""
        return self._refused >= _MOST_REFUSED

    @property
    def has_roomless(self) -> bool:
        """Whether tasks were set aside."""
        return bool(self._roomless)

    def take_roomless(self) -> set[str]:
        """Return the names of the jobs with tasks that were set aside since the last call."""
        names, self._roomless = self._roomless, set()
        self._refused = 0
        return names

    def start_next(self, job: ActiveJob) -> None:
        """Start the next task of a job, if one is ready and there is a place for it.

        One for which the machine has no room is set aside.

        :raises AirExecutorError: the job's files or the run's record can't be written; then nothing was started.
        """
        place = job.free_place()
        if place is None or not job.ready.has_next:
            return
        task = job.tasks[job.ready.first()]
        if task.is_for_items:
            job.ready.pop()
            job.commit(*job.begin_items(task))
            return
        try:
            filled = templates.fill(task, job.tasks)
            environment = self._store.private.environment(job.files.job, filled)
        except JobError as error:
            job.ready.pop()
            task.tries, task.started_at = task.tries + 1, now()
            self._outcomes.fail(job, task, str(error), is_final=isinstance(error, templates.MissingInputError))
            return
        who = Identity(
            kind="job",
            workload_id=job.places.workload_id(place),
            name=f"{job.name}/{task.id}",
            job_name=job.name,
            task_id=task.id,
            try_number=task.tries + 1,
        )
        if not self._runs.admit(who, filled.limits):
            job.ready.set_aside()
            self._roomless.add(job.name)
            self._refused += 1
            return
        before = vars(task).copy()
        run_id = str(uuid.uuid4())
        task.status, task.started_at, task.run_id = TaskStatus.RUNNING, now(), run_id
        task.tries += 1
        task.retry_at = task.error = task.exit_code = task.completed_at = None
        try:
            request = self._request(job, task, filled, who, environment)
            if job.files.job.state is not JobState.WORKING:
                job.files.set_state(JobState.WORKING)
            # Into the files first, so that the next manager finds the run.
            job.files.commit(task)
            self._runs.order(request, Owner(job.name, task.id))
        except (ProtocolError, LimitsError) as error:  # too large, or nested too deeply: another try would be so, too
            job.ready.pop()
            self._runs.give_up_room(who)
            self._outcomes.fail(job, task, f"it can't be handed to a runner: {error}", is_final=True)
            return
        except (AirExecutorError, OSError):
            self._runs.give_up_room(who)
            vars(task).update(before)
            job.files.forget_text(task)
            raise
        job.ready.pop()
        job.places.take(task.id, place)

    def _request(
        self, job: ActiveJob, task: Task, filled: Task, who: Identity, environment: dict[str, str]
    ) -> RunRequest:
        """Return what a runner gets.

        :param task: as it was started just now.
        :param filled: the same task, with values in the place of its placeholders.
        """
        files, run_id = job.files, task.run_id or ""
        workload: dict[str, Any] = {"cwd": _path(self._base, files.job.folder, filled.cwd)}
        if filled.function is not None:
            workload |= {"function": filled.function, "arguments": filled.arguments}
        else:
            workload |= {"argv": [filled.command, *filled.args], "shell": filled.shell}
        if env_files := [
            _path(self._base, files.job.folder, each) for each in (files.job.env_file, filled.env_file) if each
        ]:
            workload["env_files"] = env_files
        variables = {
            **environment,
            PRIVATE_DIR: str(self._store.private.root),
            "AIR_EXECUTOR_STATE_DIR": str(self._state_dir),
            "AIR_EXECUTOR_JOB": job.name,
            "AIR_EXECUTOR_TASK": task.id,
            "AIR_EXECUTOR_RUN": run_id,
            "AIR_EXECUTOR_TRY": str(task.tries),
        }
        if task.hook is not None:
            state, reason = job.outcome_before_hooks()
            variables |= {"AIR_EXECUTOR_JOB_STATE": state.value, "AIR_EXECUTOR_JOB_ERROR": reason or ""}
        air: dict[str, Any] = {**filled.limits, "environment": variables}
        if filled.timeout:
            air["timeout"] = filled.timeout
        return RunRequest(id=run_id, identity=who, workload=workload, air=air, log_file=str(files.log_file(task.id)))


@functools.lru_cache(maxsize=256)  # most tasks of a job have the same
def _path(base: Path, folder: str | None, path: str | None) -> str:
    """Return a path that is relative to a job's folder."""
    return str(base / (folder or "") / (path or ""))
