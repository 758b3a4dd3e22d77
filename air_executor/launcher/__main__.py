"""Entry point of the launcher process: ``python -m air_executor.launcher FD KEY OPTIONS``.

``FD`` is the inherited socket that listens already, ``KEY`` names the launcher's files, ``OPTIONS`` is a
:class:`air_executor.config.Config` as JSON.
"""

from __future__ import annotations

import socket
import sys

from air_executor import processes, system
from air_executor.config import Config
from air_executor.errors import StateDirError
from air_executor.launcher import fingerprint, protocol
from air_executor.launcher.address import Address
from air_executor.launcher.exec import spawn_by_exec
from air_executor.launcher.server import Launcher
from air_executor.runs.store import RunStore


def main(argv: list[str]) -> int:
    """Be the launcher that an executor has started."""
    fd, key, options = argv
    listener = socket.socket(fileno=int(fd))
    listener.set_inheritable(False)  # a runner that held it would make a dead launcher look alive
    listener.listen(protocol.BACKLOG)  # from here on it is this process that the kernel names to who connects
    config = Config.from_json(options)
    store = RunStore(config.state_dir)
    serve(listener, Address(key, store.launchers), store, config)
    return 0


def serve(listener: socket.socket, address: Address, store: RunStore, config: Config) -> None:
    """Warm up, then serve."""
    system.prepare()
    system.outlive_full_disks()
    system.show_faults()
    processes.leave_older_alone()
    system.adopt_orphans()
    system.keep_memory_private()
    title = f"air-executor launcher {address.key}"
    system.set_title(title)
    if config.launch == "exec":
        Launcher(store, config, address, listener, spawn_by_exec(store, config)).serve()
        return
    from air_executor.launcher.memory import freeze

    if config.serves == "jobs":
        import air_executor.runner.command
        import air_executor.runner.main  # noqa: F401

        _note_code(address)
        freeze()
        Launcher(store, config, address, listener).serve()
        return
    from air_executor.launcher.connections import cut_all_but, open_sockets
    from air_executor.launcher.preload import Preloader
    from air_executor.launcher.rehearsal import rehearse, rehearse_runs
    from air_executor.launcher.warmup import warm_up

    own = open_sockets()
    warm_up(name for name in config.preload if name not in ("auto", "off") and not name.startswith("-"))
    preloader = None
    if config.learns_imports:
        preloader = Preloader(store, [name[1:] for name in config.preload if name.startswith("-")], rehearse)
        preloader.import_remembered()
    rehearse()
    if config.rehearses_runs:
        rehearse_runs(config)
        system.set_title(title)
    cut_all_but(own)
    _note_code(address)
    freeze()
    # Before the first fork: later it would take from runners that live what they share with this process.
    system.use_huge_pages()
    Launcher(store, config, address, listener, preloader=preloader).serve()


def _note_code(address: Address) -> None:
    try:
        fingerprint.note_code(address.code)
    except StateDirError as error:
        print(f"what code is in use is not noted: {error}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
