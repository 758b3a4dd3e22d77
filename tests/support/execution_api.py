"""Airflow's execution API without an Airflow: what runners need of it, for tests that look at single tasks.

It grew from the API server of the rehearsal. It keeps what tasks tell it, and answers from what a test has given it.
"""

from __future__ import annotations

import socketserver
import threading
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from air_executor.airflow import rehearsal


@dataclass
class Told:
    """What a task instance and its runner have told."""

    started: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    """The states that it was to take, with all that came with them."""
    rendered: dict[str, Any] = field(default_factory=dict)
    """The fields that are shown as rendered."""
    beats: int = 0

    @property
    def states(self) -> list[str]:
        return [each["state"] for each in self.ends]


class _Handler(rehearsal.ExecutionApi):
    server: FakeApi

    def answer(self, _body: bytes) -> tuple[int, Any]:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")[1:]
        return self.server.answer(self.command, path, orjson.loads(_body) if _body else None)


class FakeApi(socketserver.ThreadingTCPServer):
    """A server on a free port."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/execution/"
        self.told: defaultdict[str, Told] = defaultdict(Told)
        """By the ids of task instances."""
        self.contexts: dict[str, dict[str, Any]] = {}
        """What to say of a run to a task instance that starts, beside what is always said."""
        self.xcoms: dict[tuple[str, ...], Any] = {}
        """By dag, run, task and key."""
        self.variables: dict[str, str] = {}
        self.refused = 0
        """How many requests were refused."""
        self._refusal: tuple[int, str | None] | None = None

    @contextmanager
    def serving(self) -> Iterator[FakeApi]:
        thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Within this, all requests fail as they do when the server behind a proxy is away."""
        with self.refusing(503):
            yield

    @contextmanager
    def refusing(self, status: int, only: str | None = None) -> Iterator[None]:
        """Within this, all requests are answered with this status, or those whose path ends with ``only``."""
        self._refusal = status, only
        try:
            yield
        finally:
            self._refusal = None

    def answer(self, method: str, path: list[str], body: Any) -> tuple[int, Any]:
        if self._refusal is not None and self._refusal[1] in (None, path[-1]):
            self.refused += 1
            return self._refusal[0], {"detail": {"reason": "not_running", "message": "not now"}}
        match path:
            case ["task-instances", ti_id, "run"]:
                self.told[ti_id].started.append(body)
                return 200, {**rehearsal.CONTEXT, **self.contexts.get(ti_id, {})}
            case ["task-instances", ti_id, "state"]:
                self.told[ti_id].ends.append(body)
            case ["task-instances", ti_id, "heartbeat"]:
                self.told[ti_id].beats += 1
            case ["task-instances", ti_id, "rtif"]:
                self.told[ti_id].rendered = body
            case ["variables", name] if method == "GET":
                if name not in self.variables:
                    return 404, {"detail": {"reason": "not_found"}}
                return 200, {"key": name, "value": self.variables[name]}
            case ["xcoms", *names]:
                return self._xcom(method, tuple(names), body)
            case ["connections", _]:
                return 404, {"detail": {"reason": "not_found"}}
        return 200, None

    def _xcom(self, method: str, names: tuple[str, ...], body: Any) -> tuple[int, Any]:
        if method == "POST":
            self.xcoms[names] = body
        elif method == "DELETE":
            self.xcoms.pop(names, None)
        elif names not in self.xcoms:
            return 404, {"detail": {"reason": "not_found"}}
        else:
            return 200, {"key": names[-1], "value": self.xcoms[names]}
        return 200, None
