"""Spares: processes that are forked ahead. Each waits for an order, and becomes its runner."""

from __future__ import annotations

import os
import signal
import socket
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
from air_executor.runs.backend import RunRequest
from air_executor.runs.codes import EXIT_RECORDED, EXIT_RUNNER_ERROR
from air_executor.runs.store import RunStore

#: The next spare is forked this many seconds after the last runner began.
_QUIET_S = 0.05

#: Without room for a spare, the next attempt comes after this many seconds.
_NO_ROOM_S = 1.0

#: Signals that ask a process to end.
STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Spare:
    """A process that waits for an order at the other end of ``connection``, and ends when that is closed."""

    pid: int
    connection: socket.socket

    def become_runner(self, order: Order) -> int:
        """Send it the order that it waits for, and return its process id.

        :raises OSError: it has died.
        """
        with self.connection:
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
        died: Callable[[], None],
        are_used: bool = True,
    ) -> None:
        """Begin without a spare.

        :param let_go: closes in a forked child what belongs to the launcher.
        :param died: called when a spare has died before its order came.
        :param are_used: whether there are spares at all.
        """
        self._store = store
        self._config = config
        self._let_go = let_go
        self._died = died
        self._are_used = are_used
        self._spawn_by_exec = spawn_by_exec(store, config)
        self._backoff = Backoff()
        self._spare: Spare | None = None
        self._due_s = 0.0

    @property
    def is_one_missing(self) -> bool:
        """Whether no spare waits, and one would be of use."""
        return self._are_used and self._spare is None

    @property
    def pids(self) -> set[int]:
        """The spare's process, if there is one."""
        return {self._spare.pid} if self._spare is not None else set()

    def reaped(self, pid: int) -> None:
        """Take note that a child has ended."""
        if pid in self.pids:
            self.dismiss()
            self._has_died()

    def _has_died(self) -> None:
        self._backoff.failed()
        self._died()

    def due_in_s(self) -> float:
        """Return in how many seconds :meth:`fork_ahead` may fork the next spare."""
        return max(0.0, max(self._due_s, self._backoff.due_s) - time.monotonic())

    def spawn(self, order: Order) -> int:
        """Make the spare the runner of an order, or fork one now. Return its process id.

        A process reads some variables only when it begins, so a task that sets any gets a fresh process, not a fork.

        :raises OSError: the machine has no room for another process.
        """
        if order.environment:
            return self._spawn_by_exec(order)
        if (spare := self._spare) is not None:
            self._spare = None
            try:
                pid = spare.become_runner(order)
            except OSError:
                self._has_died()
            else:
                self._backoff.succeeded()
                return pid
        return self._fork(has_order=True).become_runner(order)

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
        """Let the spare end."""
        if self._spare is not None:
            self._spare.connection.close()
            self._spare = None

    @property
    def deaths(self) -> int:
        """How many spares have died before their orders came."""
        return self._backoff.deaths

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
            system.exit_fork(code)

    def _live(self, connection: socket.socket, *, has_order: bool) -> int:
        """In the forked process: wait for the order, execute it, and return the exit code."""
        system.set_title("air-executor spare")
        from air_executor.runner import main as runner

        try:
            if not self._backoff.has_given_up:
                runner.prepare(self._store, self._config, connection)
        except Exception:
            if not has_order:
                raise
            traceback.print_exc()  # the task is only slower for it
        with connection:
            message = protocol.receive(connection)
        if message is None:
            return EXIT_RECORDED
        request = RunRequest.from_message(message["request"])
        self._redirect_output(request.id)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        return runner.run(request, self._store, self._config)

    def _redirect_output(self, run_id: str) -> None:
        output = os.open(self._store.output_file(run_id), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
