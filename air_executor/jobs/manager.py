"""The manager: starts a runner for each task whose turn it is, and keeps the jobs' files true.

It holds nothing that is not in the files. What it does next follows from them, so it may be killed at any moment: the
next one goes on, with the runners that are still there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import select
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from air_executor import jsontext
from air_executor.config import Config
from air_executor.errors import (
    AirExecutorError,
    JobChangedError,
    JobError,
    ManagedError,
    ProtocolError,
    RecordError,
    UntrustedJobError,
)
from air_executor.jobs import inbox, templates
from air_executor.jobs.inbox import Ask
from air_executor.jobs.logs import separate_logs
from air_executor.jobs.lookout import Lookout
from air_executor.jobs.model import OUTSIDE, JobState, Task, TaskStatus
from air_executor.jobs.owner import is_of
from air_executor.jobs.private import VARIABLE as PRIVATE_DIR
from air_executor.jobs.queue import read_queued
from air_executor.jobs.schedule import ActiveJob, in_order
from air_executor.jobs.store import JobFiles, JobStore, base_folder
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs import limits
from air_executor.runs import record as runs
from air_executor.runs.backend import RunRequest
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.record import UNWANTED, Identity, RunRecord, RunState, now
from air_executor.runs.results import read_result
from air_executor.runs.store import RunStore

log = logging.getLogger(__name__)

#: A task whose runner died under it is begun again so often, beside its own retries: it is not to blame.
_INTERRUPTIONS = 10

#: A job that can't be written or read is tried again after so many seconds.
_BLOCKED_S = 1.0

#: A manager that nothing wakes wakes up after so many seconds.
_LONGEST_WAIT_S = 3600.0

#: A job has at most so many runners, whatever its file says.
_MAX_SLOTS = 10_000


class Manager:
    """Works on all jobs below one state directory, or on some of them."""

    def __init__(
        self,
        config: Config,
        *,
        poll_s: float = 5.0,
        max_runners: int | None = None,
        only: frozenset[str] | None = None,
        heeds_signals: bool = True,
    ) -> None:
        """Prepare, but begin nothing.

        :param poll_s: how often it looks at the files though nothing told it to, in seconds.
        :param max_runners: how many tasks may run at a time, of all jobs together.
        :param only: names of the jobs to work on; ``None`` for all.
        :param heeds_signals: SIGTERM and SIGINT end :meth:`serve`; otherwise they do what they did.
        """
        self._heeds_signals = heeds_signals
        state_dir = os.path.abspath(config.state_dir)  # a runner's working directory is that of its task
        self._config = dataclasses.replace(config, serves="jobs", preload=(), launcher="own", state_dir=state_dir)
        self._runs = RunStore(state_dir)
        self._store = JobStore(state_dir)
        self._base = base_folder(state_dir)
        self._max_runners = max_runners or 4 * (os.cpu_count() or 1)
        self._only = only
        self._backend: LocalBackend
        self._lookout = Lookout(self._store, poll_s=poll_s, only=only)
        self._jobs: dict[str, ActiveJob] = {}
        #: The locks of these jobs: each has one manager.
        self._locks: dict[str, KernelLock] = {}
        #: Jobs whose runs are live, with the ids of their tasks, by the ids of the runs.
        self._live: dict[str, tuple[str, str]] = {}
        #: What was said last of jobs that have to wait.
        self._complaints: dict[str, str] = {}
        self._stopping = False
        self._may_start = True
        #: What SIGTERM and SIGINT do.
        self.on_signal = self.stop
        self._is_signalled = False

    # Life

    def serve(self, until: Callable[[], bool] = lambda: False) -> None:
        """Work until ``until`` says so, or :meth:`stop` is called. Runners that are under way outlive this.

        :raises ManagedError: another manager works on these jobs.
        """
        with self._alone():
            self._store.private.sweep(self._store.root)
            self._look()
            self._backend.warm_up()
            with self._listening_to_signals() as wake:
                self._step()
                while not (until() or self._stopping):
                    self._wait(wake)
                    self._step()

    def apply(self) -> None:
        """Do what is asked of the jobs, and start nothing. What is cancelled has ended when this returns.

        :raises ManagedError: another manager works on these jobs, and does it.
        """
        with self._alone(), self._listening_to_signals() as wake:
            self._may_start = False
            self._look()
            self._step()
            while not self._stopping and any(job.files.job.cancelled for job in self._jobs.values()):
                self._wait(wake)
                self._step()

    def interrupt(self) -> None:
        """Stop what runs, and let :meth:`serve` return when it has ended. It is begun again with the next manager."""
        self._may_start = False
        for run_id in self._live:
            self._backend.stop(run_id, "its manager was interrupted", unwanted=True)

    @property
    def has_let_go(self) -> bool:
        """Whether it was interrupted, and nothing runs any more."""
        return not (self._may_start or self._live)

    def files(self, name: str) -> JobFiles | None:
        """Return a job that it works on, as it knows it."""
        job = self._jobs.get(name)
        return None if job is None else job.files

    def stop(self) -> None:
        """Let :meth:`serve` return soon."""
        self._stopping = True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the one manager of all jobs, if it is for all; otherwise each job's own lock will do."""
        self._runs.prepare()
        with contextlib.suppress(AirExecutorError):
            self._runs.mark_open()
        self._store.prepare()
        lock = self._store.lock()
        if self._only is None and not lock.acquire(timeout_s=0):
            raise ManagedError(f"another manager works on the jobs below {self._store.root} already")
        try:
            if self._only is None:
                self._store.note_manager()
            self._backend = LocalBackend(self._runs, self._config)
            try:
                yield
            finally:
                for name, job in self._jobs.items():
                    try:
                        job.files.close()
                    except Exception as error:
                        log.error("Job %s: what is in its journal could not be written whole: %s", name, error)
                    self._let_go(name)
                self._lookout.close()
                self._backend.close()
        finally:
            lock.release(keep_file=True)

    @contextlib.contextmanager
    def _listening_to_signals(self) -> Iterator[socket.socket]:
        receiver, sender = socket.socketpair()
        with receiver, sender:
            receiver.setblocking(False)
            sender.setblocking(False)
            if not self._heeds_signals:
                yield receiver
                return
            before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            numbers = (signal.SIGTERM, signal.SIGINT)
            handlers = {number: signal.signal(number, self._note_signal) for number in numbers}
            try:
                yield receiver
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(before)

    def _note_signal(self, *_: object) -> None:
        self._is_signalled = True

    def _wait(self, wake: socket.socket) -> None:
        """Wait until something happens: a run ends, a file changes, a signal comes, or it is time for something."""
        due_s = [self._lookout.due_s() - time.monotonic(), _LONGEST_WAIT_S]
        if (ask_s := self._backend.due_in_s()) is not None:
            due_s.append(ask_s)
        for job in self._jobs.values():
            if (write_s := job.files.due_in_s()) is not None:
                due_s.append(write_s)
            if job.later:
                due_s.append(job.later[0][0] - time.monotonic())
            if job.blocked_until_s:
                due_s.append(job.blocked_until_s - time.monotonic())
        if self._could_start():
            due_s.append(0.1)  # something could not be started
        poll = select.poll()
        for fd in (wake.fileno(), self._lookout.fileno(), self._backend.fileno()):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, min(due_s)) * 1000)
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)

    def _step(self) -> None:
        if self._is_signalled:
            self._is_signalled = False
            self.on_signal()
        self._lookout.take_in()
        for record in self._backend.take_ends():
            self._ended(record)
        if time.monotonic() >= self._lookout.due_s():
            self._look()
        for job in list(self._jobs.values()):
            if job.blocked_until_s and time.monotonic() >= job.blocked_until_s:
                self._guarded(job.name, self._reload)
        for job in list(self._jobs.values()):
            job.wake_later(time.monotonic())
        self._start_runs()
        for job in list(self._jobs.values()):
            self._try(job, self._finish)

    def _try(self, job: ActiveJob, what: Callable[[ActiveJob], None]) -> None:
        """Do something with a job. If it can't be written or read now, it is left, and begun anew from its files."""
        if job.blocked_until_s:
            return
        try:
            what(job)
            self._complaints.pop(job.name, None)
        except JobChangedError:
            self._guarded(job.name, self._reload)
        except (AirExecutorError, OSError) as error:
            self._complain(job.name, error)
            job.blocked_until_s = time.monotonic() + _BLOCKED_S
        except Exception as error:
            self._give_up(job.name, error)

    def _guarded(self, name: str, what: Callable[[str], None]) -> None:
        """Do something with the job of that name; whatever goes wrong hurts no other."""
        try:
            what(name)
        except (ManagedError, UntrustedJobError):
            raise
        except (AirExecutorError, OSError) as error:
            self._complain(name, error)
            if (job := self._jobs.get(name)) is not None:
                job.blocked_until_s = time.monotonic() + _BLOCKED_S
            else:
                self._let_go(name)
                self._lookout.look_again(name, _BLOCKED_S)
        except Exception as error:
            self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        """Let a job fail for an error that nobody thought of. When its files change, it is looked at again."""
        reason = f"its manager met an error: {type(error).__name__}: {error}"
        log.error("Job %s fails, as %s", name, reason, exc_info=error)
        job = self._jobs.pop(name, None)
        self._stop_runs(name, "its job could not be worked on")
        if job is not None:
            job.files.abandon()
        try:
            JobFiles(self._store.root / name).note_failure(reason)
        except AirExecutorError as trouble:
            log.error("Job %s: that it fails can't be written: %s", name, trouble)
        self._lookout.settle(name, self._lookout.glance(name))
        self._let_go(name)

    def _stop_runs(self, name: str, reason: str) -> None:
        """Stop the runs of a job that nobody waits for any more."""
        for run_id, (owner, _) in self._live.items():
            if owner == name:
                self._backend.stop(run_id, reason, unwanted=True)

    def _complain(self, name: str, error: Exception) -> None:
        """Say once why a job has to wait."""
        if self._complaints.get(name) != str(error):
            log.error("Job %s has to wait: %s", jsontext.shown(name), error)
        self._complaints[name] = str(error)

    # Looking at the files

    def _look(self) -> None:
        try:
            names = self._lookout.names(self._jobs)
        except AirExecutorError as error:
            if self._complaints.get("") != str(error):
                log.error("The jobs can't be looked at: %s", error)
            self._complaints[""] = str(error)
            return
        self._complaints.pop("", None)
        for name in names:
            self._guarded(name, self._look_at)

    def _look_at(self, name: str) -> None:
        job = self._jobs.get(name)
        if not self._store.has(name):
            if job is not None:
                self._miss(job)
                return
            self._lookout.forget(name)
            self._complaints.pop(name, None)
            if (self._store.root / name).is_dir():
                self._lookout.watch(name)  # somebody is about to make one
            return
        if job is None:
            self._open(name)
        elif job.files.was_changed():
            self._reload(name)
        if (job := self._jobs.get(name)) is not None:
            job.missed_s = None
            self._try(job, self._heed)

    def _miss(self, job: ActiveJob) -> None:
        """Find a job's files gone. ``git checkout`` makes them anew, and ``rm -r`` removes the folder last."""
        now_s = time.monotonic()
        job.missed_s = now_s if job.missed_s is None else job.missed_s
        if now_s - job.missed_s >= _BLOCKED_S or not job.files.path.is_dir():
            self._forget(job)
            return
        job.blocked_until_s = job.missed_s + _BLOCKED_S
        self._lookout.look_again(job.name, job.blocked_until_s - now_s)

    def _open(self, name: str) -> None:
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
            lock = files.lock()
            # Looked at first, as a lock file that is opened for writing and closed tells those who watch the folder.
            if is_held(lock.path) or not lock.acquire(timeout_s=0):
                self._lookout.watch(name)  # for when it is let go
                raise ManagedError(f"another manager works on job {name}")
            self._locks[name] = lock
            files.load()
        except ManagedError as error:
            if self._only is not None:
                raise
            self._complain(name, error)
            self._lookout.look_again(name, _BLOCKED_S)
            return
        except UntrustedJobError as error:
            if self._only is not None:
                raise
            self._lookout.settle(name, glance)
            self._complain(name, error)
            return
        except JobError as error:
            self._lookout.watch(name)  # for who mends it
            self._lookout.settle(name, glance)
            self._let_go(name)
            if self._complaints.get(name) != str(error):
                log.error("Job %s can't be worked on: %s", jsontext.shown(name), error)
            self._complaints[name] = str(error)
            return
        self._complaints.pop(name, None)
        job = self._jobs[name] = ActiveJob(files)
        self._lookout.watch(name)
        self._try(job, self._resume)

    def _let_go(self, name: str) -> None:
        """Leave a job to other managers."""
        if (lock := self._locks.pop(name, None)) is not None:
            lock.release(keep_file=True)

    def _forget(self, job: ActiveJob, reason: str = "is gone") -> None:
        """Let go of a job whose folder was removed, or is another job's now, and stop its runs."""
        log.warning("Job %s %s; its tasks are stopped", job.name, reason)
        self._lookout.forget(job.name)
        self._complaints.pop(job.name, None)
        self._stop_runs(job.name, "its job was removed")
        job.files.abandon()
        self._let_go(job.name)
        del self._jobs[job.name]

    def _reload(self, name: str) -> None:
        """Go on with files that somebody has changed, or checked out. What runs, runs on."""
        job = self._jobs[name]
        if not self._store.has(name):
            self._miss(job)
            return
        files = JobFiles(job.files.path)
        try:
            files.load()
            self._store.check_trust(files.job)
        except UntrustedJobError as error:
            self._forget(job, "is another one now")
            self._complain(job.name, error)
            return
        except JobError as error:
            # What runs must not be forgotten for it. The job goes on as it was.
            aside = ", ".join(map(str, job.files.set_aside())) or "not kept"
            log.error("%s. Job %s goes on as it was; what was there is %s", error, name, aside)
            job.blocked_until_s = 0.0
            self._try(job, lambda job: job.files.write())
            return
        job.files.abandon()
        changed = self._jobs[name] = ActiveJob(files)
        self._try(changed, self._resume)

    def _resume(self, job: ActiveJob) -> None:
        """Find the runs of the tasks that are running as the files say, and stop those that are nobody's."""
        spoilt = ", ".join(map(str, job.files.spoilt_lines[:20]))
        if (aside := job.files.mend_journal()) is not None:
            log.error("Job %s: its journal can't be understood in line %s, and is %s now", job.name, spoilt, aside)
        self._write_down(job)
        for task in list(job.tasks.values()):  # what has ended may have queued more
            if task.status is TaskStatus.RUNNING and not task.is_for_items:
                self._find_run(job, task)
        known = {task.run_id for task in job.tasks.values() if task.status is TaskStatus.RUNNING}
        for run_id, (name, _) in list(self._live.items()):
            if name == job.name and run_id not in known:
                del self._live[run_id]
                self._backend.stop(run_id, "the job's files say something else now", unwanted=True)

    def _write_down(self, job: ActiveJob, *changed: Task) -> None:
        """Commit what has changed, and what has followed from reading the job."""
        tasks = {task.id: task for task in (*job.unwritten, *changed)}
        if tasks:
            job.files.commit(*tasks.values())
        job.unwritten = []

    def _find_run(self, job: ActiveJob, task: Task) -> None:
        try:
            record = self._runs.read(task.run_id or "")
        except RecordError:
            # Without a folder it was never begun, as the disk was full: that may last.
            was_begun = task.run_id in self._runs.ids()
            self._interrupted(job, task, "its run is not on record", counts=was_begun)
            return
        if record.state is RunState.QUEUED:
            record = self._take_back(record)
        slots = range(min(job.files.job.max_runners, _MAX_SLOTS))
        slot = next((n for n in slots if job.workload_id(n) == record.identity.workload_id), -1)
        job.running[task.id] = slot
        known = self._live.get(record.id)
        self._live[record.id] = job.name, task.id
        if record.state.is_end:
            self._ended(record)
        elif known is None:
            self._backend.follow(record)

    def _take_back(self, record: RunRecord) -> RunRecord:
        """End a run that was ordered by a manager which is gone, unless its runner has begun."""
        lock = self._runs.lock(record.identity.workload_id)
        if not lock.acquire(timeout_s=0):
            return record
        try:
            record = self._runs.read(record.id)
            if record.state is RunState.QUEUED:
                # A runner that comes yet finds that, and leaves.
                record = self._runs.write(record.advance(RunState.LOST, reason="its manager died before it was born"))
            return record
        finally:
            lock.release()

    # Requests

    def _heed(self, job: ActiveJob) -> None:
        for ask in job.files.asks():
            try:
                if ask.fault is not None:
                    raise JobError(ask.fault)
                self._do(self._jobs.get(job.name, job), ask)  # the last request may have begun it anew
            except JobChangedError:
                raise
            except JobError as error:
                log.error("Job %s: a request is refused: %s", job.name, error)
                inbox.refuse(ask, str(error))
            except (AirExecutorError, OSError):
                raise
            except Exception as error:
                inbox.refuse(ask, f"the manager met an error: {type(error).__name__}: {error}")
                raise
            else:
                ask.path.unlink(missing_ok=True)

    def _do(self, job: ActiveJob, ask: Ask) -> None:
        where = f"a request to {ask.action}"
        if ask.action in ("cancel", "pause", "resume") and job.files.job.state.is_end:
            raise JobError(f"it is not possible to {ask.action} a job that has ended")
        if ask.action == "queue":
            asked = [{"queued_by": OUTSIDE, **each} for each in ask.tasks]
            tasks = [Task.from_dict(each, job_name=job.name, where=where) for each in asked]
            self._add(job, tasks, where)
        elif ask.action == "cancel":
            if all(task.status.is_end for task in job.tasks.values()):
                return  # there is nothing to cancel
            if is_of(job.files.job.made_by, ask.document.get("owner")):
                self._cancel(job)
            else:
                log.info("Job %s is not cancelled: it belongs to another try by now", job.name)
        elif ask.action in ("pause", "resume"):
            job.files.job.paused = ask.action == "pause"
            job.files.write()
        elif ask.action in ("retry", "reset"):
            self._again(job, ask)
        else:
            raise JobError(f"it is not known how to {ask.action!r}")

    def _add(self, job: ActiveJob, tasks: list[Task], where: str) -> None:
        # Of a request that was followed before the manager died, the tasks are there already.
        if job.files.job.state.is_end:
            job.drop_hooks()  # they run again at its next end
        fresh = [task for task in tasks if task.id not in job.tasks or job.tasks[task.id].created_at != task.created_at]
        for task in job.enlist(*job.files.add(fresh, where)):
            job.files.forget_text(task)
        job.files.set_state(JobState.WORKING)

    def _cancel(self, job: ActiveJob) -> None:
        job.files.job.cancelled = True
        for task in job.cancel():
            job.files.forget_text(task)
        for run_id, (name, _) in self._live.items():
            if name == job.name:
                self._backend.stop(run_id, "the job was cancelled")
        job.files.write()

    def _again(self, job: ActiveJob, ask: Ask) -> None:
        if job.running:
            raise JobError("tasks of the job are running; cancel it first")
        files = job.files
        unknown = [each for each in ask.tasks if each not in job.tasks]
        if unknown:
            raise JobError(f"there are no tasks {', '.join(map(repr, unknown))}")
        if ask.action == "reset":
            job.reset()
            files.job.generation += 1
            separate_logs(files)
        else:
            job.retry(ask.tasks)
        files.job.cancelled = files.job.paused = False
        files.set_state(JobState.WAITING)
        again_job = self._jobs[job.name] = ActiveJob(files)
        self._write_down(again_job)

    # Runs

    def _could_start(self) -> bool:
        """Tell whether there is a task whose turn it is, and a place for it."""
        is_willing = any(job.is_willing and job.free_slot() is not None for job in self._jobs.values())
        return self._may_start and is_willing and not self._is_full()

    def _is_full(self) -> bool:
        return len(self._live) >= self._max_runners

    def _start_runs(self) -> None:
        """Start what may start: of the jobs with the highest priority first, one task of each in turn."""
        if not self._may_start or self._is_full():
            return
        for willing in in_order(self._jobs.values()):
            while willing and not self._is_full():
                for job in list(willing):
                    if self._is_full():
                        return
                    slot = job.free_slot()
                    if slot is None or not job.ready:
                        willing.remove(job)
                        continue
                    self._try(job, lambda job, slot=slot: self._start(job, slot))  # type: ignore[misc]
                    if job.blocked_until_s or self._jobs.get(job.name) is not job:
                        willing.remove(job)

    def _start(self, job: ActiveJob, slot: int) -> None:
        task = job.tasks[job.ready.first()]
        if task.is_for_items:
            job.ready.pop()
            self._write_down(job, *job.begin_items(task))
            return
        try:
            filled = templates.fill(task, job.tasks)
            environment = self._store.private.environment(job.files.job, filled)
        except JobError as error:
            job.ready.pop()
            task.tries, task.started_at = task.tries + 1, now()
            self._failed(job, task, str(error), is_final=isinstance(error, templates.MissingInputError))
            return
        run_id = str(uuid.uuid4())
        before = dataclasses.replace(task)
        task.status, task.started_at, task.run_id = TaskStatus.RUNNING, now(), run_id
        task.tries += 1
        task.retry_at = task.error = task.exit_code = task.completed_at = None
        try:
            filled = dataclasses.replace(filled, tries=task.tries, run_id=run_id)
            request = self._request(job, filled, slot, environment)
            if job.files.job.state is not JobState.WORKING:
                job.files.set_state(JobState.WORKING)
            job.files.commit(task)
            record = runs.queued(run_id, request.identity, limits=limits.public(request.air), log_file=request.log_file)
            self._backend.order(request, record)
        except ProtocolError as error:  # too large, or nested too deeply: that it is, however often it is tried
            job.ready.pop()
            self._failed(job, task, f"it can't be handed to a runner: {error}", is_final=True)
            return
        except (AirExecutorError, OSError):
            job.tasks[task.id] = before
            job.files.forget_text(before)
            raise
        job.ready.pop()
        job.running[task.id] = slot
        job.places = max(job.places, slot + 1)
        self._live[run_id] = job.name, task.id

    def _request(self, job: ActiveJob, task: Task, slot: int, environment: dict[str, str]) -> RunRequest:
        files = job.files
        folder = self._base / (files.job.folder or "")
        workload: dict[str, Any] = {"cwd": str(folder / (task.cwd or ""))}
        if task.function is not None:
            workload |= {"function": task.function, "arguments": task.arguments}
        else:
            workload |= {"argv": [task.command, *task.args], "shell": task.shell}
        if env_files := [str(folder / each) for each in (files.job.env_file, task.env_file) if each]:
            workload["env_files"] = env_files
        variables = {
            **environment,
            PRIVATE_DIR: str(self._store.private.root),
            "AIR_EXECUTOR_STATE_DIR": str(self._runs.root),
            "AIR_EXECUTOR_JOB": job.name,
            "AIR_EXECUTOR_TASK": task.id,
            "AIR_EXECUTOR_RUN": task.run_id or "",
            "AIR_EXECUTOR_TRY": str(task.tries),
        }
        if task.hook is not None:
            state, reason = job.outcome_before_hooks()
            variables |= {"AIR_EXECUTOR_JOB_STATE": state.value, "AIR_EXECUTOR_JOB_ERROR": reason or ""}
        air: dict[str, Any] = {**task.limits, "environment": variables}
        if task.timeout:
            air["timeout"] = task.timeout
        identity = Identity(
            kind="job",
            workload_id=job.workload_id(slot),
            name=f"{job.name}/{task.id}",
            job_name=job.name,
            task_id=task.id,
            try_number=task.tries,
        )
        return RunRequest(
            id=task.run_id or "",
            identity=identity,
            workload=workload,
            air=air,
            log_file=str(files.log_file(task.id)),
        )

    def _ended(self, record: RunRecord) -> None:
        name, task_id = self._live.pop(record.id, (None, None))
        job = self._jobs.get(name or "")
        if job is None or task_id is None:
            self._mark_reported(record)  # nobody waits for it any more: its record may go
            return
        job.running.pop(task_id, None)
        task = job.tasks.get(task_id)
        if task is None or task.run_id != record.id or task.status is not TaskStatus.RUNNING:
            self._mark_reported(record)
            return
        self._try(job, lambda job: self._settle(job, task, record))

    def _settle(self, job: ActiveJob, task: Task, record: RunRecord) -> None:
        """Write down what became of a task."""
        task.exit_code = record.exit_code
        if record.state is RunState.SUCCEEDED:
            self._completed(job, task, record)
        elif _is_interruption(record):
            self._interrupted(job, task, record.reason or "its runner died")
        else:
            self._failed(job, task, record.reason or f"it ended with exit code {record.exit_code}", record)
        self._mark_reported(record)

    def _mark_reported(self, record: RunRecord) -> None:
        try:
            self._runs.mark_reported(record)
        except AirExecutorError as error:
            log.warning("That the end of run %s is known is not on record: %s", record.id, error)

    def _completed(self, job: ActiveJob, task: Task, record: RunRecord) -> None:
        folder = self._runs.folder(record.id)
        where = f"what task {task.id} queued"
        try:
            queued = [
                Task.from_dict({**each, "queued_by": task.id}, job_name=job.name, where=where)
                for each in read_queued(folder)
            ]
            result = read_result(folder, is_json=task.function is not None)
            new = job.files.add(queued, where)
        except JobError as error:
            self._failed(job, task, str(error))
            return
        task.status, task.completed_at, task.error = TaskStatus.COMPLETED, record.ended_at or now(), None
        task.result = result
        self._write_down(job, task, *new, *job.enlist(*new), *job.follow_up(task))
        if job.files.job.cancelled:
            self._cancel(job)

    def _interrupted(self, job: ActiveJob, task: Task, reason: str, *, counts: bool = True) -> None:
        task.interruptions += counts
        if job.files.job.cancelled:
            self._failed(job, task, reason)
            return
        if task.interruptions > _INTERRUPTIONS:
            self._failed(job, task, f"interrupted {task.interruptions} times; the last time: {reason}")
            return
        log.warning("Task %s of job %s was interrupted and is begun again: %s", task.id, job.name, reason)
        task.tries = max(0, task.tries - 1)
        task.status, task.error, task.run_id = TaskStatus.PENDING, reason, None
        job.files.commit(task)
        job.enlist(task)

    def _failed(
        self, job: ActiveJob, task: Task, reason: str, record: RunRecord | None = None, *, is_final: bool = False
    ) -> None:
        """Try a task again, or note its end.

        :param record: the run that failed, if it is because of that.
        :param is_final: a further try would fail as well.
        """
        task.error, task.completed_at = reason, now()
        is_cancelled = job.files.job.cancelled
        may_try = not is_cancelled and not is_final and task.tries <= task.retries
        if may_try and _is_tried_again(task, record):
            task.status = TaskStatus.PENDING
            task.retry_at = (datetime.now(tz=timezone.utc) + timedelta(seconds=task.wait_s())).isoformat()
            job.files.commit(task)
            job.enlist(task)
            return
        has_failed = not job.files.job.cancelled or (record is not None and record.state is RunState.FAILED)
        task.status = TaskStatus.FAILED if has_failed else TaskStatus.CANCELLED
        self._write_down(job, task, *job.follow_up(task))

    def _finish(self, job: ActiveJob) -> None:
        """Write the files, and end a job with which nothing is left to do."""
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
            self._write_down(job, *hook)
            return
        job.files.set_state(state, error)
        job.files.close()
        for slot in range(job.places):
            lock = self._runs.lock(job.workload_id(slot))
            if lock.acquire(timeout_s=0, create=False):
                lock.release()
        glance = self._lookout.glance(job.name)
        if not job.files.asks():
            self._lookout.settle(job.name, glance)
        self._lookout.unwatch(job.name)
        self._let_go(job.name)
        self._complaints.pop(job.name, None)
        del self._jobs[job.name]


def _is_interruption(record: RunRecord) -> bool:
    """Tell whether a run ended without its task having had a chance to end."""
    return record.state is RunState.LOST or (record.state is RunState.KILLED and record.outcome in (None, UNWANTED))


def _is_tried_again(task: Task, record: RunRecord | None) -> bool:
    """Tell whether a failure is one after which the task is tried again."""
    if not task.retry_on:
        return True
    if record is None:
        return False
    is_killed = record.signal in signal.Signals.__members__
    return (128 + signal.Signals[str(record.signal)] if is_killed else record.exit_code) in task.retry_on
