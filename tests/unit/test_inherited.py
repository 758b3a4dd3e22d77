"""What a forked child of a launcher has of the launcher's."""

from __future__ import annotations

import gc
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
from tests.unit.processes import result_of


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

    def be_a_launcher() -> list[int]:
        gc.collect()  # no socket that others have dropped makes room for another one meanwhile
        before = sockets()
        launcher = Launcher(store, config, address, protocol.listen(address.socket))
        launcher._listening.watch()
        # As a trial of a package, or a successor that gets ready, tells the launcher how it went.
        ours, theirs = socket.socketpair()
        launcher._selector.register(ours, selectors.EVENT_READ)
        assert len(sockets() - before) >= 3

        def be_its_child() -> list[int]:
            theirs.close()
            launcher._let_go()
            return sorted(sockets() - before)

        return list(result_of(be_its_child))

    assert result_of(be_a_launcher) == []
