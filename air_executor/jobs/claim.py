"""How a task instance of Airflow gets its job: it makes the job, continues it, starts it again, or is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable

from air_executor.errors import AirExecutorError, JobError
from air_executor.jobs.model import Job, JobState, Task
from air_executor.jobs.owner import Owner, Since
from air_executor.jobs.renewal import Keep, is_same, renew
from air_executor.jobs.store import JobFiles, JobStore, Values

log = logging.getLogger(__name__)

#: How long to wait for the lock of a job that has ended, in seconds.
_LOCK_S = 10.0


class Claim:
    """The claim of a task instance on a job."""

    def __init__(
        self, store: JobStore, job: Job, tasks: list[Task], values: Values, owner: Owner, *, has_own_name: bool
    ) -> None:
        """Prepare, but read nothing.

        :param job: the job that is wanted, with ``tasks`` and the ``values`` of their private variables.
        :param has_own_name: its name is derived from the owner, so no other owner can use it.
        """
        self._store = store
        self._job = job
        self._tasks = tasks
        self._values = values
        self._owner = owner
        self._has_own_name = has_own_name
        self._is_taken = False
        self.owner: Owner | None = None
        """The try that owns the job, once it is taken; ``None``: nobody owns it, and this one only waits for it."""
        job.made_by = owner.to_document()

    @property
    def name(self) -> str:
        """The job's name."""
        return self._job.name

    def take(self, wait_for_end: Callable[[], None]) -> None:
        """Make this task instance the owner of the job, with the wanted definition.

        :param wait_for_end: works on the job, or waits for its manager, until it has ended.
        :raises JobError: the job belongs to another owner, or can't have the definition.
        :raises StateDirError: it can't be written.
        """
        while not (self._make() or self._go_on()):
            wait_for_end()

    def cancel(self) -> bool:
        """Ask for a cancellation of the job, if it was taken.

        :return: whether it was.
        :raises AirExecutorError: the request can't be written.
        """
        if self._is_taken:
            ask_to_cancel(self._store, self.name, self.owner)
        return self._is_taken

    def _has(self) -> bool:
        return self.name in self._store.names()

    def _make(self) -> bool:
        if self._has():
            return False
        try:
            self._store.create(self._job, self._tasks, self._values)
        except AirExecutorError:
            if self._has():
                return False  # another process has made it meanwhile
            raise
        return self._is_now(self._owner)

    def _is_now(self, owner: Owner | None) -> bool:
        self.owner, self._is_taken = owner, True
        return True

    def _go_on(self) -> bool:
        """Take the existing job.

        :return: whether it is taken; ``False``: it must end first.
        """
        files = self._store.open(self.name)
        former = Owner.from_document(files.job.made_by)
        if former is None and not self._tasks:
            self._is_now(None)
            log.info("Job %s is there already, and is %s", self.name, files.job.state.value)
            if files.job.state in (JobState.FAILED, JobState.CANCELLED):
                self._store.ask(self.name, "retry")
            return True
        is_over, is_completed = _is_over(files), files.job.state is JobState.COMPLETED
        keep = self._keep(files, former, is_over=is_over)
        if keep is None:
            return self._is_now(former)
        if is_over:
            return self._renew(files, keep)
        self._store.check_trust(files.job)  # no manager would cancel it
        if not (_is_being_cancelled(files) or is_completed):
            log.info("Job %s still works for %s, and is stopped", self.name, former)
            ask_to_cancel(self._store, self.name, former)
        return False

    def _renew(self, looked_at: JobFiles, keep: Keep) -> bool:
        files = self._store.files(self.name)
        lock = files.lock()
        if not lock.acquire(timeout_s=_LOCK_S):
            raise JobError(f"job {self.name} has ended, and somebody works on it: try again later")
        try:
            files.load()
            if not _is_over(files) or files.job.made_by != looked_at.job.made_by:
                return False  # it has changed meanwhile
            if keep is not Keep.NOTHING:
                self._store.check_trust(files.job)
            changed = {
                task_id
                for task_id, given in self._values.items()
                if task_id is not None and self._store.private.has_others(files.job, given, task_id)
            }
            for task_id, given in self._values.items():
                self._store.private.keep(files.job, given, task_id)
            self._store.private.trust(files.job)
            renew(files, self._job, self._tasks, keep, changed)
        finally:
            lock.release(keep_file=True)
        self._store.announce(self.name)
        return self._is_now(self._owner)

    def _keep(self, files: JobFiles, former: Owner | None, *, is_over: bool) -> Keep | None:
        """Return what is kept of the existing job; ``None``: all of it, as it goes on or has completed.

        :raises JobError: it belongs to another owner.
        """
        is_completed = files.job.state is JobState.COMPLETED
        if former is None:
            return self._keep_of_nobody(files, is_completed=is_completed)
        mine = self._owner
        if former.place != mine.place:
            is_of_task = (former.dag_id, former.task_id, former.map_index) == (
                mine.dag_id,
                mine.task_id,
                mine.map_index,
            )
            if is_of_task and is_over:
                log.info("Job %s was that of %s, and has ended; it begins anew", self.name, former)
                return Keep.NOTHING
            more = "" if is_over else f", and is {files.job.state.value}"
            raise JobError(
                f"job {self.name} is that of {former}{more}. Each needs a name of its own: leave job_name out, or put "
                "{{ run_id }} and, if it is mapped, {{ ti.map_index }} into it"
            )
        since = mine.since(former)
        if since is Since.NOTHING:
            return None
        if since is Since.CLEARED:
            return Keep.NOTHING if is_completed and is_over else Keep.UNCHANGED
        is_working = not (is_over or _is_being_cancelled(files))
        return None if is_completed or is_working else Keep.COMPLETED

    def _keep_of_nobody(self, files: JobFiles, *, is_completed: bool) -> Keep:
        """Return what is kept of a job without an owner. Former releases did not record the owner."""
        if self._has_own_name:
            return Keep.NOTHING if is_completed else Keep.COMPLETED
        if not is_completed and is_same(files, self._job, self._tasks):
            return Keep.COMPLETED
        raise JobError(
            f"there is a job {self.name} already below {self._store.root}, and no task of Airflow has made it. Give "
            "this one another job_name, or remove the other"
        )


def ask_to_cancel(store: JobStore, name: str, owner: Owner | None) -> None:
    """Ask for a cancellation of a job, if it still belongs to ``owner`` when its manager reads the request.

    :param owner: ``None``: whoever owns it.
    :raises AirExecutorError: there is no such job, or the request can't be written.
    """
    store.ask(name, "cancel", **({"owner": owner.to_document()} if owner else {}))


def _is_over(files: JobFiles) -> bool:
    return files.job.state.is_end and files.is_over()


def _is_being_cancelled(files: JobFiles) -> bool:
    return files.job.cancelled or any(ask.action == "cancel" for ask in files.asks())
