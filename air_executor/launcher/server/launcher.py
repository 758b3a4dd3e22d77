"""The launcher process: takes run requests from executors, forks a runner for each, and tells when one has ended."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from air_executor import __version__
from air_executor.config import Config
from air_executor.errors import AirExecutorError, ProtocolError
from air_executor.launcher import protocol
from air_executor.launcher.address import Address
from air_executor.launcher.client.control import remove_dead_launchers
from air_executor.launcher.exec import Spawn, environment_of, spawn_by_exec
from air_executor.launcher.preload.preloader import Preloader
from air_executor.launcher.server.births import Births
from air_executor.launcher.server.farewell import Farewell
from air_executor.launcher.server.keeper import pass_on
from air_executor.launcher.server.log import Log
from air_executor.launcher.server.strays import DeadRunner, Strays
from air_executor.launcher.server.succession import Succession, let_go_of_address
from air_executor.machine import processes, system
from air_executor.machine.processes import Process
from air_executor.runner.hooks import hooks
from air_executor.runs import pruning
from air_executor.runs.backend import RunRequest
from air_executor.runs.codes import EXIT_ELSEWHERE, EXIT_RECORDED, EXIT_RUNNER_ERROR
from air_executor.runs.record import UNWANTED, RunState
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import append_to_log

#: Without a client and without a runner, the launcher stays this many seconds for a scheduler that restarts.
_ABANDONED_S = 10.0

#: How often records are pruned, in seconds.
_PRUNE_S = 300.0

#: What is done beside in a process of its own, as pruning, gets at most so many seconds.
_CHORE_S = 240.0

#: How often requests that wait for the machine to have room for their runners are tried again, in seconds.
_TRY_S = 1.0

#: The next runner is forked ahead when the last one has had so many seconds to begin undisturbed.
_SPARE_AFTER_S = 0.05

#: How much is read from a client at once, in bytes. Fairness among clients, not a limit.
_READ_BYTES = 1 << 18

#: How often it is looked whether what a dead runner left can be killed by now, in seconds.
_STRAYS_S = 0.5

#: What asks a process to end.
_STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass
class _Client:
    """An executor at the other end of a connection."""

    connection: socket.socket
    decoder: protocol.Decoder = field(default_factory=protocol.Decoder)
    outbox: bytearray = field(default_factory=bytearray)
    only_asks: bool = False
    """It is no executor: it has asked for the status, and for nothing that an executor asks for."""
    orders: bool = False


@dataclass
class _Child:
    """A runner that was born here."""

    run_id: str
    workload_id: str
    client: _Client | None


@dataclass
class _Spare:
    """A process that waits for the request that makes it a runner."""

    pid: int
    connection: socket.socket

    def become_runner(self, request: RunRequest) -> int:
        """Send it the request that it waited for, and return its process id.

        :raises OSError: it has died.
        """
        with self.connection:
            self.connection.sendall(protocol.encode(request.to_message()))
        return self.pid


@dataclass
class _Waiting:
    """A request that waits for the machine to have room for its runner."""

    request: RunRequest
    client: _Client
    until_s: float


class Launcher:
    """Serves executors until there is nothing left to do."""

    def __init__(
        self,
        store: RunStore,
        config: Config,
        address: Address,
        listener: socket.socket,
        spawn: Spawn | None = None,
        preloader: Preloader | None = None,
        succession: Succession | None = None,
    ) -> None:
        self._store = store
        self._config = config
        self._address = address
        self._listener = listener
        self._spawn = spawn or self._fork
        self._preloader = preloader
        self._succession = succession or Succession(address, config)
        #: The process that tries a package, while there is one.
        self._trial = 0
        self._selector = selectors.DefaultSelector()
        self._clients: list[_Client] = []
        self._children: dict[int, _Child] = {}
        self._waiting: list[_Waiting] = []
        #: Runners that have died, by their pid, until nothing of their run is left.
        self._dying: dict[int, _Child] = {}
        self._strays = Strays(has_others=processes.has_older())
        self._started_s = self._active_s = time.monotonic()
        self._spare_due_s = self._pruned_s = 0.0
        self._pruner = 0
        #: Processes for chores, and until when they have time, on the monotonic clock.
        self._chores: dict[int, float] = {}
        self._spare: _Spare | None = None
        self._births = Births()
        self._log = Log(address.log)
        self._farewell = Farewell(store, config)
        self._is_closed = False
        #: The socket's file, by which it is told from that of a launcher that came later.
        self._socket_file = self._at_socket()

    def serve(self) -> None:
        """Serve until the idle time is over, everybody has gone, or SIGTERM comes and what it asks for is done."""
        self._wake_receiver, self._wake_sender = socket.socketpair()
        for end in (self._wake_receiver, self._wake_sender, self._listener):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_sender.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, self._on_sigusr2)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, self._drain_wakeups)
        while not self._may_end():
            for key, _ in self._selector.select(self._wait_s()):
                key.data()
            self._reap()
            if self._strays.are_due:
                self._strays.end(self._own_children())
            if self._farewell.is_near:
                self._take_leave()
                continue
            self._start_waiting()
            self._end_overdue_chores()
            self._log.cut()
            self._prune_now_and_then()
            self._try_package()
            self._succession.look(self._listener, self._watch_successor)
            self._fork_spare()
            if self._is_useless() and self._retire():
                return
        self._remove_socket()
        self._dismiss_spare()

    def _may_end(self) -> bool:
        is_done = not self._children and not self._strays.are_due
        return self._farewell.is_immediate or (self._farewell.is_near and is_done)

    def _take_leave(self) -> None:
        """Take no new runs, and let those that there are come to their end. What was ordered is the next launcher's."""
        if not self._is_closed:
            self._is_closed = True
            print(f"asked to end; with on_launcher_stop = {self._farewell.policy}", flush=True)
            self._remove_socket()
            with contextlib.suppress(KeyError, ValueError):  # it may have none since it has a successor
                self._selector.unregister(self._listener)
            self._listener.close()
            self._dismiss_spare()
        self._farewell.stop({pid: child.run_id for pid, child in self._children.items()})

    def _on_sigterm(self, *_: object) -> None:
        self._farewell.ask()
        if self._address.is_service:  # its service manager knows the first launcher only
            pass_on(signal.SIGTERM)

    def _on_sigusr2(self, *_: object) -> None:
        if self._succession.is_over:
            pass_on(signal.SIGUSR2)
        else:
            self._succession.wish(now=True)

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_receiver.recv(4096)

    # When to end

    def _wait_s(self) -> float | None:
        waits_s = [wait_s for wait_s in (self._own_wait_s(), self._succession.due_in_s()) if wait_s is not None]
        return min(waits_s, default=None)

    def _own_wait_s(self) -> float | None:
        if self._strays.are_due:
            return _STRAYS_S
        if self._farewell.is_near:
            return _TRY_S
        if self._waiting:
            return _TRY_S
        if self._wants_spare():
            return max(0.0, self._spare_s() - time.monotonic())
        if self._children:
            return _PRUNE_S
        return max(0.0, min(self._patience_s() - (time.monotonic() - self._active_s), _PRUNE_S))

    def _patience_s(self) -> float:
        idle_s = self._config.launcher_idle_seconds
        return idle_s if self._clients or math.isinf(idle_s) else min(idle_s, _ABANDONED_S)

    def _is_useless(self) -> bool:
        is_at_work = self._children or self._waiting or self._strays.are_due or self._succession.is_under_way
        if self._succession.is_over:
            return not is_at_work
        return not is_at_work and time.monotonic() - self._active_s >= self._patience_s()

    def _retire(self) -> bool:
        if self._succession.is_over:
            if self._selector.select(0):
                return False  # somebody has something to say
            self._remove_socket()
            return True
        # Only now: what it registers for forks costs each runner, and each process of a task.
        from filelock import FileLock, Timeout

        # Whoever wants a launcher holds this lock while looking for one, so none connects to us as we leave.
        try:
            with FileLock(self._address.lock, timeout=0):
                if self._selector.select(0):
                    return False  # somebody has something to say
                self._remove_socket()
                self._listener.close()
                self._dismiss_spare()
                return True
        except Timeout:
            return False

    def _at_socket(self) -> tuple[int, int] | None:
        try:
            status = self._address.socket.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _remove_socket(self) -> None:
        """Remove the socket, unless somebody has deleted it and another launcher listens at its place by now."""
        if self._socket_file is not None and self._at_socket() == self._socket_file:
            self._address.socket.unlink(missing_ok=True)

    # The next generation

    def _watch_successor(self, ready: socket.socket) -> None:
        def hear() -> None:
            self._selector.unregister(ready)
            if self._succession.hear():
                self._hand_over()

        self._selector.register(ready, selectors.EVENT_READ, hear)

    def _hand_over(self) -> None:
        """Leave the address to the successor, and serve on at another, for the runs that there are."""
        self._selector.unregister(self._listener)
        self._listener.close()
        self._dismiss_spare()
        self._address = let_go_of_address(self._address)
        system.set_title(f"air-executor launcher {self._address.key}")
        try:
            self._listener = protocol.listen(self._address.socket)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        except OSError as error:
            print(f"who comes from here on follows the runs by their records: {error}", flush=True)
        self._socket_file = self._at_socket()
        for client in list(self._clients):
            self._tell(client, {"type": "superseded"})

    # Clients

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._accept_one()

    def _accept_one(self) -> None:
        connection, _ = self._listener.accept()
        if (objection := self._objection(connection)) is not None:
            print(f"refused a connection from {objection}", flush=True)
            connection.close()
            return
        connection.setblocking(False)
        client = _Client(connection)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(client))
        self._tell(client, {"type": "hello", **self._status()})

    @staticmethod
    def _objection(connection: socket.socket) -> str | None:
        """Return who is at the other end, if it is nobody whose orders are taken."""
        peer = system.peer(connection)
        return f"user id {peer.uid}" if peer is not None and peer.uid != os.geteuid() else None

    def _read(self, client: _Client) -> None:
        try:
            data = client.connection.recv(_READ_BYTES)
            if not data:
                self._drop(client)
                return
            for message in client.decoder.feed(data):
                self._handle(client, message)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
        except ProtocolError as error:
            print(f"dropped a client: {error}", flush=True)
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client not in self._clients:
            return
        self._clients.remove(client)
        self._selector.unregister(client.connection)
        client.connection.close()
        if client.orders or not client.only_asks:  # who looks on now and then does not keep a launcher from ending
            self._active_s = time.monotonic()
        for child in (*self._children.values(), *self._dying.values()):
            if child.client is client:
                child.client = None

    def _tell(self, client: _Client | None, message: dict[str, Any]) -> None:
        if client is None or client not in self._clients:
            return
        client.outbox += protocol.encode(message)
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        try:
            sent = client.connection.send(client.outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The client has gone. What it has ordered may still be to be read; reading finds the end.
            client.outbox.clear()
            sent = 0
        del client.outbox[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outbox else 0)

        def ready() -> None:
            if client.outbox:
                self._flush(client)
            if client in self._clients:
                self._read(client)

        self._selector.modify(client.connection, events, ready)

    def _handle(self, client: _Client, message: dict[str, Any]) -> None:
        kind, run_id = message.get("type"), message.get("id")
        client.orders |= kind in ("start", "follow")
        client.only_asks |= kind == "status"
        if kind == "start":
            self._start(client, message.get("request"))
        elif kind == "status":
            self._tell(client, {"type": "status", **self._status()})
        elif kind in ("follow", "stop", "kill"):
            pid = next((pid for pid, child in self._children.items() if child.run_id == run_id), None)
            dying = next((child for child in self._dying.values() if child.run_id == run_id), None)
            if dying is not None:
                if kind == "follow":
                    self._pass_on(run_id, dying, client)
                self._tell(client, {"type": "followed", "id": run_id})
            elif pid is None:
                self._tell(client, {"type": "unknown", "id": run_id, "asked": kind})
            elif kind != "follow":
                # Our child, not reaped yet: nobody else can have the pid.
                os.kill(pid, signal.SIGTERM if kind == "stop" else signal.SIGKILL)
            else:
                self._pass_on(run_id, self._children[pid], client)
                self._tell(client, {"type": "followed", "id": run_id})
        else:
            raise ProtocolError(f"a message of type {kind!r}")

    def _pass_on(self, run_id: Any, child: _Child, client: _Client) -> None:
        """Tell ``client`` of a run's end from now on. Whoever was to hear of it looks itself, if it is there."""
        if child.client is not client:
            self._tell(child.client, {"type": "elsewhere", "id": run_id})
        child.client = client

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "version": __version__,
            "protocol": protocol.VERSION,
            "understands": protocol.OLDEST,
            "launch": self._config.launch,
            "age_s": round(time.monotonic() - self._started_s, 1),
            "runners": len(self._children) + len(self._dying),
            "waiting": len(self._waiting),
            "clients": len(self._clients),
            "hides_processes": processes.hides_processes(),
            "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "troubles": [trouble for trouble in (self._succession.trouble(), self._births.trouble()) if trouble],
            **self._succession.status(),
        }

    # Runners

    def _start(self, client: _Client, message: Any) -> None:
        run_id = message.get("id") if isinstance(message, dict) else None
        try:
            request = RunRequest.from_message(message)
        except AirExecutorError as error:
            self._refuse(client, run_id, error)
            return
        self._waiting.append(_Waiting(request, client, time.monotonic() + system.NO_ROOM_S))
        if len(self._waiting) == 1:  # otherwise others have come before it
            self._start_waiting()

    def _start_waiting(self) -> None:
        """Start a runner for each request that waits, in their order, until the machine has room for no more."""
        while self._waiting and not self._farewell.is_near:
            order = self._waiting[0]
            try:
                pid = self._spawn(order.request)
            except Exception as error:
                if isinstance(error, OSError) and system.has_no_room(error) and time.monotonic() < order.until_s:
                    return
                self._refuse(order.client, order.request.id, error)
            else:
                self._children[pid] = _Child(order.request.id, order.request.identity.workload_id, order.client)
                self._spare_due_s = time.monotonic() + _SPARE_AFTER_S
                self._tell(order.client, {"type": "started", "id": order.request.id, "pid": pid})
            del self._waiting[0]

    def _refuse(self, client: _Client, run_id: Any, error: Exception) -> None:
        self._tell(client, {"type": "refused", "id": run_id, "reason": f"no runner could be started: {error}"})

    def _fork(self, request: RunRequest) -> int:
        """Make the spare process the runner, if there is one, or fork it now."""
        if environment_of(request):
            # They are read as a process begins, and by what it imports then.
            return spawn_by_exec(self._store, self._config)(request)
        if (spare := self._spare) is not None:
            self._spare = None
            with contextlib.suppress(OSError):  # it has died
                pid = spare.become_runner(request)
                self._births.succeeded()
                return pid
        return self._fork_ahead(is_wanted=True).become_runner(request)

    def _wants_spare(self) -> bool:
        is_wanted = bool(self._clients) and not self._waiting and not self._succession.is_over
        return is_wanted and not self._spare and self._spawn == self._fork

    def _spare_s(self) -> float:
        return max(self._spare_due_s, self._births.due_s)

    def _fork_spare(self) -> None:
        """Fork the next runner ahead, when there is nothing else to do and somebody may order one."""
        if not self._wants_spare() or time.monotonic() < self._spare_s() or self._selector.select(0):
            return
        try:
            self._spare = self._fork_ahead()
        except OSError:
            self._spare_due_s = time.monotonic() + _TRY_S  # no room for it; a request would meet the same

    def _dismiss_spare(self) -> None:
        if self._spare is not None:
            self._spare.connection.close()
            self._spare = None

    def _fork_ahead(self, *, is_wanted: bool = False) -> _Spare:
        """Fork a process that becomes the runner for the request that it is sent; it ends if none comes.

        :param is_wanted: there is a request for it.
        :raises OSError: the machine has no room for it.
        """
        ours, theirs = socket.socketpair()
        # A request to stop that comes before the child has let go of the launcher's handlers must wait, not vanish.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
                theirs.close()
            if pid < 0:
                ours.close()
        if pid:
            return _Spare(pid, ours)
        code = EXIT_RUNNER_ERROR
        try:
            os.setsid()
            self._let_go()
            ours.close()
            system.set_title("air-executor spare")
            from air_executor.runner import main as runner

            try:
                if not self._births.are_given_up:
                    runner.prepare(self._store, self._config, theirs)
            except Exception:
                if not is_wanted:
                    raise
                traceback.print_exc()  # it costs the task a little time
            with theirs:
                message = protocol.receive(theirs)
            if message is None:
                os._exit(EXIT_RECORDED)
            request = RunRequest.from_message(message)
            self._redirect_output(request.id)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
            code = runner.run(request, self._store, self._config)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _let_go(self) -> None:
        """In a forked child: close and reset what is the launcher's."""
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGUSR2, *_STOPPING):
            signal.signal(signum, signal.SIG_DFL)
        self._selector.close()
        for end in (self._listener, self._wake_receiver, self._wake_sender):
            end.close()
        for client in self._clients:
            client.connection.close()
        self._clients, self._waiting = [], []  # with what they have sent: other tasks' tokens
        self._dismiss_spare()  # in this process only: who waits for a request from the launcher has its end elsewhere

    def _redirect_output(self, run_id: str) -> None:
        output = os.open(self._store.output_file(run_id), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = self._children.pop(pid, None)
            if child is None:  # the pruner, a trial, the spare, or what a runner left
                if self._spare is not None and pid == self._spare.pid:
                    self._dismiss_spare()
                    self._births.failed()
                if pid == self._pruner:
                    self._pruner = 0
                self._chores.pop(pid, None)
                self._succession.reaped(pid)
                self._strays.reaped(pid)
                continue
            self._active_s = time.monotonic()
            if self._preloader is not None:
                self._preloader.take_note(child.run_id)
            code = os.waitstatus_to_exitcode(status)
            if code == EXIT_ELSEWHERE:
                self._tell(child.client, {"type": "elsewhere", "id": child.run_id})
                continue
            if code == EXIT_RECORDED and self._has_end(child.run_id):
                self._tell(child.client, {"type": "exited", "id": child.run_id, "exit_code": code})
                continue
            self._dying[pid] = child
            end = functools.partial(self._end, pid, code)
            self._strays.expect(DeadRunner(child.run_id, child.workload_id, pid, end))

    def _own_children(self) -> set[int]:
        """Return the children that this process has made, and has not reaped: all others are strays."""
        spare = self._spare.pid if self._spare is not None else 0
        return {*self._children, *self._chores, self._pruner, self._trial, spare, self._succession.pid}

    def _has_end(self, run_id: str) -> bool:
        try:
            return self._store.read(run_id).state.is_end
        except AirExecutorError:
            return False

    def _end(self, pid: int, code: int, survivors: list[Process]) -> None:
        """Tell the end of a run whose runner died, now that nothing is left of it but ``survivors``."""
        child = self._dying.pop(pid)
        try:
            self._write_end(child.run_id, code, survivors)
        except AirExecutorError as error:
            print(f"run {child.run_id}: its end (exit code {code}) is not on record: {error}", flush=True)
        self._tell(child.client, {"type": "exited", "id": child.run_id, "exit_code": code})

    def _write_end(self, run_id: str, code: int, survivors: list[Process]) -> None:
        """Write the end of a run whose runner died before it could."""
        record = self._store.read(run_id)
        if record.state.is_end:
            return
        asked, words = self._store.stop_request(run_id), self._store.output_tail(run_id)
        left = self._store.note_survivors(record, survivors)
        more = (f": {asked.reason}" if asked else "") + (f"; {left}" if left else "")
        if record.state is RunState.QUEUED and (names := record.limits.get("environment")):
            more += f"; it began with the environment of its task ({', '.join(names)})"
        more += f". Its last words: {words}" if words else ""
        if code < 0:
            name = system.signal_name(-code)
            reason = f"the runner was killed by {name} (signal {-code}){more}"
            outcome = UNWANTED if asked and asked.unwanted else None
            record = record.advance(RunState.KILLED, signal=name, outcome=outcome, reason=reason)
        else:
            reason = f"the runner ended with exit code {code} before it could record an outcome{more}"
            record = record.advance(RunState.FAILED, exit_code=code, reason=reason)
        self._store.write(record)
        append_to_log(record.log_file, reason, kind=record.identity.kind)

    # Importing ahead

    def _try_package(self) -> None:
        """Try a package that tasks import, one at a time, in a process that is thrown away."""
        if self._preloader is None or self._trial or self._succession.is_under_way or self._succession.is_over:
            return
        if (package := self._preloader.candidate()) is None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._trial = os.fork()
            except OSError:
                ours.close()
                return
            if not self._trial:
                os.setsid()
                ours.close()
                self._let_go()
                self._preloader.try_here(package, theirs)
        self._chores[self._trial] = time.monotonic() + _CHORE_S
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._end_trial(package, ours))

    def _end_trial(self, package: str, answer: socket.socket) -> None:
        self._selector.unregister(answer)
        with answer:
            data = answer.recv(1 << 16)
        self._trial = 0
        if self._preloader is not None and self._preloader.judge(package, data):
            self._succession.wish()

    # Pruning

    def _prune_now_and_then(self) -> None:
        if (
            self._pruner
            or self._succession.is_over
            or (time.monotonic() - self._pruned_s < _PRUNE_S and self._pruned_s)
        ):
            return
        self._pruned_s = time.monotonic()
        try:
            self._pruner = os.fork()
        except OSError:
            return
        if self._pruner:
            self._chores[self._pruner] = time.monotonic() + _CHORE_S
            return
        code = 1
        try:
            self._let_go()
            signal.alarm(int(_CHORE_S))  # the launcher may be gone by then
            with contextlib.ExitStack() as chores:  # each of them, whatever becomes of the others
                chores.callback(remove_dead_launchers, self._store, asking=self._address)
                chores.callback(self._store.mark_open)
                chores.callback(hooks(self._config.serves).prune, self._config)
                pruning.prune(self._store, keep_days=self._config.keep_days, keep_runs=self._config.keep_runs)
            code = 0
        except AirExecutorError as error:
            print(f"pruning failed: {error}", flush=True)
        except BaseException:
            print("pruning failed:", flush=True)
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _end_overdue_chores(self) -> None:
        for pid, until_s in self._chores.items():  # not reaped yet: nobody else can have the pid
            if time.monotonic() > until_s:
                print(f"process {pid} has taken more than {_CHORE_S:g} s beside, and is killed", flush=True)
                os.kill(pid, signal.SIGKILL)
                self._chores[pid] = math.inf
