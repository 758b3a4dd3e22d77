"""Finds out what Airflow's log server (``serve_logs``) would serve, and hands it over to one without Airflow.

Airflow's needs 100 MB more, most of it for ``import airflow``. Ours, :mod:`air_executor.temporal.log_server`, repeats
what ``validate_jwt_token`` and ``avalidated_claims`` do. What they are given comes from Airflow's own application, so
that Airflow's options and a ``logging_config_class`` count.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import NoReturn

from airflow.configuration import conf
from airflow.utils.serve_logs.log_server import JWTAuthStaticFiles, create_app

from air_executor.errors import AirExecutorError
from air_executor.machine import system
from air_executor.temporal import log_server
from air_executor.temporal.log_server import Service


def service() -> Service:
    """Return what Airflow's log server would serve.

    :raises AirExecutorError: Airflow's is not as it was, so ours would not do the same.
    """
    app = create_app()
    mounts = {getattr(route, "path", ""): getattr(route, "app", None) for route in app.routes}
    files, signer = mounts.get(log_server.PATH), app.state.signer
    if not isinstance(files, JWTAuthStaticFiles) or files.directory is None or not signer.secret_key:
        raise AirExecutorError("Airflow's log server is another one than this version of AirExecutor knows")
    key = signer.secret_key
    return Service(
        port=conf.getint("logging", "worker_log_server_port"),
        folder=os.fspath(files.directory),
        key=key if isinstance(key, str) else key.decode(),  # Airflow makes up bytes if none is configured
        algorithms=signer.algorithm,
        audience=signer.audience,
        issuer=signer.issuer,
        required_claims=sorted(signer.required_claims),
        leeway_s=signer.leeway,
    )


def main(parent: int) -> NoReturn:
    """Become the log server of the process ``parent``, which is this one's parent."""
    system.die_with_parent(parent)  # also after the exec: see prctl(2)
    reading, writing = os.pipe()
    with open(writing, "wb") as pipe:
        pipe.write(json.dumps(asdict(service())).encode())  # a pipe takes 64 KiB before anybody reads
    os.dup2(reading, 0)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")}  # may be secrets
    os.execve(sys.executable, [sys.executable, "-m", log_server.__name__, str(parent)], env)
