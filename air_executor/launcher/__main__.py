"""Entry point of the launcher process: ``python -m air_executor.launcher FD KEY OPTIONS [READY]``.

``FD`` is the inherited socket that listens already, ``KEY`` names the launcher's files, ``OPTIONS`` is a
:class:`air_executor.config.Config` as JSON. Through ``READY`` a successor tells the former launcher that it is ready.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING

from air_executor.config import Config
from air_executor.errors import StateDirError
from air_executor.launcher import fingerprint, protocol
from air_executor.launcher.address import Address
from air_executor.launcher.exec import Spawn, spawn_by_exec
from air_executor.launcher.server.launcher import Launcher
from air_executor.launcher.server.succession import Succession
from air_executor.machine import children, system
from air_executor.runner.hooks import hooks
from air_executor.runs.store import RunStore

if TYPE_CHECKING:
    from air_executor.launcher.preload.preloader import Preloader


def main(argv: list[str]) -> int:
    """Be the launcher that an executor has started."""
    fd, key, options, *ready = argv
    listener = socket.socket(fileno=int(fd))
    listener.set_inheritable(False)  # a runner that kept it open would make a dead launcher look alive
    config = Config.from_json(options)
    store = RunStore(config.state_dir)
    former = None
    if ready:
        os.setsid()
        former = socket.socket(fileno=int(ready[0]))
        former.set_inheritable(False)
    serve(listener, Address(key, store.launchers), store, config, former)
    return 0


def serve(
    listener: socket.socket, address: Address, store: RunStore, config: Config, former: socket.socket | None = None
) -> None:
    """Warm up, then serve.

    :param former: a socket to the launcher that serves until this one is ready.
    """
    if former is None:
        _take(listener)
    system.prepare()
    system.hear_signals()
    system.outlive_full_disks()
    system.show_faults()
    children.leave_older_alone()
    system.adopt_orphans()
    system.keep_memory_private()
    title = f"air-executor launcher {address.key}"
    system.set_title(title)
    succession = Succession(address, config, is_successor=former is not None)

    def begin(spawn: Spawn | None = None, preloader: Preloader | None = None) -> None:
        if former is not None:
            _take(listener)
            with former, contextlib.suppress(OSError):  # the former launcher has died: its place is free
                former.send(b"+")
        Launcher(store, config, address, listener, spawn, preloader, succession).serve()

    if config.launch == "exec":
        begin(spawn_by_exec(store, config))
        return
    from air_executor.launcher.connections import cut_all_but, open_sockets
    from air_executor.launcher.memory import freeze

    own = open_sockets()
    preloader = hooks(config.serves).warm_up(config, store)
    system.set_title(title)  # a rehearsed runner has another
    cut_all_but(own)
    _note_code(address, preloader)
    freeze()
    # Before the first fork: later, running runners would lose the pages that they share with this process.
    system.use_huge_pages()
    begin(preloader=preloader)


def _take(listener: socket.socket) -> None:
    """Make this process the one that listens: from now on the kernel names it to those who connect."""
    listener.listen(protocol.BACKLOG)


def _note_code(address: Address, preloader: Preloader | None) -> None:
    try:
        fingerprint.note_code(address.code, preloader.hidden() if preloader is not None else ())
    except StateDirError as error:
        print(f"what code is in use is not noted: {error}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
