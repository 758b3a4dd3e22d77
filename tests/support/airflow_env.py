"""A whole Airflow for tests: its own home, database, ports and processes, all gone at the end."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
from filelock import BaseFileLock, FileLock

from air_executor.config import Config
from air_executor.machine import system
from air_executor.runs.record import RunRecord
from air_executor.runs.store import RunStore
from tests.support.api import Api
from tests.support.quick_start import Nursery
from tests.support.waiting import wait_for

REPOSITORY = Path(__file__).parent.parent.parent
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")

#: Components of an Airflow that knows the DAGs already, and defers nothing: it starts with half as much work.
FEW = ("api-server", "scheduler")

#: Those of one that reads DAGs, and defers nothing.
READING = (*FEW, "dag-processor")

#: What :meth:`Airflow.split_api_server` adds to them.
_EXECUTION_API = "execution-api-server"

#: The launcher tries no packages that tasks import, and gets no successor that imports them, unless ``auto`` is here.
PRELOAD = "AIRFLOW__AIR_EXECUTOR__PRELOAD"

#: Seconds that components other than the API server wait for SQLite's write lock. The server keeps the default of 5 s;
#: a scheduler or triggerer with that would exit when the server stands still, as described below.
_SQLITE_WAIT = "?timeout=120"

#: Logged by a component that lost SIGTERM: the handler raises an exception in whatever code runs then, and Python
#: ignores exceptions in callbacks of weak references. SQLAlchemy has such callbacks: 2 % of a scheduler's loop.
_LOST = re.compile(r"^SystemExit", re.MULTILINE)

#: The stack of a component that deadlocked in its signal handler: it waits for a lock that the interrupted code holds.
_WAITS_FOR_ITSELF = re.compile(r"structlog/_output\.py.*_exit_gracefully.*structlog/_output\.py", re.DOTALL)

#: The locks of the ports that this process has: see :func:`free_port`.
_ports: list[BaseFileLock] = []


class LockedUpError(AssertionError):
    """Airflow's handler of SIGTERM has locked a component up before it ended anything in order."""


def without_pytest(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Airflow behaves as it does outside of tests: it looks for pytest's variables."""
    return {name: value for name, value in env.items() if not name.startswith("PYTEST_")}


def free_port() -> int:
    """Return a free port that no connection takes by itself until it is used: those come from 32768 upwards.

    Nobody else gets it from here while this process lives.
    """
    folder = Path(tempfile.gettempdir()) / f"air-executor-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    draw = random.SystemRandom()  # pytest-xdist's processes draw different ones
    while True:
        port = draw.randrange(16384, 32768)
        lock = FileLock(folder / f"{port}.lock", timeout=0)
        with socket.socket() as probe, contextlib.suppress(OSError):  # filelock's Timeout is one
            lock.acquire()
            probe.bind(("0.0.0.0", port))
            _ports.append(lock)
            return port


def sqlite_template(base: Path, *, has_dags: bool) -> Path:
    """Return a SQLite database with Airflow's tables, and the DAGs, made once per test run and then copied."""
    template = base / ("dags.db" if has_dags else "tables.db")
    with FileLock(f"{template}.lock"):
        if not template.exists():
            home = base / f"home-of-{template.stem}"
            fresh = home / "airflow.db"
            env = Airflow(home, f"sqlite:///{fresh}")
            if has_dags:
                env.copy_dags()
                shutil.copy(sqlite_template(base, has_dags=False), fresh)
                env.run("airflow", "dags", "reserialize")
            else:
                env.run("airflow", "db", "migrate")
            fresh.rename(template)
    return template


class Airflow:
    """An Airflow of the tests' own."""

    def __init__(
        self,
        home: Path,
        database_url: str,
        options: Mapping[str, str] | None = None,
        components: Sequence[str] = COMPONENTS,
        dags: Sequence[str] | None = None,
        *,
        is_quick: bool = False,
    ) -> None:
        """Prepare it, and start nothing.

        :param dags: files of ``tests/dags`` that it has; ``None``: all, and the examples.
        :param is_quick: start its components with less work than the plain ``airflow`` command does. Its launcher
            learns nothing about packages.
        """
        self.home = home
        self.components = components
        self._is_quick = is_quick
        self._nurseries: list[Nursery] = []
        self._dag_files = dags
        self.out = home / "out"
        self.out.mkdir(parents=True)
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self._execution_port = self.port
        self.api = Api(self.url, self.query)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        bundles = [
            {
                "name": name,
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(path)},
            }
            for name, path in (("dags-folder", self.dags), ("examples", REPOSITORY / "examples" / "dags"))
            if name == "dags-folder" or dags is None
        ]
        settings = {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url,
            "AIRFLOW__CORE__EXECUTOR": "air_executor.AirExecutor",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            # To unpause one is a change by a user, which the API server logs in its event loop: on SQLite, while a
            # task's request has the lock and waits for that loop, it stands still until one of the two gives up.
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            # With the default of 5 the API server locks itself up for 30 s under load: its event loop waits for a
            # connection, and the requests that have them wait for the event loop.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "40",
            "AIRFLOW__API__SECRET_KEY": "only-for-tests",
            "AIRFLOW__API_AUTH__JWT_SECRET": "only-for-tests-but-long-enough-for-its-algorithm-of-512-bits-" + "x" * 64,
            "AIRFLOW__CORE__FERNET_KEY": "81HqDtbqAywKSOumSha3BhWNOdQ26slT6K0YaZeZyPs=",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
            "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            # Files that have not changed are looked at again every 30 s by default, in a process of their own each.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            # One that takes too long once is not looked at again before that.
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
            "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "600",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(home / "bundles"),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIR_TEST_OUT": str(self.out),
            "PYTHONPATH": str(REPOSITORY),
            # A task's input is a socket, by which Bash takes itself for one that was started from afar, and reads the
            # user's start file, unless another shell is above it.
            "SHLVL": "2",
            **({PRELOAD: "math"} if is_quick else {}),  # what is there anyway
            **(options or {}),
        }
        inherited = {name: value for name, value in without_pytest(os.environ).items() if name[:7] != "AIRFLOW"}
        self.env = {**inherited, **settings}

    @property
    def dags(self) -> Path:
        """The folder of the DAGs, a copy of the tests' own that a test may change."""
        return self.home / "dags"

    def copy_dags(self) -> None:
        """Copy those of the tests' own DAGs that it has to this Airflow's folder."""
        self.dags.mkdir()
        for path in (REPOSITORY / "tests" / "dags").glob("*.py"):
            if self._dag_files is None or path.name in self._dag_files:
                shutil.copy(path, self.dags)

    @property
    def store(self) -> RunStore:
        return RunStore(self.env.get("AIRFLOW__AIR_EXECUTOR__STATE_DIR") or self.home / ".air-executor")

    # Processes

    def split_api_server(self) -> None:
        """Let what tasks ask for be another server's work than what users ask for, from the next start on.

        One server that does both stands still on SQLite now and then: it logs what users do, as the start of a run, in
        its event loop, and waits there for the lock of a task's request, which waits for the event loop. One of the
        two gives up after 5 s; if it is the task's, the task may fail.
        """
        self._execution_port = free_port()
        url = f"http://localhost:{self._execution_port}/execution/"
        self.env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = url

    def _arguments_of(self, component: str) -> list[str]:
        if component == _EXECUTION_API:
            return ["airflow", "api-server", "--apps", "execution", "--port", str(self._execution_port)]
        if component == "api-server" and self._execution_port != self.port:
            return ["airflow", "api-server", "--apps", "core"]
        return ["airflow", component]

    @property
    def has_dag_processor(self) -> bool:
        """Whether DAGs are read as they change. Those of others are known from the beginning, and stay as they are."""
        return "dag-processor" in self.components

    def start(self, *components: str) -> None:
        names = list(components or self.components)
        if "api-server" in names and self._execution_port != self.port:
            names.insert(0, _EXECUTION_API)
        for name in names:
            if self._is_quick and self._arguments_of(name) == ["airflow", name]:
                self._start_quickly(name)
            else:
                self.start_program(name, self._arguments_of(name), self._env_of(name))
        if "api-server" in names:
            try:
                wait_for(self.is_healthy, "the API server", 400)
            except BaseException:
                self.end()  # a fixture that fails is not finalized
                raise

    def start_program(self, name: str, module: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start a Python module with arguments as a part of this Airflow, whose log is ``NAME.log``."""
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", *module],
                env=env or self.env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Tests that are killed leave nothing running either.
                preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
            )

    def _start_quickly(self, name: str) -> None:
        env = self._env_of(name)
        nursery = next((each for each in self._nurseries if each.fits(env)), None)
        if nursery is None:
            like = [each for each in self.components if self._env_of(each) == env]
            nursery = Nursery(env, self.home, self.home / "nursery.log", like)
            self._nurseries.append(nursery)
        log = self.home / f"{name}.log"
        log.touch()
        self.processes[name] = nursery.start(name, env, log)

    def set_aside(self, name: str) -> str:
        """Give a component and its log another name, which is returned, so that a second one can be started."""
        process = self.processes.pop(name)
        other = f"{name}-{process.pid}"
        self.processes[other] = process
        (self.home / f"{name}.log").rename(self.home / f"{other}.log")
        return other

    def _env_of(self, component: str) -> dict[str, str]:
        if component != "api-server":
            return self.env
        option = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
        return {**self.env, option: self.env[option].removesuffix(_SQLITE_WAIT)}

    def is_healthy(self) -> bool:
        if self.processes["api-server"].poll() is not None:
            raise AssertionError(f"the API server ended: {self.log_of('api-server')[-3000:]}")
        # The first request to the execution API takes seconds, for which this server does nothing else. Were it that of
        # a task, another request could hold SQLite's write lock so long that the scheduler dies of it.
        with contextlib.suppress(OSError, urllib.error.URLError):
            return _answers(self.port, "api/v2/monitor/health") and _answers(self._execution_port, "execution/health")
        return False

    def log_of(self, component: str) -> str:
        return (self.home / f"{component}.log").read_text(errors="replace")

    def stop(
        self,
        *components: str,
        signum: signal.Signals = signal.SIGTERM,
        timeout_s: float = 120,
        alone: bool = False,
    ) -> None:
        """End components by SIGTERM or SIGKILL, each with all it started in its own process group, unless ``alone``.

        :raises AssertionError: as :meth:`terminate`, after all the same.
        """
        for name in components or list(self.processes):
            process = self.processes[name]
            try:
                if signum == signal.SIGTERM:
                    with contextlib.suppress(LockedUpError):
                        self.terminate(name, timeout_s=timeout_s)
            finally:
                process.kill()
                process.wait()
                del self.processes[name]
                if not alone:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)

    def terminate(self, name: str, *, until: str | None = None, timeout_s: float = 120) -> int | None:
        """Send SIGTERM to a component, again if it loses it, and wait until it has ended, or has logged ``until``.

        :return: its exit code; ``None`` if it has not ended yet.
        :raises AssertionError: it did neither, and was ended by force. The message tells what its threads were doing.
            :class:`LockedUpError` when it is Airflow that could not.
        """
        process, seen = self.processes[name], len(self.log_of(name))
        process.terminate()

        def is_done() -> bool:
            nonlocal seen
            news = self.log_of(name)[seen:]
            if process.poll() is not None or (until is not None and until in news):
                return True
            if _LOST.search(news):
                seen += len(news)
                process.terminate()
            return False

        try:
            wait_for(is_done, f"the {name} to end", timeout_s)
        except AssertionError as error:
            process.send_signal(signal.SIGABRT)  # the stacks of its threads go to its log
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            stacks = self.log_of(name)[seen:]
            kind = LockedUpError if _WAITS_FOR_ITSELF.search(stacks) else AssertionError
            raise kind(f"{error}\n{stacks[-10000:]}") from None
        return process.poll()

    def revive(self) -> list[str]:
        """Start components again that have ended, as a service manager does, and return their names."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in ended:
            self.stop(name)
            self.start(name)
        return ended

    def end(self) -> None:
        """End everything, runners and launchers too."""
        for name in list(self.processes):
            try:
                self.stop(name, timeout_s=20)
            except AssertionError as error:  # as without its database; pytest shows it if the test has failed
                print(error)
        for nursery in self._nurseries:
            nursery.end()
        self._nurseries.clear()
        for process in self.ours():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def ours(self) -> list[psutil.Process]:
        """Return all processes of this Airflow: they live in its home. (Their titles have overwritten the rest.)"""
        home = str(self.home)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.cwd() == home:
                    found.append(process)
        return found

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 600, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with this Airflow's settings; ``airflow`` and ``air-executor`` are those of this Python."""
        modules = {"airflow": "airflow", "air-executor": "air_executor.cli"}
        argv = [sys.executable, "-m", modules[command[0]], *command[1:]] if command[0] in modules else list(command)
        done = subprocess.run(
            argv, env={**self.env, **env}, cwd=self.home, capture_output=True, text=True, timeout=timeout_s
        )
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    # What it knows

    @functools.cached_property
    def _engine(self) -> sqlalchemy.Engine:
        url = self.env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
        patience = {"connect_timeout": 5} if url.startswith("postgresql") else {}
        return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=patience)

    def query(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """Return rows of its database."""
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(sqlalchemy.text(statement), values).mappings()]

    # What is left of it on disk

    def records(self, dag_id: str | None = None) -> list[RunRecord]:
        return [record for record in self.store.records() if dag_id in (None, record.identity.dag_id)]

    def ended_records(self, dag_id: str) -> list[RunRecord]:
        """Return a DAG's records when all have their end. Airflow knows of the end of a task a moment earlier."""
        wait_for(lambda: all(record.state.is_end for record in self.records(dag_id)), f"the ends of {dag_id}")
        return self.records(dag_id)

    def effects(self, name: str) -> list[str]:
        """Return the lines that tasks have appended to the file ``name``."""
        path = self.out / name
        return path.read_text().splitlines() if path.exists() else []


def _answers(port: int, path: str) -> bool:
    with urllib.request.urlopen(f"http://localhost:{port}/{path}", timeout=60) as answer:
        return int(answer.status) == 200


def make(
    home: Path,
    base: Path,
    options: Mapping[str, str] | None = None,
    components: Sequence[str] = COMPONENTS,
    dags: Sequence[str] | None = None,
    *,
    is_quick: bool = True,
) -> Airflow:
    """Return an Airflow on SQLite that is not started yet.

    :param components: what :meth:`Airflow.start` starts, quickly or, as in the core, by the plain ``airflow`` command.
    :param dags: files of ``tests/dags`` for it, each of which costs its DAG processor half a second; ``None``: all, and
        the examples.
    """
    database = home / "airflow.db"
    env = Airflow(home, f"sqlite:///{database}{_SQLITE_WAIT}", options, components, dags, is_quick=is_quick)
    env.copy_dags()
    shutil.copy(sqlite_template(base, has_dags=not env.has_dag_processor), database)
    return env


def config(state_dir: Path, **changes: Any) -> Config:
    """Return options for a store of a test."""
    values: dict[str, Any] = {
        "state_dir": str(state_dir),
        "launch": "fork",
        "launcher": "own",
        "on_shutdown": "detach",
        "api_patience_seconds": 3600.0,
        "preload": (),
        "launcher_idle_seconds": 60.0,
        "stop_grace_seconds": 5.0,
        "keep_days": 7.0,
        "keep_runs": 1000,
        "gpus": (),
    }
    return Config(**{**values, **changes})
