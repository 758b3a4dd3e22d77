"""The logs that hosts serve, as Airflow's UI gets them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import requests
from airflow.configuration import conf
from airflow.utils.log.file_task_handler import _fetch_logs_from_service

from air_executor.errors import AirExecutorError

_PIECE_BYTES = 1 << 16


def fetch(host: str, log_file: str) -> Iterator[bytes]:
    """Yield a task's log from its host.

    :param host: its address.
    :param log_file: the log's path as it would be on this machine.
    :raises AirExecutorError: the host's log server does not answer, refuses, or has no such log.
    """
    path = os.path.relpath(log_file, conf.get("logging", "base_log_folder"))
    url = f"http://{host}:{conf.get('logging', 'worker_log_server_port')}/log/{path}"
    try:
        with _fetch_logs_from_service(url, path) as answer:
            if answer.status_code == requests.codes.not_found:
                raise AirExecutorError(
                    f"{host} has no log {path}: the task has not begun there, or its log was removed"
                )
            if answer.status_code == requests.codes.forbidden:
                why = "[api] secret_key is another one there than here, or the clocks differ"
                raise AirExecutorError(f"{host} refuses to show its log: {why}")
            answer.raise_for_status()
            yield from answer.iter_content(_PIECE_BYTES)
    except requests.RequestException as error:
        raise AirExecutorError(f"the log is on {host}, whose log server does not answer: {error}") from None
