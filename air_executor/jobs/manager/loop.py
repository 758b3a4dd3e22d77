"""The manager's life: its loop, what wakes it, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import time
from collections.abc import Callable, Iterator

from air_executor.config import Config
from air_executor.errors import ManagedError
from air_executor.jobs.lookout import Lookout
from air_executor.jobs.manager.active_jobs import ActiveJobs
from air_executor.jobs.manager.runs import Runs
from air_executor.jobs.manager.signals import waking
from air_executor.jobs.manager.starts import Starts
from air_executor.jobs.names import ABOUT, LOCK
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.backend import RunBackend
from air_executor.runs.lock import LOOKERS_S

#: The longest time to wait for something to happen, in seconds.
_LONGEST_WAIT_S = 3600.0

#: How soon to try again when a task could be started but was not, in seconds.
_START_AGAIN_S = 0.1

#: How soon to try again when the machine had no room for a task and none of this manager's has ended, in seconds.
_ROOM_AGAIN_S = 1.0


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
        backend: RunBackend | None = None,
    ) -> None:
        """Prepare, but begin nothing.

        :param poll_s: how often to look at the files even if no change is reported, in seconds.
        :param max_runners: how many tasks may run at a time, of all jobs together.
        :param only: names of the jobs to work on; ``None`` for all.
        :param heeds_signals: SIGTERM and SIGINT call :attr:`on_signal`. Only the main thread can do that.
        :param backend: where runs happen; on this machine unless given.
        """
        self._handles_signals = heeds_signals
        state_dir = os.path.abspath(config.state_dir)  # a runner's working directory is that of its task
        config = dataclasses.replace(config, serves="jobs", preload=(), launcher="own", state_dir=state_dir)
        self._max_runners = max_runners or 4 * (os.cpu_count() or 1)
        self._only = only
        self._store = JobStore(state_dir)
        self._lookout = Lookout(self._store, poll_s=poll_s, only=only)
        self._runs = Runs(backend or LocalBackend(config))
        self._jobs = ActiveJobs(self._store, self._lookout, self._runs, only=only)
        self._starts = Starts(self._store, self._runs, self._jobs.outcomes)
        self._stopping = False
        self._may_start = True
        #: When to try again what had no room, on the monotonic clock; ``None``: everything had.
        self._room_again_s: float | None = None
        self.on_signal: Callable[[], None] = self.stop
        """Called in the loop after SIGTERM or SIGINT."""
        self._is_signalled = False

    def serve(self, until: Callable[[], bool] = lambda: False) -> None:
        """Work until ``until`` returns ``True`` or :meth:`stop` is called. Live runs continue after that.

        :raises ManagedError: another manager works on these jobs.
        """
        with self._open():
            self._store.private.sweep(self._store.root)
            self._jobs.look()
            self._runs.warm_up()
            with self._waking() as wake:
                self._step()
                while not (until() or self._stopping):
                    self._wait(wake)
                    self._step()

    def apply(self) -> None:
        """Do what is asked of the jobs, and start nothing. Cancelled jobs have ended when this returns.

        :raises ManagedError: another manager works on these jobs, and does it.
        """
        with self._open(), self._waking() as wake:
            self._may_start = False
            self._jobs.look()
            self._step()
            while not self._stopping and (self._is_cancelling() or self._lookout.due_s() <= time.monotonic()):
                self._wait(wake)
                self._step()

    def _is_cancelling(self) -> bool:
        return any(job.files.job.cancelled for job in self._jobs)

    def stop(self) -> None:
        """Let :meth:`serve` return soon."""
        self._stopping = True

    def interrupt(self) -> None:
        """Stop all live runs, and start no more. The next manager starts their tasks again."""
        self._may_start = False
        self._runs.stop_all("its manager was interrupted")

    @property
    def has_let_go(self) -> bool:
        """Whether it was interrupted, and no run is live any more."""
        return not self._may_start and not self._runs

    def files(self, name: str) -> JobFiles | None:
        """Return a job as it is known here; ``None`` if it is not worked on."""
        job = self._jobs.get(name)
        return None if job is None else job.files

    def obstacle(self, name: str) -> str | None:
        """Return why nothing can be done with a job now; ``None``: nothing is in the way."""
        return self._jobs.complaints.about(name)

    # The loop

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Hold the lock of the one manager of all jobs. For some jobs it is not needed: each has a lock of its own."""
        with contextlib.ExitStack() as at_end:
            at_end.callback(self._runs.close)
            self._runs.open()
            self._store.prepare()
            if self._only is None:
                self._store.check_free(LOCK, ABOUT)
                lock = self._store.lock()
                if not lock.acquire(LOOKERS_S):
                    raise ManagedError(f"another manager works on the jobs below {self._store.root} already")
                at_end.callback(lock.release, keep_file=True)
                self._store.note_manager()
            at_end.callback(self._lookout.close)
            at_end.callback(self._jobs.close)
            yield

    def _waking(self) -> contextlib.AbstractContextManager[socket.socket]:
        return waking(self._note_signal if self._handles_signals else None)

    def _note_signal(self) -> None:
        self._is_signalled = True

    def _wait(self, wake: socket.socket) -> None:
        """Wait until something happens: a run ends, a file changes, a signal comes, or something is due."""
        due_s = min(self._lookout.due_s(), self._jobs.due_s()) - time.monotonic()
        if (ends_s := self._runs.due_in_s()) is not None:
            due_s = min(due_s, ends_s)
        if self._may_start and not self._is_full() and not self._starts.is_discouraged and self._jobs.turns:
            due_s = min(due_s, _START_AGAIN_S)
        if self._may_start and self._room_again_s is not None:
            due_s = min(due_s, self._room_again_s - time.monotonic())
        poll = select.poll()
        for fd in (wake.fileno(), self._lookout.fileno(), self._runs.fileno()):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, min(due_s, _LONGEST_WAIT_S)) * 1000)
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)

    def _step(self) -> None:
        if self._is_signalled:
            self._is_signalled = False
            self.on_signal()
        self._lookout.take_in()
        for record in self._runs.take_ends():
            self._jobs.note_end(record)
            self._room_again_s = self._room_again_s and 0.0
        if time.monotonic() >= self._lookout.due_s():
            self._jobs.look()
        self._jobs.wake()
        self._start_runs()
        self._jobs.finish_changed()

    def _is_full(self) -> bool:
        return len(self._runs) >= self._max_runners

    def _start_runs(self) -> None:
        if not self._may_start:
            return
        turns = self._jobs.turns
        if self._room_again_s is not None and time.monotonic() >= self._room_again_s:
            self._room_again_s = None
            for name in self._starts.take_roomless():
                if (roomless := self._jobs.get(name)) is not None:
                    roomless.ready.take_back()
                    turns.update(roomless)
        while not self._is_full() and not self._starts.is_discouraged and (job := turns.next()) is not None:
            self._jobs.attempt(job, self._starts.start_next)
        turns.end_round()
        if self._starts.has_roomless and self._room_again_s is None:
            self._room_again_s = time.monotonic() + _ROOM_AGAIN_S
