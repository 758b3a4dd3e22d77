"""A host's log server: it answers Airflow's UI as Airflow's own does, without Airflow in its memory.

``air_executor.airflow.compat.log_serving`` finds out what Airflow would serve and becomes this process:
``python -m air_executor.temporal.log_server PARENT``. It hands the :class:`Service` over through standard input, as the
key in it belongs neither on a command line nor in an environment.

Starlette, Uvicorn and PyJWT come with Airflow. No host without Airflow imports this.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from dataclasses import dataclass, field
from typing import NoReturn

import jwt
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from air_executor.errors import AirExecutorError
from air_executor.machine import system

#: Where logs are: a request for ``/log/dag/task.log`` gets ``dag/task.log``.
PATH = "/log"

_CLOCKS = "do the clocks of this host and of Airflow's API server agree?"

#: What to look at when a token is refused.
_HINTS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: _CLOCKS,
    jwt.ImmatureSignatureError: _CLOCKS,
    jwt.InvalidIssuedAtError: _CLOCKS,
    jwt.InvalidSignatureError: "is [api] secret_key the same on this host and on Airflow's API server?",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What is served, and which tokens are accepted: the arguments of ``jwt.decode``."""

    port: int
    folder: str
    key: str = field(repr=False)
    algorithms: list[str]
    audience: str | list[str]
    issuer: str | list[str] | None
    required_claims: list[str]
    leeway_s: float


class _Logs(StaticFiles):
    """Files, each for those who have a token that names it."""

    def __init__(self, service: Service) -> None:
        super().__init__(directory=service.folder)
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check(Request(scope))
        await super().__call__(scope, receive, send)

    def _check(self, request: Request) -> None:
        """Check the token of a request.

        :raises HTTPException: it has none, or one that is not good for this file.
        """
        name = request.url.path.removeprefix(f"{PATH}/")
        token = request.headers.get("Authorization")
        if token is None:
            _refuse(name, "it has no token", "Authorization header missing")
        try:
            claims = jwt.decode(
                token,
                self._service.key,
                algorithms=self._service.algorithms,
                audience=self._service.audience,
                issuer=self._service.issuer,
                leeway=self._service.leeway_s,
                options={"require": self._service.required_claims},
            )
        except Exception as error:  # whatever is wrong with it
            _refuse(name, "; ".join(filter(None, (str(error), _HINTS.get(type(error))))))
        if claims.get("filename") != name:
            _refuse(name, "its token is for another file")


def _refuse(name: str, why: str, detail: str | None = None) -> NoReturn:
    _log.warning("a request for the log %r was refused: %s", name, why)
    raise HTTPException(403, detail)


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    """Answer an error as FastAPI does, which Airflow uses."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


def application(service: Service) -> Starlette:
    """Return what answers the requests.

    :raises RuntimeError: the folder does not exist.
    """
    return Starlette(routes=[Mount(PATH, _Logs(service))], exception_handlers={HTTPException: _answer_error})


def _listen(port: int) -> socket.socket:
    """Listen on a port of all addresses, IPv4 and IPv6.

    :raises AirExecutorError: it is taken, or not for this user.
    """
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise AirExecutorError(
            f"the log server can't listen on port {port} ({why}), so Airflow's UI shows no logs of this host: set "
            "[logging] worker_log_server_port to a free port, the same on the API server and on all hosts, or start "
            "the worker with --no-logs"
        ) from error


def main() -> None:
    """Serve what standard input says, until the parent dies or ends this process by SIGTERM."""
    system.die_with_parent(int(sys.argv[1]))
    system.set_title("air-executor log server")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    service = Service(**json.load(sys.stdin.buffer))
    try:
        listener = _listen(service.port)
    except AirExecutorError as error:
        sys.exit(f"air-executor: {error}")
    server = uvicorn.Server(
        uvicorn.Config(
            application(service),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
        )
    )
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
