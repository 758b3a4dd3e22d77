"""Components of Airflow that start with less work, for tests of which the start is not the subject.

:class:`Nursery` starts a process that imports what components need, once, and has a child for each that is wanted: it
is what ``airflow COMPONENT`` is, after a tenth of the work. The API server makes no former versions of the execution
API, and its other routes when they are asked for. No garbage is collected while modules are imported.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from air_executor.machine import system

_MODULES = {
    "api-server": "airflow.api_fastapi.main",
    "dag-processor": "airflow.jobs.dag_processor_job_runner",
    "scheduler": "airflow.jobs.scheduler_job_runner",
    "triggerer": "airflow.jobs.triggerer_job_runner",
}


class Nursery:
    """A process that has imported Airflow in an environment, and its children."""

    def __init__(self, env: Mapping[str, str], folder: Path, log: Path, components: Iterable[str]) -> None:
        """Start it.

        :param folder: where its children work.
        :param components: what they will be. An API server, which few start twice, is imported by the child.
        """
        self.env = dict(env)
        self.codes: dict[int, int] = {}
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", __name__, str(folder), *components],
                env=self.env,
                cwd=folder.parent,
                bufsize=0,  # what a buffer has, select does not see
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                # Tests that are killed leave nothing running either.
                preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
            )

    def fits(self, env: Mapping[str, str]) -> bool:
        """Whether its children can have this environment: only what nobody reads at import may differ."""
        return _read_at_import(env) == _read_at_import(self.env) and self._process.poll() is None

    def start(self, component: str, env: Mapping[str, str], log: Path) -> Child:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([component, dict(env), str(log)]).encode() + b"\n")
        while True:
            answer = self._hear()
            if "begun" in answer:
                return Child(self, answer["begun"])

    def hear(self, wait_s: float | None = 0.0) -> None:
        """Take what it has told of children that have ended; wait so long for the first, or for ever."""
        while select.select([self._process.stdout], [], [], wait_s)[0]:
            self._hear()
            wait_s = 0.0

    def _hear(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"Airflow's nursery has ended with {self._process.wait()}")
        answer: dict[str, int] = json.loads(line)
        if "ended" in answer:
            self.codes[answer["ended"]] = answer["code"]
        return answer

    def end(self) -> None:
        """End it, and all its children."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def _read_at_import(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith("AIRFLOW__AIR_EXECUTOR__")}


class Child(subprocess.Popen[bytes]):
    """A nursery's child, as the process that it is."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.nursery, self.pid = nursery, pid
        self.args = ["airflow"]
        self.stdin = self.stdout = self.stderr = None
        self.returncode: int | None = None
        self._child_created = False

    def poll(self) -> int | None:
        if self.returncode is None:
            self.nursery.hear()
            self.returncode = self.nursery.codes.get(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until_s = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
            if timeout is not None and not left_s:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.nursery.hear(left_s)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)


def main(folder: str, *components: str) -> None:
    """Be a nursery; its children return."""
    sys.path[0] = folder  # as for who is started there
    told = os.dup(1)
    os.dup2(2, 1)  # what is printed while modules are imported
    gc.disable()
    import setproctitle
    from airflow.cli.cli_parser import get_parser

    setproctitle.getproctitle()  # which looks for the title's place, and finds it only before the environment changes
    for component in components:
        if component != "api-server":
            importlib.import_module(_MODULES[component])
    get_parser()
    gc.freeze()
    children: dict[int, int] = {}
    while True:
        for ready in select.select([0, *children], [], [])[0]:
            if ready:
                pid = children.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _tell(told, {"ended": pid, "code": code})
                continue
            line = sys.stdin.buffer.readline()
            if not line:
                return os._exit(0)
            component, env, log = json.loads(line)
            assert threading.active_count() == 1, threading.enumerate()
            nursery, pid = os.getpid(), os.fork()
            if not pid:
                return _become(component, env, log, folder, nursery, [told, *children])
            children[os.pidfd_open(pid)] = pid
            _tell(told, {"begun": pid})


def _tell(whom: int, message: dict[str, Any]) -> None:
    os.write(whom, json.dumps(message).encode() + b"\n")


def _become(component: str, env: dict[str, str], log: str, folder: str, nursery: int, foreign: Iterable[int]) -> None:
    """Be the component."""
    system.die_with_parent(nursery)
    os.setsid()
    for descriptor in foreign:
        os.close(descriptor)
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor, standard in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, standard)
    os.close(nothing)
    os.close(file)
    for name in os.environ.keys() - env.keys():
        del os.environ[name]
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ["airflow", component]
    if component == "api-server":
        from air_executor.airflow.compat import pocketing
        from tests.support import quick_routes

        quick_routes.make_when_asked()
        pocketing.serve_own_version_only()
        importlib.import_module(_MODULES[component])
    gc.enable()
    from airflow.__main__ import main as be_airflow

    be_airflow()


if __name__ == "__main__":
    main(*sys.argv[1:])
