"""The main process of a run's Airflow."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from air_executor import config
from air_executor.airflow.pocket.interruption import Interruption
from air_executor.airflow.pocket.telling import keep_stdout, tell_error
from air_executor.errors import AirExecutorError
from air_executor.launcher.client.backend import LocalBackend
from air_executor.machine import system
from air_executor.machine.safe_files import replace_file
from air_executor.pocket.folder import RunFolder
from air_executor.pocket.request import DagError, Request


def main(path: str) -> int:
    """Be the Airflow of the run whose folder is given, and return the exit code."""
    keep_stdout()
    system.set_title("air-executor dag")
    folder = RunFolder(Path(path))
    interruption = Interruption(folder)
    # As in the scheduler to come, whose launcher has to be the one that is started here.
    signal.signal(signal.SIGINT, interruption.hear_early)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda *_: None)
    system.hear_signals()
    try:
        request = folder.request()
        listener, has_moved = _listen(folder, request.listen)
        # For tasks and their launcher; the launcher imports Airflow while this process does.
        os.environ["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = _url(listener)
        warming = _warm_up(request)
        from air_executor.airflow.pocket.parts import Parts

        return Parts(folder, request, listener, warming, interruption, has_moved=has_moved).work()
    except AirExecutorError as error:
        return tell_error(error)
    except OSError as error:
        traceback.print_exc()
        return tell_error(error)


def _listen(folder: RunFolder, host: str) -> tuple[socket.socket, bool]:
    """Return a socket that listens at a port of ``host``, and whether it is another than the last time.

    What this Airflow's predecessor has started, and still runs, knows that port.

    :raises DagError: there is no free port, or the address is not this machine's.
    """
    note, former = folder.home / "port", 0
    with contextlib.suppress(OSError, ValueError):
        former = int(note.read_text())
    for port in (former, 0) if former else (0,):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            reason = error.strerror
            continue
        listener.listen(128)
        now = listener.getsockname()[1]
        replace_file(note, str(now).encode())
        return listener, former not in (0, now)
    raise DagError(f"the run's API can't listen at {host}: {reason}")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}/execution/"


def _warm_up(request: Request) -> LocalBackend | None:
    """Start the launcher, and return what keeps it waiting for the executor."""
    if request.on != "local":
        return None
    backend = LocalBackend(config.load_plain())
    backend.open("pocket")
    backend.warm_up()
    return backend


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
