"""The jobs that a manager works on: opening, reloading and closing them, and isolating the errors of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from air_executor import jsontext
from air_executor.errors import (
    AirExecutorError,
    JobChangedError,
    JobError,
    ManagedError,
    UntrustedJobError,
)
from air_executor.jobs.lookout import Lookout
from air_executor.jobs.manager.complaints import Complaints
from air_executor.jobs.manager.outcomes import Outcomes
from air_executor.jobs.manager.requests import Requests
from air_executor.jobs.manager.resume import resume
from air_executor.jobs.manager.runs import Runs
from air_executor.jobs.manager.timers import Timers
from air_executor.jobs.manager.turns import Turns
from air_executor.jobs.model import TaskStatus
from air_executor.jobs.schedule import ActiveJob
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.record import RunRecord

log = logging.getLogger(__name__)

#: A job that can't be read or written is tried again after this many seconds.
_BLOCKED_S = 1.0


class ActiveJobs:
    """The jobs that a manager works on, each with its lock.

    An error that may pass, such as a full disk, blocks the job: it is reloaded from its files a little later. An
    unexpected error fails the job. Neither affects any other job.
    """

    def __init__(self, store: JobStore, lookout: Lookout, runs: Runs, *, only: frozenset[str] | None) -> None:
        """Work on no job yet.

        :param only: names of the jobs to work on; ``None`` for all.
        """
        self._store, self._lookout, self._runs, self._only = store, lookout, runs, only
        self.outcomes = Outcomes(runs)
        self._requests = Requests(self.outcomes)
        self.turns = Turns()
        """Which of them may start the next task."""
        self._jobs: dict[str, ActiveJob] = {}
        self._locks: dict[str, KernelLock] = {}
        self.complaints = Complaints()
        #: Names of jobs that have changed since :meth:`finish_changed`.
        self._changed: set[str] = set()
        self._timers = Timers()

    def __iter__(self) -> Iterator[ActiveJob]:
        """Return an iterator over the jobs."""
        return iter(list(self._jobs.values()))

    def get(self, name: str) -> ActiveJob | None:
        """Return a job, if it is worked on."""
        return self._jobs.get(name)

    def close(self) -> None:
        """Write what is not in the jobs' files yet, and leave the jobs to other managers."""
        for name, job in self._jobs.items():
            try:
                job.files.close()
            except Exception as error:
                log.error("Job %s: the changes in its journal could not be written to tasks.json: %s", name, error)
            self._release(name)

    # Doing something with a job

    def attempt(self, job: ActiveJob, action: Callable[[ActiveJob], None]) -> None:
        """Do something that may change a job, unless it is blocked. Errors block or fail the job."""
        self._changed.add(job.name)
        self._try(job, action)

    def _try(self, job: ActiveJob, action: Callable[[ActiveJob], None]) -> None:
        if job.blocked_until_s:
            return
        try:
            action(job)
            self.complaints.clear(job.name)
        except JobChangedError:
            self._guarded(job.name, self._reload)
        except (AirExecutorError, OSError) as error:
            self._complain(job.name, error)
            job.blocked_until_s = time.monotonic() + _BLOCKED_S
        except Exception as error:
            self._give_up(job.name, error)
        if self._jobs.get(job.name) is job:
            self.turns.update(job)

    def _guarded(self, name: str, action: Callable[[str], None]) -> None:
        """Do something with the job of that name, which may not be open. Errors block or fail the job."""
        try:
            action(name)
        except (ManagedError, UntrustedJobError):
            raise
        except (AirExecutorError, OSError) as error:
            self._complain(name, error)
            if (job := self._jobs.get(name)) is not None:
                self._changed.add(name)
                job.blocked_until_s = time.monotonic() + _BLOCKED_S
            else:
                self._release(name)
                self._lookout.look_again(name, _BLOCKED_S)
        except Exception as error:
            self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        """Fail a job because of an unexpected error. It is looked at again when its files change."""
        reason = f"its manager met an error: {type(error).__name__}: {error}"
        log.error("Job %s fails, as %s", jsontext.shown(name), reason, exc_info=error)
        if (job := self._jobs.get(name)) is not None:
            self._drop(job)
        self._runs.stop_job(name, "its job could not be worked on", unwanted=True)
        try:
            JobFiles(self._store.root / name).note_failure(reason)
        except AirExecutorError as trouble:
            log.error("Job %s: its failure can't be recorded: %s", jsontext.shown(name), trouble)
        self._lookout.settle(name, self._lookout.glance(name))
        self._release(name)

    def _complain(self, name: str, error: Exception) -> None:
        self.complaints.log(name, str(error), f"Job {jsontext.shown(name)} has to wait: {error}")

    # Looking at the files

    def look(self) -> None:
        """Look at the files of the jobs that may have changed."""
        try:
            names = self._lookout.names(self._jobs)
        except AirExecutorError as error:
            self.complaints.log("", str(error), f"The jobs can't be looked at: {error}")
            return
        self.complaints.clear("")
        for name in names:
            self._guarded(name, self._look_at)

    def _look_at(self, name: str) -> None:
        job = self._jobs.get(name)
        if not self._store.has(name):
            if job is not None:
                self._note_missing(job)
                return
            self._lookout.forget(name)
            self.complaints.clear(name)
            if (self._store.root / name).is_dir():
                self._lookout.watch(name)  # a job may be about to be made there
            return
        if job is None:
            self._open(name)
        elif job.files.was_changed():
            self._reload(name)
        if (job := self._jobs.get(name)) is not None:
            job.missing_since_s = None
            self.attempt(job, self._requests.do_all)

    def _note_missing(self, job: ActiveJob) -> None:
        """Wait before a job counts as removed: ``git checkout`` replaces files, ``rm -r`` removes the folder last."""
        now_s = time.monotonic()
        job.missing_since_s = now_s if job.missing_since_s is None else job.missing_since_s
        if now_s - job.missing_since_s >= _BLOCKED_S or not job.files.path.is_dir():
            self._forget(job)
            return
        self._changed.add(job.name)
        job.blocked_until_s = job.missing_since_s + _BLOCKED_S
        self._lookout.look_again(job.name, job.blocked_until_s - now_s)

    def _open(self, name: str) -> None:
        """Begin to work on a job, if there is anything to do and no other manager does."""
        glance = self._lookout.glance(name)
        try:
            files = JobFiles(self._store.folder(name))
            files.check_folders()
            asks = files.asks()
            if self._lookout.is_settled(name) and not asks:
                return
            if files.is_ended() and not asks:
                self._lookout.unwatch(name)
                self._lookout.settle(name, glance)
                return
            self._store.check_trust(files.read_job())
            self._acquire(name, files)
            files.load()
            self._store.check_trust(files.job, files.tasks.values())  # they may have changed meanwhile
        except ManagedError as error:
            if self._only is not None:
                raise
            self._complain(name, error)
            self._lookout.look_again(name, _BLOCKED_S)
            return
        except UntrustedJobError as error:
            self._release(name)
            if self._only is not None:
                raise
            self._lookout.settle(name, glance)
            self._complain(name, error)
            return
        except JobError as error:
            self._lookout.watch(name)  # somebody may fix it
            self._lookout.settle(name, glance)
            self._release(name)
            self.complaints.log(name, str(error), f"Job {jsontext.shown(name)} can't be worked on: {error}")
            return
        self.complaints.clear(name)
        self._lookout.watch(name)
        self._take_up(files)

    def _take_up(self, files: JobFiles) -> None:
        """Work on a job as its files are now."""
        job = self._jobs[files.path.name] = ActiveJob(files)
        self.attempt(job, lambda job: resume(job, self._runs, self.outcomes))

    def _reload(self, name: str) -> None:
        """Continue a job with its files as they are now. Runs continue if the files still say ``running``."""
        job = self._jobs[name]
        if not self._store.has(name):
            self._note_missing(job)
            return
        files = JobFiles(job.files.path)
        try:
            files.load()
            self._store.check_trust(files.job, files.tasks.values())
        except UntrustedJobError as error:
            self._forget(job, "is not the one that was trusted")
            self._complain(job.name, error)
            return
        except JobError as error:
            # Its runs must not be forgotten because of that, so the job continues as it was.
            aside = ", ".join(map(str, job.files.set_aside())) or "not kept"
            log.error("%s. Job %s goes on as it was; what was there is %s", error, name, aside)
            job.blocked_until_s = 0.0
            self.attempt(job, lambda job: job.files.write())
            return
        job.files.abandon()
        self._take_up(files)

    # Leaving a job

    def _acquire(self, name: str, files: JobFiles) -> None:
        """Take the lock of a job.

        :raises ManagedError: another manager has it.
        """
        lock = files.lock()
        # Look first: opening the lock file for writing would wake those who watch the folder.
        if is_held(lock.path) or not lock.acquire(timeout_s=0):
            self._lookout.watch(name)  # the other manager may leave it
            raise ManagedError(f"another manager works on job {name}")
        self._locks[name] = lock

    def _release(self, name: str) -> None:
        """Leave a job to other managers."""
        if (lock := self._locks.pop(name, None)) is not None:
            lock.release(keep_file=True)

    def _drop(self, job: ActiveJob) -> None:
        """Stop working on a job."""
        job.files.abandon()
        del self._jobs[job.name]
        self.turns.remove(job.name)
        self._timers.remove(job.name)

    def _forget(self, job: ActiveJob, reason: str = "is gone") -> None:
        """Leave a job whose folder was removed, or holds another job now, and stop its runs."""
        log.warning("Job %s %s; its tasks are stopped", job.name, reason)
        self._lookout.forget(job.name)
        self.complaints.clear(job.name)
        self._runs.stop_job(job.name, "its job was removed", unwanted=True)
        self._release(job.name)
        self._drop(job)

    # Steps of the manager's loop

    def note_end(self, record: RunRecord) -> None:
        """Record what became of the task whose run has ended."""
        owner = self._runs.forget(record.id)
        job = None if owner is None else self._jobs.get(owner.job)
        if owner is None or job is None:
            self._runs.acknowledge(record)  # nobody waits for it any more
            return
        self._changed.add(job.name)
        job.places.leave(owner.task)
        task = job.tasks.get(owner.task)
        if task is None or task.run_id != record.id or task.status is not TaskStatus.RUNNING:
            self._runs.acknowledge(record)
            self.turns.update(job)
        else:
            self.attempt(job, lambda job: self.outcomes.record(job, task, record))

    def wake(self) -> None:
        """Do what is due now: reload blocked jobs, and make ready the tasks whose next try is due."""
        now_s = time.monotonic()
        for name in self._timers.take_due(now_s):
            job = self._jobs[name]
            self._changed.add(name)
            if not job.blocked_until_s:
                job.wake_later(now_s)
                self.turns.update(job)
            elif now_s >= job.blocked_until_s:
                self._guarded(name, self._reload)

    def finish_changed(self) -> None:
        """Write the files of jobs that have changed, if they are due, and end the jobs that are over."""
        names, self._changed = self._changed, set()
        for name in names:
            if (job := self._jobs.get(name)) is not None:
                self._try(job, self._finish)
            if (job := self._jobs.get(name)) is not None and (due_s := job.due_s()) is not None:
                self._timers.set(name, due_s)

    def _finish(self, job: ActiveJob) -> None:
        if not job.is_over:
            job.files.write_if_due()
            return
        state, error = job.outcome()
        try:
            hook = job.call_hook(state)
        except JobError as problem:  # as after an edit of its files
            log.error("Job %s: %s", job.name, problem)
            hook, error = [], "; ".join(filter(None, (error, str(problem))))
        if hook:
            job.commit(*hook)
            self._changed.add(job.name)
            return
        job.files.set_state(state, error)
        self._runs.release(job.places.workload_ids())
        glance = self._lookout.glance(job.name)
        if job.files.asks():
            self._lookout.look_again(job.name, 0.0)
        else:
            self._lookout.settle(job.name, glance)
        self._lookout.unwatch(job.name)
        self._release(job.name)
        self.complaints.clear(job.name)
        self._drop(job)

    def due_s(self) -> float:
        """Return when the next step is due even if nothing happens, on the monotonic clock."""
        return 0.0 if self._changed else self._timers.due_s()
