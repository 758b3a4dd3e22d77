"""A launcher that can't take another connection now serves those that it has, and takes it later."""

from __future__ import annotations

import gc
import os
import resource
import selectors
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from air_executor.launcher import protocol
from air_executor.launcher.address import Address
from air_executor.launcher.server import listening
from air_executor.launcher.server.clients import Clients
from air_executor.launcher.server.listening import Listening
from tests.unit.processes import result_of


class Server:
    """The part of a launcher that has connections."""

    def __init__(self, folder: Path) -> None:
        self.selector = selectors.DefaultSelector()
        self.clients = Clients(self.selector, lambda *_: None, greeting=lambda: {"type": "hello"}, gone=lambda _: None)
        address = Address("key", folder)
        self.path = str(address.socket)
        self.listening = Listening(protocol.listen(address.socket), address, self.selector, self.clients.accept)
        self.listening.watch()

    def step(self) -> int:
        """Do what there is to do, as the launcher's loop does; return how much that was."""
        found = self.selector.select(0)
        for key, _ in found:
            key.data()
        self.listening.look()
        return len(found)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        return connection


def without_descriptors(action: Callable[[], Any]) -> Any:
    """Do something while this process can open no file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        return action()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_launcher_without_a_descriptor_to_spare_takes_connections_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listening, "_PAUSE_S", 600.0)

    def serve() -> None:
        gc.collect()  # what others have dropped is not closed later, which would make room
        server = Server(tmp_path)
        first, second = server.connect(), server.connect()
        for _ in range(2):
            server.step()
        assert len(server.clients) == 2
        third = server.connect()

        def steps() -> list[int]:
            return [server.step() for _ in range(3)]

        assert without_descriptors(steps) == [1, 0, 0]  # it spends no time on the one that it can't accept
        assert "can't be accepted now: Too many open files" in capsys.readouterr().out
        first.close()
        assert server.step() == 1
        assert len(server.clients) == 1
        assert server.listening.due_in_s() is not None
        server.listening._again_s = 0.0  # its time has come
        server.step()
        server.step()
        assert server.listening.due_in_s() is None
        assert len(server.clients) == 2
        assert protocol.receive(third) == {"type": "hello"}
        second.close()

    result_of(serve)


def test_a_launcher_that_takes_no_connections_now_can_leave_its_address(tmp_path: Path) -> None:
    def serve() -> None:
        gc.collect()  # what others have dropped is not closed later, which would make room
        server = Server(tmp_path)
        waiting = server.connect()
        without_descriptors(server.step)
        server.listening.close()
        assert server.listening.due_in_s() is None
        server.listening.look()
        assert not Path(server.path).exists()
        waiting.close()

    result_of(serve)
