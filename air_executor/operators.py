"""Jobs of the standalone engine as tasks of a DAG: :class:`AirJobOperator`."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import log as airflow_log
from airflow.sdk.bases.operator import BaseOperator

from air_executor import config
from air_executor.errors import AirExecutorError, JobError, ManagedError
from air_executor.jobs import api
from air_executor.jobs.claim import Claim, ask_to_cancel
from air_executor.jobs.manager import Manager
from air_executor.jobs.model import JobState, Task
from air_executor.jobs.notes import remove_note, write_note
from air_executor.jobs.owner import Owner
from air_executor.jobs.progress import Progress, describe_failures
from air_executor.jobs.store import JobStore
from air_executor.triggers import AirJobTrigger

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

#: How often to look at the files of a job while waiting for its end, in seconds.
POLL_S = 1.0

#: Placeholders that the job fills in itself: results of other tasks, and items.
_FILLED_IN = re.compile(r"\$\{(tasks\.|item\})")

#: The arguments of a trigger, which its events have, too.
_ARGUMENTS = ("job_name", "state_dir", "owner")

#: The method that Airflow names in place of ``resume`` when a trigger failed or timed out.
_DEFERRAL_FAILED = "__fail__"


def state_dir_of(given: str | None) -> str:
    """Return where jobs are kept: ``given``, or below ``[air_executor] state_dir``."""
    return given or config.load_plain().state_dir


def results_of(state_dir: str | Path, name: str, owner: Owner | None = None) -> dict[str, Any]:
    """Return what the functions of a job have returned, by the ids of their tasks.

    :param owner: who must own the job; ``None``: anybody may.
    :raises JobError: the job has failed, and the message has the errors of its tasks; or somebody else owns it.
    """
    found = api.results(name, state_dir=state_dir)
    whose = Owner.from_document(found.job.made_by)
    if owner is not None and (whose is None or whose.place != owner.place):
        raise JobError(f"job {name} belongs to {whose or 'nobody'} now, and no longer to this task")
    if found.job.state is not JobState.COMPLETED:
        raise JobError(describe_failures(found))
    return found.values


def defer(task: BaseOperator, trigger: AirJobTrigger, until_s: float | None) -> NoReturn:
    """Defer a task until a job has ended.

    SQLite gives the ids of deleted triggers to new ones, and Airflow tells events by them. So the task may be woken by
    the event of a former try, or of another task, whose trigger was about to end. What it waits for comes back with the
    event, see :func:`is_awaited`.

    :param until_s: until when it may take, in seconds since the epoch.
    """
    timeout = None if until_s is None else timedelta(seconds=max(1.0, until_s - time.time()))
    waits_for = {"waits_for": trigger.serialize()[1], "until_s": until_s}
    task.defer(trigger=trigger, method_name="resume", kwargs=waits_for, timeout=timeout)


def is_awaited(task: BaseOperator, event: Any, waits_for: Mapping[str, Any]) -> bool:
    """Tell whether an event is that of the trigger with these arguments, and log if it is not."""
    if isinstance(event, Mapping) and all(event.get(name) == waits_for.get(name) for name in _ARGUMENTS):
        return True
    task.log.info("Another task's trigger has ended, and had the same id; this task goes on waiting: %s", event)
    return False


class AirJobOperator(BaseOperator):
    """Submits a job to the standalone engine, waits for its end, and returns what its functions returned.

    :param tasks: as in ``tasks.json``; templated.
    :param job_name: name of the job; templated. By default it is made of the DAG, the task and the DAG run.
    :param max_runners: how many of its tasks may run at once.
    :param folder: working directory of the tasks; templated. By default it is the Airflow task's.
    :param env: variables for the job's tasks; templated. Their values, and those of ``env`` in ``tasks``, are in no
        file below the state directory.
    :param state_dir: the folder that jobs are kept in, by default ``[air_executor] state_dir``.
    :param manager: ``running``: a running manager (``air-executor start``) works on the job; without one, the task
        fails. ``own``: this task works on the job itself.
    :param deferrable: wait in the triggerer, without a slot; needs a running manager.

    The job belongs to one DAG, task, run and map index. When the Airflow task runs again:

    - Another try continues the job. Tasks that have completed are not repeated; the others run as the DAG file
      describes them now. A job that is still at work is waited for.
    - A task that was cleared after a success runs its whole job again.
    - A task that was cleared after a failure, or while it was running, runs what has not completed, what the DAG file
      describes differently now, and what depends on that. A job that is still at work is stopped first.
    - If ``job_name`` is the same in each run, a later run does the whole job again, provided that the earlier run's has
      ended. Otherwise, and if the job is another task's or map index's, the Airflow task fails and names the owner.

    Without ``tasks``, and with the name of a job that no Airflow task has made, it works on that job and waits for it.

    The job is cancelled when the Airflow task is killed, marked, cleared or deleted, deferred or not.
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
        self._claim: Claim | None = None
        self._is_killed = False

    def execute(self, context: Context) -> Any:
        """Submit the job and wait."""
        state_dir = state_dir_of(self.state_dir)
        store = JobStore(state_dir)
        if self.manager == "running" and store.manager() is None:
            raise JobError(
                f"no manager works on the jobs below {store.root}: run `air-executor start --detach` with this state "
                "directory, or let the task work on the job itself with manager='own'"
            )
        owner = Owner.of(context)
        name = self.job_name or owner.job_name()
        for place in _with_secrets(self.tasks):
            self.log.warning("%s holds a secret, which the job's files would show: pass it in 'env' instead", place)
        job, tasks, values = api.describe(
            name,
            [_with_private_env(task) for task in self.tasks],
            state_dir,
            max_runners=self.max_runners,
            folder=self.folder,
            private_env=self.env,
        )
        self._claim = claim = Claim(store, job, tasks, values, owner, has_own_name=not self.job_name)
        claim.take(lambda: self._work(state_dir, Progress(store, name)))
        files = store.open(name)  # with the tasks that were there already
        self.log.info("Job %s has %d tasks; its files are in %s", name, len(files.tasks), files.path)
        if self._is_killed:
            self.on_kill()  # it was called before there was a job
        if self.deferrable:
            owned_by = claim.owner.to_document() if claim.owner else None
            limit = self.execution_timeout
            until_s = time.time() + limit.total_seconds() if isinstance(limit, timedelta) else None
            trigger = AirJobTrigger(job_name=name, state_dir=state_dir, owner=owned_by)
            self._defer(owner.instance, trigger, until_s)
        self._work(state_dir, Progress(store, name))
        return results_of(state_dir, name, claim.owner)

    def _defer(self, instance: str, trigger: AirJobTrigger, until_s: float | None) -> NoReturn:
        """Wait for the job in the triggerer.

        :param instance: this task instance.
        :param until_s: at most until then, in seconds since the epoch.
        """
        if (owner := Owner.from_document(trigger.owner)) is not None:
            write_note(state_dir_of(None), instance, trigger.state_dir, trigger.job_name, owner)
        defer(self, trigger, until_s)

    def _work(self, state_dir: str, progress: Progress) -> None:
        """Work on the job, or wait for its manager, and log its progress, until it has ended."""

        def is_done() -> bool:
            for line in progress.news_if_due(POLL_S):
                self.log.info("%s", line)
            return progress.is_over

        only = frozenset({progress.folder.name})
        while not is_done():
            if self.manager == "running":
                time.sleep(POLL_S)
                continue
            try:
                Manager(config.load_plain(state_dir), only=only, heeds_signals=False).serve(until=is_done)
            except ManagedError:
                time.sleep(POLL_S)  # another manager works on it; should it die, this one takes over

    def resume(
        self, context: Context, event: Any, waits_for: dict[str, Any] | None = None, until_s: float | None = None
    ) -> Any:
        """Continue after the deferral.

        :param waits_for: the arguments of this task's trigger, and until when it waits; not known of a former release.
        """
        mine = Owner.of(context)
        if waits_for is not None and not is_awaited(self, event, waits_for):
            self._defer(mine.instance, AirJobTrigger(**waits_for), until_s)
        return results_of(event["state_dir"], event["job_name"], mine if event.get("owner") else None)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the deferral. If it failed or timed out, cancel the job, as nobody waits for it any more."""
        mine = Owner.of(context)
        remove_note(state_dir_of(None), mine.instance)
        if next_method == _DEFERRAL_FAILED:
            store = JobStore(state_dir_of(self.state_dir))
            name = self.job_name or mine.job_name()
            with contextlib.suppress(JobError):  # there is no such job
                whose = Owner.from_document(store.open(name).job.made_by)
                if whose is not None and whose.place == mine.place:
                    ask_to_cancel(store, name, whose)
        return super().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """Cancel the job."""
        self._is_killed = True
        if (claim := self._claim) is None:
            return
        try:
            if not claim.cancel():
                return
        except AirExecutorError as error:
            self.log.error("Job %s can't be cancelled: %s", claim.name, error)
            return
        self.log.info("Job %s is cancelled", claim.name)
        if self.manager == "own":
            state_dir = state_dir_of(self.state_dir)
            with contextlib.suppress(JobError):
                Manager(config.load_plain(state_dir), only=frozenset({claim.name}), heeds_signals=False).apply()


def _with_private_env(task: Task | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a task whose variables are in none of the job's files, as their values may come from a template."""
    document = task.to_dict() if isinstance(task, Task) else task
    if not isinstance(document, Mapping) or not isinstance(env := document.get("env"), Mapping) or not env:
        return document  # whoever reads it reports what is wrong
    # The job's files have the results of other tasks anyway, so their placeholders may be there, too.
    plain = {name: value for name, value in env.items() if isinstance(value, str) and _FILLED_IN.search(value)}
    private = {name: value for name, value in env.items() if name not in plain}
    given = document.get("private_env")
    return {**document, "env": plain, "private_env": {**private, **(given if isinstance(given, Mapping) else {})}}


def _with_secrets(tasks: Sequence[Any]) -> Iterator[str]:
    """Yield the fields of tasks whose values Airflow masks in logs: the job's files would show them."""
    redact = getattr(airflow_log, "redact", None)  # not in each version
    for number, task in enumerate(tasks, 1):
        for name in ("command", "args", "arguments") if isinstance(task, Mapping) else ():
            if redact is not None and (value := task.get(name)) and redact(value) != value:
                yield f"{name!r} of task {task.get('id') or number}"
