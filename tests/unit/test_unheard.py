"""Metrics, traces, Sentry and remote logs hear nothing of a rehearsal, and all of real tasks after it."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from air_executor.airflow import compat
from tests.support.airflow_env import REPOSITORY, without_pytest

pytestmark = pytest.mark.core

#: Rehearses, and executes the same tasks for real; says when each has been done.
SCRIPT = """
import contextlib, os, sys
from pathlib import Path

from air_executor.airflow import rehearsal, unheard, warmup
from tests.support.airflow_env import config
from hearing import say

store = Path(sys.argv[1])
say("imported")
warmup.warm_up([])
threads = len(os.listdir("/proc/self/task"))
rehearsal.rehearse()
rehearsal.rehearse_runs(config(store))
assert len(os.listdir("/proc/self/task")) == threads
say("rehearsed")
if not os.fork():
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    RuntimeTaskInstance.get_task_breadcrumbs = lambda **_: []  # asked for by Sentry; the rehearsal has none
    unheard.telemetry = contextlib.nullcontext
    rehearsal._TIMES = 1
    rehearsal._Rehearsal(config(store)).play()
    os._exit(0)
assert os.wait()[1] == 0
say("executed")
"""

TO_FILE = """
from pathlib import Path

def say(text):
    with Path(__file__).with_name("heard").open("a") as file:
        file.write(text + "\\n")
"""

TO_STATSD = """
import os, socket

def say(text):
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), ("127.0.0.1", int(os.environ["HEARING_PORT"])))
"""

#: What Airflow uses of the package of this name.
STATSD = """
import socket

class StatsClient:
    def __init__(self, host, port, prefix, ipv6=False):
        self._socket, self._address, self._prefix = socket.socket(type=socket.SOCK_DGRAM), (host, int(port)), prefix

    def _send(self, stat, *_, **__):
        self._socket.sendto(f"{self._prefix}.{stat}".encode(), self._address)

    incr = decr = gauge = timing = _send

    def timer(self, stat=None, *_, **__):
        return Timer(self, stat)


class Timer:
    ms = 0.0

    def __init__(self, client, stat):
        self._client, self._stat = client, stat

    def start(self):
        return self

    def stop(self, send=True):
        if send and self._stat:
            self._client.timing(self._stat, 0)

    __enter__ = start

    def __exit__(self, *_):
        self.stop()
"""

TO_COLLECTOR = """
import os, urllib.request

def say(text):
    url = f"http://127.0.0.1:{os.environ['HEARING_PORT']}/{text}"
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, data=b"", timeout=60).close()
"""

#: What Airflow uses of the package of this name.
SENTRY = """
import contextlib
from hearing import say
from . import integrations
from .integrations import logging

class Scope:
    def set_tag(self, name, value):
        say("tag")

def init(**_):
    say("init")

def new_scope():
    return contextlib.nullcontext(Scope())

push_scope = configure_scope = new_scope  # Airflow 3.2

def get_current_scope():
    return Scope()

def add_breadcrumb(**_):
    say("breadcrumb")

def capture_exception(error):
    say(f"error {error}")

def flush():
    pass
"""

REMOTE = """
from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG
from hearing import say

LOGGING_CONFIG = DEFAULT_LOGGING_CONFIG
DEFAULT_REMOTE_CONN_ID = None


def look(logger, method, event):
    say(f"line of {type(logger).__name__}")
    return event


class Remote:
    processors = (look,)

    def upload(self, path, ti):
        say("upload")


REMOTE_TASK_LOG = Remote()
"""


@contextlib.contextmanager
def statsd_server() -> Iterator[tuple[int, Callable[[], list[str]]]]:
    with socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(60)

        def heard() -> list[str]:
            found = []
            while (text := receiver.recv(4096).decode()) != "executed":
                found.append(text)
            return [*found, text]

        yield receiver.getsockname()[1], heard


@contextlib.contextmanager
def collector() -> Iterator[tuple[int, Callable[[], list[str]]]]:
    found: list[str] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.append(self.path.removeprefix("/"))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1], lambda: found
        server.shutdown()
        thread.join()


def play(tmp_path: Path, files: dict[str, str], options: dict[str, str]) -> None:
    for name, text in files.items():
        path = tmp_path / "hearing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    env = {
        **without_pytest(os.environ),
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "NO_PROXY": "*",
        **options,
        "PYTHONPATH": f"{tmp_path / 'hearing'}{os.pathsep}{REPOSITORY}",
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "state")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "cannot be rehearsed" not in printed
    assert "does not work" not in printed


def assert_only_the_execution_was_heard(heard: list[str], *expected: str) -> None:
    # To import Airflow is something to be measured, too.
    ahead = heard.index("imported")
    assert heard[ahead + 1] == "rehearsed"
    assert heard[-1] == "executed"
    assert set(expected) <= set(heard[ahead + 2 : -1])


def test_statsd(tmp_path: Path) -> None:
    with statsd_server() as (port, heard):
        options = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_PORT": str(port),
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "HEARING_PORT": str(port),
        }
        play(tmp_path, {"hearing.py": TO_STATSD, "statsd.py": STATSD}, options)
        assert_only_the_execution_was_heard(heard(), "airflow.ti.start", "airflow.ti.finish", "airflow.task.duration")


@pytest.mark.skipif(compat.AIRFLOW_VERSION < (3, 2), reason="tasks have no spans of their own")
def test_traces(tmp_path: Path) -> None:
    with collector() as (port, heard):
        options = {
            "AIRFLOW__TRACES__OTEL_ON": "True",
            "OTEL_TRACES_EXPORTER": "otlp_proto_http",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "HEARING_PORT": str(port),
        }
        play(tmp_path, {"hearing.py": TO_COLLECTOR}, options)
        assert_only_the_execution_was_heard(heard(), "v1/traces")


@pytest.mark.skipif(compat.AIRFLOW_VERSION < (3, 2), reason="tasks do not report to Sentry themselves")
def test_sentry(tmp_path: Path) -> None:
    files = {
        "hearing.py": TO_FILE,
        "sentry_sdk/__init__.py": SENTRY,
        "sentry_sdk/integrations/__init__.py": "",
        "sentry_sdk/integrations/logging.py": "def ignore_logger(name):\n    pass\n",
    }
    play(tmp_path, files, {"AIRFLOW__SENTRY__SENTRY_ON": "True"})
    heard = (tmp_path / "hearing" / "heard").read_text().splitlines()
    assert_only_the_execution_was_heard(heard, "init", "tag")


def test_remote_logs(tmp_path: Path) -> None:
    options = {"AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS": "remote_logs.LOGGING_CONFIG"}
    play(tmp_path, {"hearing.py": TO_FILE, "remote_logs.py": REMOTE}, options)
    heard = (tmp_path / "hearing" / "heard").read_text().splitlines()
    # In the supervisor, and in the task process, whose loggers are structlog's or not.
    assert_only_the_execution_was_heard(heard, "line of BytesLogger", "line of NamedBytesLogger")
