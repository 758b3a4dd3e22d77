"""No connection is shared by two tasks.

What prepares a launcher may open one and keep it: a secrets backend that Airflow makes when it reads its options, a
client in a module. Forks would all talk through it, and read each other's answers.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection

from air_executor.machine import system


def open_sockets() -> set[int]:
    """Return the descriptors of this process that are sockets. Empty where that can't be told."""
    found = set()
    for fd in system.descriptors():
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.add(fd)
        except OSError:  # the folder's own
            continue
    return found


def cut_all_but(known: Collection[int]) -> int:
    """Cut the connections of this process but the ``known`` ones.

    Who keeps one finds it closed by the other end, as after a network failure, and connects again, in the process that
    needs it. The descriptor stays taken: otherwise it would soon be that of something else.

    :return: how many were cut.
    """
    doomed = open_sockets() - set(known)
    if doomed:
        gone, other = socket.socketpair()
        other.close()
        with gone:
            for fd in sorted(doomed):
                os.dup2(gone.fileno(), fd, inheritable=False)
        print(f"{len(doomed)} connection(s) that were made in preparation are cut: each task makes its own", flush=True)
    return len(doomed)
