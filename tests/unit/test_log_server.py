"""A host's log server: the same answers as Airflow's own, whose application gets the same requests here."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jwt
import psutil
import pytest
from airflow.utils.serve_logs.log_server import create_app

from air_executor.airflow.compat import AIRFLOW_VERSION, log_serving
from air_executor.airflow.compat.served_logs import LogAwayError, update
from air_executor.cli.worker import _SERVE_LOGS
from air_executor.errors import AirExecutorError
from air_executor.temporal import log_server
from tests.support.airflow_env import free_port
from tests.support.waiting import wait_for

pytestmark = pytest.mark.core

KEY = "a key for logs, of 64 bytes at least" * 2
AUDIENCE = "task-instance-logs"

#: Airflow accepts clocks that differ by this many seconds.
LEEWAY_S = 30

LOG = "dag_id=d/task.log"
TEXT = b"one\ntwo\nthree\n"

#: Airflow's server and ours need 120 and 30 MB on one machine; half of the former is not reached by chance.
LIGHT_BYTES = 60 << 20


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def ask(app: Any, path: str, token: str | None, method: str = "GET", **headers: str) -> Answer:
    """Ask an application, with the path as it is: clients would tidy it up."""
    sent: list[Any] = []
    named = {"host": "host:8793", **headers, **({} if token is None else {"authorization": token})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "server": ("host", 8793),
        "client": ("127.0.0.1", 1),
    }

    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(asked, None) or await asyncio.Future()  # the client stays

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    start, *rest = sent
    answered = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], answered, b"".join(each.get("body", b"") for each in rest))


def token(name: str | None = LOG, key: str = KEY, algorithm: str = "HS512", **claims: Any) -> str:
    """Return a token as Airflow's UI has it; a claim that is ``None`` is left out."""
    now = int(time.time())
    all_claims = {"filename": name, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 30, **claims}
    return jwt.encode({name: value for name, value in all_claims.items() if value is not None}, key, algorithm)


def from_now(seconds: float) -> int:
    return int(time.time() + seconds)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "logs"
    (folder / LOG).parent.mkdir(parents=True)
    (folder / LOG).write_bytes(TEXT)
    (folder / "beside.log").symlink_to(folder / LOG)
    (tmp_path / "secret").write_text("not a log")
    (folder / "away.log").symlink_to(tmp_path / "secret")
    (tmp_path / "logs_of_another").mkdir()
    (tmp_path / "logs_of_another" / "x.log").write_text("not ours")
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(folder))
    monkeypatch.setenv("AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT", str(free_port()))
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", KEY)
    return folder


def answer(*request: Any, **headers: Any) -> Answer:
    """Ask both servers, and return the answer: it is the same."""
    theirs = ask(create_app(), *request, **headers)
    ours = ask(log_server.application(log_serving.service()), *request, **headers)
    assert ours == theirs
    return ours


def test_a_log_is_served_to_who_has_a_token_for_it(logs: Path) -> None:
    whole = answer(f"/log/{LOG}", token())
    assert (whole.status, whole.body) == (200, TEXT)
    assert answer("/log/beside.log", token("beside.log")).body == TEXT
    assert answer("/log/dag_id%3Dd/task.log", token()).body == TEXT
    known = answer(f"/log/{LOG}", token(), **{"if-none-match": whole.headers["etag"]})
    assert (known.status, known.body) == (304, b"")


REFUSED = {
    "none": lambda: None,
    "empty": lambda: "",
    "rubbish": lambda: "a.b.c",
    "of another scheme": lambda: f"Bearer {token()}",
    "of another key": lambda: token(key="another key for logs, of 64 bytes" * 2),
    "of another algorithm": lambda: token(algorithm="HS256"),
    "not signed": lambda: token(key="", algorithm="none"),
    "for another audience": lambda: token(aud="urn:airflow.apache.org:task"),
    "for no audience": lambda: token(aud=None),
    "for another file": lambda: token("dag_id=d/other.log"),
    "for no file": lambda: token(None),
    "expired": lambda: token(exp=from_now(-LEEWAY_S - 10)),
    "valid from later on": lambda: token(nbf=from_now(LEEWAY_S + 60)),
    "issued in the future": lambda: token(iat=from_now(LEEWAY_S + 60)),
    "without an end": lambda: token(exp=None),
    "without a beginning": lambda: token(nbf=None),
    "without an issue": lambda: token(iat=None),
    "with a text for an end": lambda: token(exp="never"),
}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_token_that_is_not_good_is_refused(kind: str, method: str, logs: Path) -> None:
    refused = answer(f"/log/{LOG}", REFUSED[kind](), method)
    assert refused.status == 403
    assert TEXT not in refused.body


def test_clocks_may_differ_a_little(logs: Path) -> None:
    for claims in ({"exp": from_now(-LEEWAY_S / 2)}, {"nbf": from_now(LEEWAY_S / 2), "iat": from_now(LEEWAY_S / 2)}):
        assert answer(f"/log/{LOG}", token(**claims)).status == 200


def test_an_issuer_does_not_matter(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_ISSUER", "somebody")
    assert answer(f"/log/{LOG}", token(iss="else")).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/log/missing.log",
        f"/log/{LOG}/more",
        "/log/dag_id=d",
        "/log/dag_id=d/",
        "/log/",
        "/log/away.log",
        "/log/../secret",
        "/log/%2e%2e/secret",
        "/log/..%2fsecret",
        "/log/dag_id=d/../../secret",
        "/log/../logs_of_another/x.log",
        "/",
        "/logs/x.log",
        f"/{LOG}",
        *(["/log//etc/passwd"] if AIRFLOW_VERSION >= (3, 2) else []),  # 3.1 takes it for another name
    ],
)
def test_what_is_no_log_is_not_found(path: str, logs: Path) -> None:
    missing = answer(path, token(unquote(path).removeprefix("/log/")))
    assert (missing.status, missing.body) == (404, b'{"detail":"Not Found"}')


def test_the_folder_has_no_list(logs: Path) -> None:
    assert answer("/log", token("")).status == 307
    assert answer("/log/", token(LOG)).status == 403


@pytest.mark.parametrize(
    ("wanted", "status", "body", "place"),
    [
        ("bytes=4-", 206, b"two\nthree\n", "bytes 4-13/14"),
        ("bytes=0-2", 206, b"one", "bytes 0-2/14"),
        ("bytes=-6", 206, b"three\n", "bytes 8-13/14"),
        ("bytes=14-", 416, None, "*/14"),
    ],
)
def test_a_part_of_a_log(wanted: str, status: int, body: bytes | None, place: str, logs: Path) -> None:
    part = answer(f"/log/{LOG}", token(), range=wanted)
    assert part.status == status
    assert part.headers["content-range"].endswith(place)
    assert body is None or part.body == body


def test_only_reading_is_possible(logs: Path) -> None:
    head = answer(f"/log/{LOG}", token(), "HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(TEXT)), b"")
    for method in ("POST", "PUT", "DELETE"):
        assert answer(f"/log/{LOG}", token(), method).status == 405


def test_a_name_that_begins_like_the_path(logs: Path) -> None:
    (logs / "gold").mkdir()
    (logs / "gold" / "x.log").write_bytes(TEXT)
    ours = log_server.application(log_serving.service())
    assert ask(ours, "/log/gold/x.log", token("gold/x.log")).body == TEXT
    assert ask(ours, "/log/gold/x.log", token("d/x.log")).status == 403  # the one Airflow 3.1 wants, by mistake


def test_airflows_options_count(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WEBSERVER__LOG_REQUEST_CLOCK_GRACE", "7")
    service = log_serving.service()
    assert service == log_server.Service(
        port=int(os.environ["AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"]),
        folder=str(logs),
        key=KEY,
        algorithms=["HS512"],
        audience=AUDIENCE,
        issuer=None,
        required_claims=["exp", "iat", "nbf"],
        leeway_s=7,
    )
    assert KEY not in repr(service)
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "own_logging.py").write_text(
        f"LOGGING = {{'handlers': {{'task': {{'base_log_folder': {str(own)!r}}}}}}}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS", "own_logging.LOGGING")
    assert log_serving.service().folder == str(own)


def test_another_server_of_airflow_is_not_imitated(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app()
    app.routes.clear()
    monkeypatch.setattr(log_serving, "create_app", lambda: app)
    with pytest.raises(AirExecutorError, match="another one"):
        log_serving.service()


def test_why_a_request_is_refused_is_logged_without_its_token(logs: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = log_server.application(log_serving.service())
    expired = token(exp=from_now(-100))
    with caplog.at_level(logging.WARNING):
        ask(ours, f"/log/{LOG}", expired)
        ask(ours, f"/log/{LOG}", token(key="another key for logs, of 64 bytes" * 2))
        ask(ours, "/log/a%1Bb", None)
    assert "expired; do the clocks" in caplog.messages[0]
    assert "[api] secret_key" in caplog.messages[1]
    assert r"'a\x1bb'" in caplog.messages[2]
    assert expired not in caplog.text


class Served:
    """The log server of a process that can be killed."""

    def __init__(self) -> None:
        code = (
            "import os, subprocess, sys, time\n"
            "print(subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]).pid, flush=True)\n"
            "time.sleep(3600)"
        )
        self.parent = subprocess.Popen([sys.executable, "-c", code, _SERVE_LOGS], stdout=subprocess.PIPE, text=True)
        assert self.parent.stdout
        self.process = psutil.Process(int(self.parent.stdout.readline()))

    def has_ended(self) -> bool:
        try:
            return self.process.status() == psutil.STATUS_ZOMBIE  # nobody may reap orphans here
        except psutil.NoSuchProcess:
            return True

    def end(self) -> None:
        if not self.has_ended():
            self.process.kill()
        self.parent.kill()
        self.parent.communicate()


def test_the_process_serves_without_airflow_and_dies_with_its_parent(logs: Path) -> None:
    served = Served()
    try:
        copy = io.BytesIO()

        def fetched() -> bool:
            try:
                update(copy, "127.0.0.1", str(logs / LOG))
            except LogAwayError:
                return False
            return True

        wait_for(fetched, "the log server")
        assert copy.getvalue() == TEXT
        proc = Path(f"/proc/{served.process.pid}")
        if proc.exists():
            assert (proc / "cmdline").read_bytes().startswith(b"air-executor log server")
            for name in ("cmdline", "environ"):
                assert KEY.encode() not in (proc / name).read_bytes()
            maps = (proc / "maps").read_text()
            assert "pydantic_core" not in maps and "sqlalchemy" not in maps  # of which Airflow maps libraries
            assert served.process.memory_full_info().pss < LIGHT_BYTES
        served.parent.kill()
        if sys.platform == "linux":
            wait_for(served.has_ended, "the end of the log server")
    finally:
        served.end()


def start(service: log_server.Service) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", log_server.__name__, str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin
    process.stdin.write(json.dumps(dataclasses.asdict(service)))
    process.stdin.close()
    process.stdin = None
    return process


def test_a_port_that_is_taken_is_told_in_one_line(logs: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(dataclasses.replace(log_serving.service(), port=port))
        _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert told.count("\n") == 1
    assert f"port {port} (Address already in use)" in told
    assert "[logging] worker_log_server_port" in told and "--no-logs" in told


def test_it_ends_when_it_is_asked_to(logs: Path) -> None:
    service = log_serving.service()
    process = start(service)
    addresses = ["127.0.0.1", *(["::1"] if _has_ipv6() else [])]
    for address in addresses:
        wait_for(lambda address=address: _answers(address, service.port), f"the log server at {address}")
    process.terminate()
    _, told = process.communicate(timeout=120)
    assert told == ""


def test_ctrl_c_is_for_the_worker_however_early_it_comes(logs: Path) -> None:
    command = [sys.executable, "-c", _SERVE_LOGS, str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ignored = 1 << (signal.SIGINT - 1)

    def ignores() -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text().split("SigIgn:")[1]
        return bool(int(status.split()[0], 16) & ignored)

    def is_over() -> bool:
        """Interrupt it; the server itself ends by that, once it serves."""
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    wait_for(ignores, "it to leave Ctrl-C to the worker", every_s=0.001)
    wait_for(is_over, "the server")
    assert process.communicate(timeout=120)[1] == ""


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return socket.has_dualstack_ipv6()
    except OSError:
        return False


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False


def test_it_imports_no_airflow() -> None:
    code = (
        f"import sys, {log_server.__name__}\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('airflow', 'fastapi', 'sqlalchemy')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120) == "[]\n"
