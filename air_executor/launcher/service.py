"""The launcher as a service: started by systemd, a container or a person, not by an executor."""

from __future__ import annotations

import dataclasses

from filelock import FileLock

from air_executor.config import Config
from air_executor.errors import StateDirError
from air_executor.launcher import protocol
from air_executor.launcher.__main__ import serve
from air_executor.launcher.address import service_address
from air_executor.launcher.server.keeper import become_keeper
from air_executor.runs.store import RunStore


def serve_as_service(store: RunStore, config: Config) -> None:
    """Be the launcher of a state directory until SIGTERM. It does not end when it is idle.

    :raises StateDirError: there is one already.
    """
    address = service_address(store)
    with FileLock(address.lock, mode=0o600):
        try:
            protocol.connect(address.socket).close()
        except (FileNotFoundError, ConnectionRefusedError):
            listener = protocol.listen(address.socket)
        else:
            raise StateDirError(f"a launcher listens at {address.socket} already; stop that one first")
    print(f"listening at {address.socket}", flush=True)
    serve(listener, address, store, dataclasses.replace(config, launcher="service", launcher_idle_seconds=float("inf")))
    become_keeper()
