"""The logs that hosts serve, as Airflow's UI gets them."""

from __future__ import annotations

import os
from typing import IO

import requests
from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_key
from airflow.configuration import conf

from air_executor.errors import AirExecutorError

_PIECE_BYTES = 1 << 16

#: A log server may be silent for so long, unless Airflow's configuration says otherwise, in seconds.
_SILENT_S = 5


class LogAwayError(AirExecutorError):
    """A log is not there now; it may be later."""


def update(copy: IO[bytes], host: str, log_file: str) -> bool:
    """Bring a copy of a task's log up to date: what is new is fetched.

    :param host: its host's address.
    :param log_file: the log's path as it would be on this machine.
    :return: whether the log was begun anew, and the copy with it.
    :raises LogAwayError: the host's log server does not answer, or has no such log.
    :raises AirExecutorError: it refuses.
    """
    path = os.path.relpath(log_file, conf.get("logging", "base_log_folder"))
    size = copy.seek(0, os.SEEK_END)
    is_anew = False
    try:
        with _request(host, path, size) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                if int(answer.headers["Content-Range"].rpartition("/")[2]) == size:
                    return False
                is_anew = True
            else:
                _write(copy, answer, host, path)
        if is_anew:
            copy.truncate(0)
            with _request(host, path, 0) as answer:
                _write(copy, answer, host, path)
    except (requests.RequestException, KeyError, ValueError) as error:
        raise LogAwayError(f"the log is on {host}, whose log server does not answer as it should: {error}") from None
    finally:
        copy.flush()
    return is_anew


def _request(host: str, path: str, begin: int) -> requests.Response:
    # As Airflow does it, but from a position on.
    generator = JWTGenerator(
        secret_key=get_signing_key("api", "secret_key"),
        algorithm="HS512",
        private_key=None,  # type: ignore[arg-type] # it would be loaded otherwise
        issuer=None,
        valid_for=conf.getint("webserver", "log_request_clock_grace", fallback=30),
        audience="task-instance-logs",
    )
    headers = {"Authorization": generator.generate({"filename": path}), "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    url = f"http://{host}:{conf.get('logging', 'worker_log_server_port')}/log/{path}"
    timeout_s = conf.getint("api", "log_fetch_timeout_sec", fallback=_SILENT_S)
    return requests.get(url, headers=headers, timeout=timeout_s, stream=True)


def _write(copy: IO[bytes], answer: requests.Response, host: str, path: str) -> None:
    if answer.status_code == requests.codes.not_found:
        raise LogAwayError(f"{host} has no log {path}: the task has not begun there, or its log was removed")
    if answer.status_code == requests.codes.forbidden:
        why = "[api] secret_key is another one there than here, or the clocks differ"
        raise AirExecutorError(f"{host} refuses to show its log: {why}")
    answer.raise_for_status()
    if answer.status_code != requests.codes.partial_content:  # all of it, whatever was asked for
        copy.truncate(0)
        copy.seek(0)
    for piece in answer.iter_content(_PIECE_BYTES):
        copy.write(piece)
