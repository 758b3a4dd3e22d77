"""The processes of a run's Airflow: forked from one that has imported it, started again when they die."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from air_executor import jsontext
from air_executor.airflow.compat import pocketing
from air_executor.airflow.pocket import database, telling, watcher
from air_executor.airflow.pocket.interruption import Interruption
from air_executor.launcher.client.backend import LocalBackend
from air_executor.machine import system
from air_executor.pocket.folder import RunFolder
from air_executor.pocket.leftover import end_launchers
from air_executor.pocket.request import Request, RunFailedError

#: How often to look for processes that have ended, in seconds.
_LOOK_S = 0.1

#: A part that exits this often in a row is not restarted; one that ran for this many seconds starts the count again.
_MAX_DEATHS, _LASTS_S = 5, 60.0

#: A part that has ended is started again after this many seconds.
_AGAIN_S = 1.0

#: The exit code of a part that raised an unexpected exception.
_CRASHED = 70

#: How long the scheduler has to end, and the others, in seconds. Then they are killed: nothing is lost by that.
_SCHEDULER_END_S, _END_S = 20.0, 5.0


class Parts:
    """Starts the parts, and keeps them alive for as long as the watcher lives."""

    def __init__(
        self,
        folder: RunFolder,
        request: Request,
        listener: socket.socket,
        warming: LocalBackend | None,
        interruption: Interruption,
        *,
        has_moved: bool,
    ) -> None:
        """Start nothing yet.

        :param listener: where the API is to listen.
        :param warming: what keeps a launcher waiting for the executor.
        :param interruption: may have come already.
        :param has_moved: the listener's port is not that of the run's former Airflow.
        """
        self._folder, self._request, self._listener, self._warming = folder, request, listener, warming
        self._interruption, self._has_moved = interruption, has_moved
        self._pids: dict[int, str] = {}
        #: When each was started, on the monotonic clock.
        self._began_s: dict[str, float] = {}
        self._deaths: Counter[str] = Counter()
        #: When to start a part again, on the monotonic clock.
        self._due_s: dict[str, float] = {}
        #: The watcher asks through it for parts, and hears of an interruption.
        self._here, self._there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        #: The scheduler waits until the other end is closed: when there is something to schedule.
        self._gate, self._gatekeeper = os.pipe()

    def work(self) -> int:
        """Work until the run has ended, and return the exit code."""
        signal.signal(signal.SIGINT, self._interruption.hear)
        signal.signal(signal.SIGTERM, self._interruption.hear)
        if not self._folder.has_begun():
            self._make_database()  # if there is one, it is of a command that was killed before the run began
        pocketing.import_what_all_need()
        gc.freeze()
        self._start("api-server")
        self._start("scheduler")
        self._start("watcher")
        code = self._supervise()
        for name in ("scheduler", "triggerer", "dag-processor", "api-server"):
            self._end(name, _END_S)
        if self._warming is not None:
            self._warming.close()
        end_launchers(self._folder.state_dir, wait=True)
        return code

    def _make_database(self) -> None:
        """Copy the template, after making it if there is none for this Airflow.

        :raises RunFailedError: that is not possible.
        """
        for path in self._folder.home.glob(f"{self._folder.database.name}*"):
            path.unlink()
        if not database.copy_template(self._folder.database):
            pid = self._fork("template", lambda: database.make_template(self._folder.database))
            if os.waitpid(pid, 0)[1]:
                raise RunFailedError("the run's database could not be made")

    def _start(self, name: str) -> None:
        parts: dict[str, Callable[[], None]] = {
            "api-server": lambda: pocketing.serve_execution_api(self._listener),
            "scheduler": lambda: pocketing.be_scheduler(self._wait_at_gate),
            "triggerer": pocketing.be_triggerer,
            "dag-processor": self._be_dag_processor,
            "watcher": self._be_watcher,
        }
        self._due_s.pop(name, None)
        pid = self._fork(name, parts[name])
        self._pids[pid], self._began_s[name] = name, time.monotonic()

    def _fork(self, name: str, be: Callable[[], None]) -> int:
        main = os.getpid()
        if pid := os.fork():
            return pid
        code = _CRASHED
        try:
            # Not SIG_IGN, which launchers and tasks would inherit.
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            system.die_with_parent(main)
            system.set_title(f"air-executor dag {name}")
            _print_to(self._folder.parts / f"{name}.log")
            if name != "watcher":
                telling.close()  # a process that outlives its part would keep the command waiting
            if name != "api-server":
                self._listener.close()
            if self._gatekeeper >= 0:
                os.close(self._gatekeeper)
            be()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _supervise(self) -> int:
        """Keep the parts alive until the watcher ends, and return the exit code."""
        told = False
        while True:
            readable, _, _ = select.select([self._here], [], [], _LOOK_S)
            if readable:
                self._provide(self._here.recv(256).decode())
            if self._interruption.has_come and not told:
                told = True
                self._due_s.clear()
                self._end("scheduler", _SCHEDULER_END_S)  # then nothing begins any more
                if not self._folder.has_begun():  # nothing is there to be stopped, and to read the DAG may take long
                    self._end("watcher", 0)
                    return watcher.INTERRUPTED
                self._here.send(b"interrupted")
            while (ended := _ended()) is not None:
                pid, code = ended
                name = self._pids.pop(pid, None)
                if name == "watcher" and (told or not self._has_crashed(code)):
                    return code
                if name == "dag-processor" and code == 0:
                    self._here.send(name.encode())  # the callbacks that waited have been executed
                elif name is not None and not told and not self._may_begin_again(name):
                    log = self._folder.parts / f"{name}.log"
                    telling.tell("error", error=f"the run's {name} has ended {_MAX_DEATHS} times in a row, see {log}")
                    self._end("watcher", 0)
                    return RunFailedError.exit_code
            for name in [name for name, due_s in self._due_s.items() if time.monotonic() >= due_s]:
                self._start(name)

    def _has_crashed(self, code: int) -> bool:
        """Tell whether a watcher that has ended so is needed again, for a run that has begun."""
        return (code == _CRASHED or code < 0) and self._folder.has_begun()

    def _may_begin_again(self, name: str) -> bool:
        """Have a part that has ended started again, unless that has not helped."""
        now_s = time.monotonic()
        if now_s > self._began_s[name] + _LASTS_S:
            self._deaths[name] = 0
        self._deaths[name] += 1
        self._due_s[name] = now_s + _AGAIN_S
        return self._deaths[name] < _MAX_DEATHS

    def _provide(self, name: str) -> None:
        """Start a part that the watcher wants, or let it begin."""
        if name == "scheduler" and self._gatekeeper >= 0:
            os.close(self._gatekeeper)
            self._gatekeeper = -1
        elif name and name not in self._pids.values():
            self._start(name)

    def _be_dag_processor(self) -> None:
        pocketing.be_dag_processor(jsontext.loads((self._folder.path / "run.json").read_bytes())["files"])

    def _be_watcher(self) -> None:
        has_opened = self._gatekeeper < 0  # a former one has taken up what there was
        watcher.watch(self._folder, self._request, self._there, has_moved=self._has_moved, takes_up=not has_opened)

    def _wait_at_gate(self) -> None:
        os.read(self._gate, 1)

    def _end(self, name: str, timeout_s: float) -> None:
        """End a part, by force when it takes too long."""
        for pid in [pid for pid, part in self._pids.items() if part == name]:
            del self._pids[pid]
            os.kill(pid, signal.SIGTERM if timeout_s else signal.SIGKILL)
            until_s = time.monotonic() + timeout_s
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() >= until_s:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    break
                time.sleep(0.02)


def _ended() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _print_to(path: Path) -> None:
    """Have this process print to a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
