"""Connections that were made before a fork are nobody's."""

from __future__ import annotations

import gc
import os
import socket

from air_executor.launcher.connections import cut_all_but, open_sockets
from tests.unit.processes import result_of


def test_a_connection_that_was_made_in_preparation_is_shared_by_nobody() -> None:
    def connect_and_cut() -> None:
        gc.collect()  # no socket that others have dropped is closed meanwhile
        with socket.create_server(("127.0.0.1", 0)) as server:
            known = open_sockets()
            kept = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
            with kept, theirs:
                known.add(theirs.fileno())
                fd = kept.fileno()
                assert cut_all_but(known) == 1
                assert theirs.recv(1) == b""  # the other end sees it closed, though the object lives
                assert kept.fileno() == fd
                assert kept.recv(1) == b""
                assert not os.get_inheritable(fd)
                assert server.fileno() in open_sockets()
                # Its user connects again.
                with socket.create_connection(server.getsockname()) as renewed:
                    other, _ = server.accept()
                    with other:
                        renewed.sendall(b"x")
                        assert other.recv(1) == b"x"

    result_of(connect_and_cut)


def test_what_was_there_before_is_left_alone() -> None:
    def cut_and_talk() -> None:
        gc.collect()  # no socket that others have dropped is closed meanwhile
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert cut_all_but(open_sockets()) == 0
            ours.sendall(b"x")
            assert theirs.recv(1) == b"x"

    result_of(cut_and_talk)
