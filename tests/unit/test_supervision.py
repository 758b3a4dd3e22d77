"""Airflow's supervisor with our additions, without Airflow's server."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
from typing import Any

import pytest
from airflow.sdk.execution_time import supervisor as stock

from air_executor.airflow.supervision import AirSupervisor
from air_executor.airflow.supervision.pidfd import PidFd
from air_executor.machine import system
from tests.support.waiting import wait_for


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there are no pidfds")
def test_a_task_that_ends_while_its_request_is_handled_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waits for the API server looks after the task meanwhile: a round within a round."""
    monkeypatch.setattr(stock.WatchedSubprocess, "_check_subprocess_exit", lambda *_, **__: None)
    supervisor: Any = object.__new__(AirSupervisor)
    supervisor.selector = selector = selectors.DefaultSelector()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    fd = system.open_pidfd(child.pid)
    assert fd is not None
    pidfd = PidFd(fd)
    requests, task = socket.socketpair()
    rounds = []

    def handle(_: socket.socket) -> bool:
        requests.recv(100)
        rounds.append("outer")
        stock.WatchedSubprocess._service_subprocess(supervisor, 0.01)
        rounds.append("inner")
        return True

    selector.register(requests, selectors.EVENT_READ, (handle, selector.unregister))
    selector.register(pidfd, selectors.EVENT_READ, (lambda _: False, supervisor._unwatch))
    task.sendall(b"get a variable")
    child.stdin.close()
    wait_for(lambda: len(selector.select(0)) == 2, "a request and an exit at once")
    while pidfd.fileno() >= 0:
        stock.WatchedSubprocess._service_subprocess(supervisor, 0.01)
    assert rounds == ["outer", "inner"]
    assert [key.fileobj for key in selector.get_map().values()] == [requests]
    child.wait()
    for end in (requests, task):
        end.close()
