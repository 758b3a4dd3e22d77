"""Entry point of the launcher process: ``python -m air_executor.launcher FD KEY OPTIONS``.

``FD`` is the inherited socket that listens already, ``KEY`` names the launcher's files, ``OPTIONS`` is a
:class:`air_executor.config.Config` as JSON.
"""

from __future__ import annotations

import gc
import importlib
import socket
import sys
import traceback

from air_executor import system
from air_executor.config import Config
from air_executor.launcher.address import Address
from air_executor.launcher.exec import spawn_by_exec
from air_executor.launcher.server import Launcher
from air_executor.runs.store import RunStore


def main(argv: list[str]) -> int:
    """Be the launcher that an executor has started."""
    fd, key, options = argv
    listener = socket.socket(fileno=int(fd))
    listener.set_inheritable(False)  # a runner that held it would make a dead launcher look alive
    config = Config.from_json(options)
    store = RunStore(config.state_dir)
    serve(listener, Address(key, store.launchers), store, config)
    return 0


def serve(listener: socket.socket, address: Address, store: RunStore, config: Config) -> None:
    """Warm up, then serve."""
    system.prepare()
    system.adopt_orphans()
    system.keep_memory_private()
    system.set_title(f"air-executor launcher {address.key}")
    if config.launch == "exec":
        Launcher(store, config, address, listener, spawn_by_exec(store, config)).serve()
        return
    preload(config)
    # What is alive now lives as long as the launcher; out of the collector's sight its pages stay shared.
    gc.collect()
    gc.freeze()
    Launcher(store, config, address, listener).serve()


def preload(config: Config) -> None:
    """Import what every task needs, and what the user named."""
    from air_executor import compat

    compat.preload()
    for name in config.preload:
        try:
            importlib.import_module(name)
        except Exception:
            print(f"[air_executor] preload: {name} cannot be imported; tasks will try themselves.", flush=True)
            traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
