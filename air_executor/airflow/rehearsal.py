"""A launcher's rehearsal: it does, before its first fork, what runners and task processes would do for the first time.

CPython caches where it has found attributes, and specializes code that is called often. What a process does for the
first time is slow, and makes the memory of these caches private. So the launcher plays runner and task process for a
few runs. No server or database of Airflow, and nothing that the user has installed, takes part.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import importlib
import os
import socket
import socketserver
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import CodeType
from typing import Any

import httpx
import orjson

from air_executor.airflow import unheard
from air_executor.airflow.compat import AIRFLOW_VERSION, options, places, rehearsing
from air_executor.config import Config
from air_executor.errors import AirExecutorError
from air_executor.launcher import memory, traces
from air_executor.launcher.practice import TIMES, attempt, everything_restored, imports_undone, noting, silence
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import Identity, RunState, queued
from air_executor.runs.store import RunStore

#: The DAG file that is read, and its task that is executed.
_DAG_FILE = Path(__file__).with_name("rehearsed_dag.py")
_DAG_ID, _TASK_ID = "rehearsed", "second"

_COMPLAINT = "cannot be rehearsed"

_MOMENT = "2026-01-01T00:00:00Z"

#: The execution API's answer to the start of a run.
CONTEXT: dict[str, Any] = {
    "dag_run": {
        "dag_id": _DAG_ID,
        "run_id": "rehearsal",
        "logical_date": _MOMENT,
        "data_interval_start": _MOMENT,
        "data_interval_end": _MOMENT,
        "run_after": _MOMENT,
        "start_date": _MOMENT,
        "end_date": None,
        "run_type": "manual",
        "state": "running",
        "conf": {},
        "consumed_asset_events": [],
        **({"partition_key": None} if AIRFLOW_VERSION >= (3, 2) else {}),
    },
    "task_reschedule_count": 0,
    "max_tries": 0,
    "should_retry": False,
    "xcom_keys_to_clear": [],
}


def rehearse() -> None:
    """Make requests and read a DAG file. Repeat it after imports: many new classes make CPython drop its caches."""
    attempt(_forget_imports)
    with traces.erased(), unheard.telemetry():
        attempt(_requests, _parsing, complaint=_COMPLAINT)


def rehearse_runs(config: Config) -> None:
    """Play runner and task process for a DAG that is in no database. Only for processes without children and threads.

    It also moves the code that was used together in memory. Where tasks run as another user, nothing is rehearsed.
    """

    def runs() -> None:
        if sys.platform == "linux" and options.impersonation() is None:
            _Rehearsal(config).play()

    attempt(runs, complaint=_COMPLAINT)


def _forget_imports() -> None:
    """Empty the type cache: each task would replace the entries that imports left, one by one."""
    sys._clear_type_cache()


def _requests() -> None:
    from airflow.sdk.api.client import Client

    # The first client reads the trust store, which this process and its children keep.
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={}))
    for _ in range(TIMES):
        with contextlib.closing(Client(base_url="http://rehearsal.invalid", token="", transport=transport)) as client:
            client.task_instances.set_rtif(uuid.uuid4(), {})
            client.task_instances.succeed(uuid.uuid4(), datetime.now(tz=timezone.utc), [], [], None)


def _parsing() -> None:
    for _ in range(TIMES):
        with imports_undone():
            bag = importlib.import_module(places.DAG_BAG).BundleDagBag(
                dag_folder=str(_DAG_FILE), bundle_path=_DAG_FILE.parent, safe_mode=False, load_op_links=False
            )
        if bag.import_errors:
            raise AirExecutorError(f"the rehearsed DAG file has errors: {bag.import_errors}")


class _Rehearsal:
    """Runs of a DAG that is in no database, with a store and an API server of their own."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def play(self) -> None:
        """Play a few runs; the first one finds out which code is used.

        :raises AirExecutorError: a run did not succeed; the message has its output.
        """
        used: dict[int, CodeType] = {}
        with self._setting():
            with noting(used):
                self._once()
            memory.gather_code(used.values())
            for _ in range(TIMES):
                self._once()

    @contextlib.contextmanager
    def _setting(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="air-executor-")))
            self._store = RunStore(self._folder / "state")
            self._store.prepare()
            self._own_config = dataclasses.replace(
                self._config, state_dir=str(self._store.root), api_patience_seconds=1.0
            )
            stack.enter_context(everything_restored())
            stack.enter_context(silence(self._folder / "said"))
            os.environ["NO_PROXY"] = "*"
            stack.enter_context(rehearsing.rehearsing(_DAG_FILE.parent))
            stack.enter_context(unheard.telemetry())
            server = stack.enter_context(socketserver.TCPServer(("127.0.0.1", 0), ExecutionApi))
            self._url = f"http://127.0.0.1:{server.server_address[1]}/execution/"
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            yield

    def _once(self) -> None:
        run_id = str(uuid.uuid4())
        log_file = self._folder / "log" / run_id
        task: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "dag_version_id": str(uuid.uuid4()),
            "dag_id": _DAG_ID,
            "task_id": _TASK_ID,
            "run_id": "rehearsal",
            "map_index": 0,
            "try_number": 1,
            "queue": f"air-executor-{run_id}",  # of no coordinator, so the task is Python's
            "pool_slots": 1,
            "priority_weight": 1,
        }
        workload = {
            "ti": task,
            "dag_rel_path": _DAG_FILE.name,
            "bundle_info": {"name": "rehearsal", "version": None},
            "token": "",
            "log_path": str(log_file),
        }
        self._be_runner(run_id, task, workload, log_file)
        self._be_task(task, workload)

    def _be_runner(self, run_id: str, task: dict[str, Any], workload: dict[str, Any], log_file: Path) -> None:
        from air_executor.airflow import supervision
        from air_executor.runner import main as runner

        identity = Identity(kind="task", workload_id=task["id"], name="rehearsal")
        request = RunRequest(id=run_id, identity=identity, workload=workload, server=self._url, log_file=str(log_file))
        self._store.create(queued(run_id, identity, limits={}, log_file=str(log_file)))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            runner.prepare(self._store, self._own_config, theirs)
        lock = self._store.lock(identity.workload_id)
        try:
            request = RunRequest.from_message(orjson.loads(orjson.dumps(request.to_message())))
            lock.acquire(0)
            runner.execute(request, self._store.read(run_id), self._store, self._own_config)
        finally:
            lock.release()
            supervision.forget()
        record = self._store.read(run_id)
        if record.state is not RunState.SUCCEEDED:
            said = log_file.read_text() if log_file.exists() else ""
            raise AirExecutorError(f"the rehearsed run has {record.state.value}: {record.reason}\n{said}")

    @staticmethod
    def _be_task(task: dict[str, Any], workload: dict[str, Any]) -> None:
        """Execute the task in this process. All its supervisor's answers are sent before it asks."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(rehearsing.answers_to_task({**workload, "ti": task}, CONTEXT))
            nothing = os.open(os.devnull, os.O_RDONLY)
            with theirs:
                os.dup2(theirs.fileno(), 0)
            try:
                contextvars.copy_context().run(rehearsing.be_task)
            finally:
                os.dup2(nothing, 0)
                os.close(nothing)
            sent = ours.recv(1 << 20)
        if b"SucceedTask" not in sent:
            raise AirExecutorError(f"the rehearsed task did not succeed: it sent {sent!r}")


class ExecutionApi(BaseHTTPRequestHandler):
    """Airflow's execution API, as far as the rehearsal needs it: it accepts everything."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # so that an answer is one packet

    def answer(self, _body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON that answer a request with this body."""
        return 200, CONTEXT if self.path.endswith("/run") else None

    def _answer(self) -> None:
        status, answer = self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        body = orjson.dumps(answer)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_GET = do_PATCH = do_POST = do_PUT = _answer  # noqa: N815 (names that the standard library looks up)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
