"""Closing the connections that were opened while a launcher was prepared: no two tasks may share one.

A secrets backend that Airflow makes when it reads its options, or a client in a module, may keep a connection. Forks
would all talk through it, and read each other's answers.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection

from air_executor.machine import system


def open_sockets() -> set[int]:
    """Return the descriptors of this process that are sockets; none where the system does not list descriptors."""
    found = set()
    for fd in system.descriptors():
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.add(fd)
        except OSError:  # the descriptor that listed them, closed by now
            continue
    return found


def cut_all_but(known: Collection[int]) -> int:
    """Close the connections of this process, except the ``known`` ones.

    Their owners find them closed by the peer, as after a network failure, and connect again, each task for itself. The
    descriptors stay in use: an owner must not write to what would get the same number next.

    :return: how many were closed.
    """
    doomed = open_sockets() - set(known)
    if doomed:
        gone, other = socket.socketpair()
        other.close()
        with gone:
            for fd in sorted(doomed):
                os.dup2(gone.fileno(), fd, inheritable=False)
        print(
            f"closed {len(doomed)} connection(s) that were opened in preparation: each task opens its own", flush=True
        )
    return len(doomed)
