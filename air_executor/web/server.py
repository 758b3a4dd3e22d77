"""The pages without Airflow: a server on this machine alone, for those who have its token."""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from air_executor import jsontext
from air_executor.errors import AirExecutorError, RecordError, UnknownJobError
from air_executor.observe.everywhere import AllRuns
from air_executor.runs.record import RunRecord
from air_executor.web import STATIC, documents

_PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>AirExecutor</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; }
body { margin: 0; background: var(--air-bg, #fff); }
.dark { --air-fg: #e2e8f0; --air-muted: #a0aec0; --air-bg: #171923; --air-line: #2d3748; }
</style></head>
<body><div id="pages"></div>
<script type="module">
import { mount } from "./static/air_executor.js";
// The part of an address behind # is sent to no server, and what is kept here belongs to this port alone.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) sessionStorage.setItem("air-executor", given);
history.replaceState(null, "", location.pathname);
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", follow);
follow();
mount(document.getElementById("pages"), { token: sessionStorage.getItem("air-executor") });
</script></body></html>
"""

_TYPES = {".js": "text/javascript; charset=utf-8", ".txt": "text/plain; charset=utf-8"}

#: What keeps others' pages from framing these, or from running anything in them.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class PagesServer(ThreadingHTTPServer):
    """Serves the pages at 127.0.0.1."""

    daemon_threads = True

    def __init__(
        self, port: int, runs: Callable[[], AllRuns], stop: Callable[[AllRuns, RunRecord, str], None], user: str
    ) -> None:
        """Listen.

        :param port: 0 for any that is free.
        :param runs: returns the runs to show.
        :param stop: has one stopped, for a reason.
        :param user: who is named as the one that stops runs.
        :raises OSError: that is not possible.
        """
        super().__init__(("127.0.0.1", port), _Handler)
        self.runs, self.stop, self.user = runs, stop, user
        self.token = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """The address for a browser, with the token."""
        return f"http://127.0.0.1:{self.server_address[1]}/#token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: PagesServer
    server_version = "air-executor"

    def do_GET(self) -> None:
        """Answer a request for a page, or for what it shows."""
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if not self._is_for_us():
            return self._tell(403, "this server is for 127.0.0.1 alone")
        if path == "/":
            return self._send(200, "text/html; charset=utf-8", _PAGE)
        if path.startswith("/static/"):
            return self._send_static(path.removeprefix("/static/"))
        if not self._is_known():
            return self._tell(401, "open the address that `air-executor ui` has printed: it has the token")
        return self._answer(lambda: self._find(path, query))

    def do_POST(self) -> None:
        """Stop a run."""
        parts = urlsplit(self.path).path.split("/")
        if not self._is_for_us():
            return self._tell(403, "this server is for 127.0.0.1 alone")
        if not self._is_known():
            return self._tell(401, "the token is missing")
        if len(parts) != 5 or parts[1:3] != ["api", "runs"] or parts[4] != "stop":
            return self._tell(404, "not found")
        return self._answer(lambda: self._stop(parts[3]))

    def _is_for_us(self) -> bool:
        """Tell whether the request names this machine: a name that somebody has pointed here does not."""
        return (self.headers.get("Host") or "").rpartition(":")[0] in ("127.0.0.1", "localhost")

    def _is_known(self) -> bool:
        """Tell whether the request has the token: not in a cookie, which every port of this machine would get."""
        given = (self.headers.get("Authorization") or "").encode(errors="surrogateescape")
        return hmac.compare_digest(given, f"Bearer {self.server.token}".encode())

    def _find(self, path: str, query: dict[str, list[str]]) -> dict[str, Any] | None:
        runs = self.server.runs()
        if path == "/api/runs":
            return {**documents.machine(runs), "runs": documents.live(runs, lambda _: True, lambda _: True)}
        if path == "/api/ended":
            return {"runs": documents.ended(runs, lambda _: True)}
        if path == "/api/jobs":
            return documents.jobs(runs)
        if path.startswith("/api/jobs/"):
            return documents.job(runs, unquote(path.removeprefix("/api/jobs/")))
        if path.startswith("/api/runs/"):
            return documents.run(runs, runs.settled(runs.find(path.removeprefix("/api/runs/"))), lambda _: True)
        if path == "/api/instance":
            dag_id, run_id, task_id = (query.get(name, [""])[0] for name in ("dag_id", "run_id", "task_id"))
            index = query.get("map_index", ["-1"])[0]
            if not re.fullmatch(r"-?[0-9]{1,9}", index):
                return None
            return {"runs": documents.instance(runs, dag_id, run_id, task_id, int(index), lambda _: True)}
        return None

    def _stop(self, run_id: str) -> dict[str, Any]:
        runs = self.server.runs()
        record = runs.settled(runs.find(run_id))
        self.server.stop(runs, record, f"stopped in a browser, by {self.server.user}")
        return {"id": record.id}

    def _answer(self, find: Callable[[], dict[str, Any] | None]) -> None:
        try:
            found = find()
        except (UnknownJobError, RecordError) as error:
            return self._tell(404, str(error))
        except AirExecutorError as error:
            return self._tell(409, str(error))
        if found is None:
            return self._tell(404, "not found")
        return self._send(200, "application/json", jsontext.dumps(found))

    def _send_static(self, name: str) -> None:
        known = {path.name: path for path in STATIC.iterdir()}
        if name not in known:
            return self._tell(404, "not found")
        return self._send(200, _TYPES[known[name].suffix], known[name].read_bytes())

    def _tell(self, status: int, why: str) -> None:
        self._send(status, "application/json", json.dumps({"detail": why}).encode())

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS, **(headers or {})
        }.items():  # fmt: skip
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # who has asked has gone
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""
