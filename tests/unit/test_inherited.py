"""What a forked child of a launcher has of the launcher's."""

from __future__ import annotations

import os
import selectors
import socket
import stat

from air_executor.config import Config
from air_executor.launcher import protocol
from air_executor.launcher.address import Address
from air_executor.launcher.server.launcher import Launcher
from air_executor.runs.store import RunStore
from tests.support import airflow_env


def sockets() -> set[int]:
    """Return the open sockets of this process."""
    found = set()
    for name in os.listdir("/dev/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
        except OSError:
            continue  # that of the listing itself
    return found


def test_a_child_has_no_socket_of_its_launcher(store: RunStore) -> None:
    config: Config = airflow_env.config(store.root)
    address = Address("key", store.launchers)
    before = sockets()
    launcher = Launcher(store, config, address, protocol.listen(address.socket))
    launcher._listening.watch()
    # As a trial of a package, or a successor that gets ready, tells the launcher how it went.
    ours, theirs = socket.socketpair()
    with theirs:
        launcher._selector.register(ours, selectors.EVENT_READ)
        pid = os.fork()
        if not pid:
            code = 2
            try:
                theirs.close()
                launcher._let_go()
                code = int(sockets() != before)
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    launcher._let_go()
