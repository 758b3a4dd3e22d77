"""Processes that wait for an order, and become its runner: one is forked ahead, others have executed a command."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from air_executor.config import Config
from air_executor.launcher import protocol
from air_executor.launcher.exec import spawn_by_exec
from air_executor.launcher.order import Order
from air_executor.launcher.server.backoff import Backoff
from air_executor.machine import system
from air_executor.runner.turns import READY, Turns
from air_executor.runner.usage import Spent
from air_executor.runs.backend import RunRequest
from air_executor.runs.codes import EXIT_RECORDED, EXIT_RUNNER_ERROR
from air_executor.runs.store import RunStore

#: The next spare is forked this many seconds after the last runner began.
_QUIET_S = 0.05

#: A runner that has executed a command waits at most this many seconds for another order.
_IDLE_S = 1.0

#: Without room for a spare, the next attempt comes after this many seconds.
_NO_ROOM_S = 1.0

#: What a process calls itself that waits for an order.
_TITLE = "air-executor spare"

#: Signals that ask a process to end.
STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, eq=False)
class Spare:
    """A process that waits for an order at the other end of ``connection``, and ends when that is closed."""

    pid: int
    connection: socket.socket

    def become_runner(self, order: Order) -> int:
        """Send it the order that it waits for, and return its process id.

        :raises OSError: it has died.
        """
        self.connection.sendall(protocol.framed(order.message))
        return self.pid


class Spares:
    """Forks runners, one ahead of its order where possible."""

    def __init__(
        self,
        store: RunStore,
        config: Config,
        let_go: Callable[[], None],
        *,
        selector: selectors.BaseSelector,
        ended: Callable[[int], bool],
        are_used: bool = True,
    ) -> None:
        """Begin without a spare.

        :param let_go: closes in a forked child what belongs to the launcher.
        :param ended: called with the process id of a runner that has come to the end of its run, and takes another
            order. Returns whether it may have one.
        :param are_used: whether there are spares at all.
        """
        self._selector = selector
        self._ended = ended
        #: Whether runners take another order: those of jobs' commands do.
        self._are_kept = config.serves == "jobs"
        #: Those that execute an order, and may take another one.
        self._busy: set[Spare] = set()
        #: Those that have executed an order, the last one last.
        self._idle: list[Spare] = []
        self._is_closed = False
        self._store = store
        self._config = config
        self._let_go = let_go
        self._are_used = are_used
        self._spawn_by_exec = spawn_by_exec(store, config)
        self._backoff = Backoff()
        self._spare: Spare | None = None
        self._due_s = self._idle_s = 0.0

    @property
    def is_one_missing(self) -> bool:
        """Whether no spare waits, and one would be of use."""
        return self._are_used and self._spare is None and not self._idle

    @property
    def pids(self) -> set[int]:
        """The processes that wait for an order."""
        return {spare.pid for spare in (*self._idle, *([self._spare] if self._spare is not None else []))}

    def reaped(self, pid: int) -> None:
        """Take note that a child has ended."""
        if self._spare is not None and pid == self._spare.pid:
            self._spare.connection.close()
            self._spare = None
            self._backoff.failed()
        for spare in [spare for spare in self._idle if spare.pid == pid]:
            self._idle.remove(spare)
            spare.connection.close()

    def due_in_s(self) -> float:
        """Return in how many seconds :meth:`fork_ahead` may fork the next spare."""
        return max(0.0, max(self._due_s, self._backoff.due_s) - time.monotonic())

    def spawn(self, order: Order) -> int:
        """Make the spare the runner of an order, or fork one now. Return its process id.

        Variables that a process reads as it begins can't be given to a fork: a task that sets any gets a fresh process.

        :raises OSError: the machine has no room for another process.
        """
        if order.environment:
            return self._spawn_by_exec(order)
        while (spare := self._take()) is not None:
            try:
                pid = spare.become_runner(order)
            except OSError:  # it has died
                spare.connection.close()
                continue
            self._backoff.succeeded()
            self._watch(spare)
            return pid
        spare = self._fork(has_order=True)
        try:
            return spare.become_runner(order)
        finally:
            self._watch(spare)

    def _take(self) -> Spare | None:
        if self._idle:
            return self._idle.pop()
        spare, self._spare = self._spare, None
        return spare

    def _watch(self, spare: Spare) -> None:
        """Wait until a runner takes another order, if it ever does."""
        if not self._are_kept:
            spare.connection.close()
            return
        self._busy.add(spare)
        self._selector.register(spare.connection, selectors.EVENT_READ, lambda: self._hear(spare))

    def _hear(self, spare: Spare) -> None:
        self._busy.discard(spare)
        self._selector.unregister(spare.connection)
        try:
            said = spare.connection.recv(len(READY))
        except OSError:
            said = b""
        if said == READY and self._ended(spare.pid) and not self._is_closed:
            self._idle.append(spare)
            self._idle_s = time.monotonic()
        else:
            spare.connection.close()

    def idle_due_in_s(self) -> float | None:
        """Return in how many seconds :meth:`end_idle` has something to do; ``None``: it has not."""
        return max(0.0, self._idle_s + _IDLE_S - time.monotonic()) if self._idle else None

    def end_idle(self) -> None:
        """Let runners end that have waited long enough for another order."""
        if self.idle_due_in_s() == 0.0:
            for spare in self._idle:
                spare.connection.close()
            self._idle.clear()

    def pause(self) -> None:
        """Leave the CPU to a runner that has just begun: the next spare comes a little later."""
        self._due_s = time.monotonic() + _QUIET_S

    def fork_ahead(self) -> None:
        """Fork a spare. Without room for it, the next attempt comes later; an order would fare no better."""
        try:
            self._spare = self._fork(has_order=False)
        except OSError:
            self._due_s = time.monotonic() + _NO_ROOM_S

    def dismiss(self) -> None:
        """Let all that wait for an order end. Runners take no other order from now on."""
        self._is_closed = True
        while (spare := self._take()) is not None:
            spare.connection.close()

    def forget(self) -> None:
        """In a forked child: close its copies of the connections. The launcher's processes wait on."""
        self.dismiss()
        for spare in self._busy:
            spare.connection.close()

    def trouble(self) -> str | None:
        """Return what went wrong, for a person."""
        return self._backoff.trouble()

    def _fork(self, *, has_order: bool) -> Spare:
        """Fork a process that becomes the runner of the order that it is sent, or ends if none comes.

        :param has_order: one waits for it already.
        :raises OSError: the machine has no room for it.
        """
        ours, theirs = socket.socketpair()
        # A request to stop must not get lost in a child that still has the launcher's signal handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
                theirs.close()
            if pid < 0:
                ours.close()
        if pid:
            return Spare(pid, ours)
        code = EXIT_RUNNER_ERROR
        try:
            os.setsid()
            self._let_go()
            ours.close()
            code = self._live(theirs, has_order=has_order)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _live(self, connection: socket.socket, *, has_order: bool) -> int:
        """In the forked process: wait for the order, execute it, and return the exit code."""
        system.set_title(_TITLE)
        from air_executor.runner import main as runner

        try:
            if not self._backoff.has_given_up:
                runner.prepare(self._store, self._config, connection)
        except Exception:
            if not has_order:
                raise
            traceback.print_exc()  # the task is only slower for it
        turns, before = Turns(), None
        while (message := protocol.receive(connection)) is not None:
            request = RunRequest.from_message(message["request"])
            may_follow = self._are_kept and turns.may_follow(request)
            if not may_follow:
                connection.close()
            self._redirect_output(request.id)
            for signum in STOPPING:
                signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            ended = runner.run_one(request, self._store, self._config, before)
            if not (may_follow and ended.has_left_nothing and turns.restore()):
                return ended.code
            # Signals are ignored from here until the next order comes: they are late, and mean the former run. Of a
            # signal for the next run that comes as early as that, the request in the run's folder is found.
            before = Spent.so_far()
            system.set_title(_TITLE)
            connection.sendall(READY)
        return EXIT_RECORDED

    def _redirect_output(self, run_id: str) -> None:
        output = os.open(self._store.output_file(run_id), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
