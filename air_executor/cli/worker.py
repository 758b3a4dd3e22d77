"""The command of a host that works for TemporalExecutor: worker."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from air_executor import config
from air_executor.cli.table import EXIT_NO, EXIT_OK, JSON, Argument, Command, log_progress, print_json
from air_executor.cli.temporal_options import option, with_temporal
from air_executor.config import Config
from air_executor.errors import AirExecutorError
from air_executor.launcher.client.backend import LocalBackend
from air_executor.machine import system
from air_executor.machine.ownership import check_state_dir
from air_executor.machine.safe_files import is_fresh, replace_file
from air_executor.runs.lock import LOOKERS_S, KernelLock, is_held
from air_executor.runs.statedir import VARIABLE, locate
from air_executor.runs.store import RunStore

if TYPE_CHECKING:
    from air_executor.temporal.settings import Settings
    from air_executor.temporal.worker import HostWorker, Shutdown

#: Files in the state directory: the worker's lock, and a request to drain.
_LOCK, _DRAIN = "worker.lock", "worker.drain"

#: How often a worker looks for that, in seconds.
_LOOK_S = 1.0

#: A worker is well if it has reached Temporal within this many seconds.
_HEALTHY_S = 30.0

#: Serves the logs of this host's tasks to Airflow's UI, as Airflow's own workers do. Importing Airflow logs a lot. A
#: terminal's Ctrl-C is for the worker, which ends this process then.
_SERVE_LOGS = (
    "import logging, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); logging.disable(logging.INFO);"
    "from air_executor.airflow.compat.log_serving import main; main(int(sys.argv[1]))"
)


def _slots(text: str) -> int | None:
    """Return a number of slots that argparse has read; ``None`` for ``auto``."""
    if text == "auto":
        return None
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of slots, 1 or more, nor auto")
    return int(text)


def _worker(args: argparse.Namespace) -> int:
    options = config.load_plain(str(locate().path) if VARIABLE in os.environ else None)
    if args.check:
        return _check(Path(options.state_dir), is_json=args.json)
    if args.drain:
        return _ask_to_drain(Path(options.state_dir))
    _work(args, options)
    return EXIT_OK


def _work(args: argparse.Namespace, options: Config) -> None:
    with with_temporal():
        from air_executor.temporal.settings import Settings
        from air_executor.temporal.worker import HostWorker
    settings = Settings.load(option)
    for name in [name for name in os.environ if name.startswith("TEMPORAL_") or name == config.env_var("temporal_key")]:
        del os.environ[name]  # tasks have no business with Temporal, and one of them may be its key
    folder = Path(options.state_dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_state_dir(folder)
    queues = _queues(args.queues, settings)
    has_airflow = importlib.util.find_spec("airflow") is not None  # jobs need none
    options = dataclasses.replace(options, fence_seconds=settings.fence_s, serves="airflow" if has_airflow else "jobs")
    backend, store = LocalBackend(options), RunStore(folder)
    with _only_one(folder), contextlib.closing(backend):
        (folder / _DRAIN).unlink(missing_ok=True)
        backend.open(None)
        backend.warm_up()
        with _logs_served() if args.serve_logs and has_airflow else contextlib.nullcontext():
            log_progress()
            worker = HostWorker(
                backend, settings, args.name or system.host(), _place(folder), store, options.stop_grace_seconds
            )
            asyncio.run(_serve(worker, queues, args.slots, options))


def _queues(named: str | None, settings: Settings) -> list[str]:
    queues = [name.strip() for name in (settings.default_queue if named is None else named).split(",") if name.strip()]
    if not queues:
        raise AirExecutorError("--queues names no queue: give the names of Airflow's queues, separated by commas")
    return queues


async def _serve(worker: HostWorker, queues: list[str], slots: int | None, options: Config) -> None:
    from air_executor.temporal.worker import Shutdown

    shutdown = Shutdown(options.on_shutdown)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, shutdown.ask)
    many = "as many slots as memory and CPUs allow" if slots is None else f"{slots} slots"
    print(f"serving {', '.join(queues)} with {many}", flush=True)
    looking = asyncio.create_task(_look_for_drain(Path(options.state_dir) / _DRAIN, shutdown))
    await worker.serve(queues, slots, shutdown)
    looking.cancel()


async def _look_for_drain(path: Path, shutdown: Shutdown) -> None:
    while not path.exists():
        await asyncio.sleep(_LOOK_S)
    path.unlink()
    shutdown.ask("drain")


def _ask_to_drain(folder: Path) -> int:
    if not is_held(folder / _LOCK):
        raise AirExecutorError(f"no worker serves {folder}")
    replace_file(folder / _DRAIN, b"")
    print("it takes no more orders, and ends with its last run")
    return EXIT_OK


def _check(folder: Path, *, is_json: bool) -> int:
    """Tell whether the worker of a state directory lives and has reached Temporal lately: for health checks."""
    lives, contact_s = is_held(folder / _LOCK), RunStore(folder).last_contact_s()
    ok = lives and is_fresh(contact_s, _HEALTHY_S)
    if not lives:
        found = f"no worker serves {folder}"
    elif contact_s is None:
        found = "the worker has not reached Temporal yet"
    else:
        found = f"the worker reached Temporal {max(0.0, time.time() - contact_s):.0f} s ago"
    if is_json:
        print_json({"ok": ok, "found": found})
    else:
        print(found)
    return EXIT_OK if ok else EXIT_NO


def _place(folder: Path) -> str:
    """Return the name of a state directory, which its first worker on this machine has made up.

    Beside it stands the machine's id: a directory that was copied to another one needs a name of its own. A container
    has none, or its image's, so with its volume it is the same machine again.
    """
    path, here = folder / "worker.id", _machine_id()
    written = path.read_text(encoding="utf-8").split() if path.exists() else []
    name, there = (*written, "", "")[:2]
    if not name or (here and there not in ("", here)):
        name = uuid.uuid4().hex[:8]
    if [name, here or there] != written:  # a worker of a former version wrote the name alone
        replace_file(path, f"{name}\n{here or there}".encode())
    return name


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of a state directory's worker.

    :raises AirExecutorError: another one has it.
    """
    lock = KernelLock(folder / _LOCK)
    if not lock.acquire(LOOKERS_S):
        raise AirExecutorError(f"another worker serves {folder}; each needs a state directory of its own")
    try:
        yield
    finally:
        lock.release(keep_file=True)


@contextlib.contextmanager
def _logs_served() -> Iterator[None]:
    server = subprocess.Popen([sys.executable, "-c", _SERVE_LOGS, str(os.getpid())], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


COMMANDS: tuple[Command, ...] = (
    Command(
        "worker",
        'run what TemporalExecutor orders on this host (needs AirExecutor\'s extra "temporal")',
        _worker,
        (
            Argument(
                ("--queues",),
                {
                    "metavar": "NAMES",
                    "help": "Airflow's queues to serve, separated by commas (default: [operators] default_queue)",
                },
            ),
            Argument(
                ("--slots",),
                {
                    "type": _slots,
                    "default": 4 * (os.cpu_count() or 1),
                    "metavar": "N",
                    "help": "runs at a time, of all queues (default: four for each CPU); auto: while there are memory "
                    "and CPU time to spare",
                },
            ),
            Argument(("--name",), {"help": "this host's name in Temporal (default: the machine's)"}),
            Argument(
                ("--no-logs",),
                {
                    "action": "store_false",
                    "dest": "serve_logs",
                    "help": "do not serve the tasks' logs to Airflow's UI, as with remote logging",
                },
            ),
            Argument(
                ("--check",),
                {"action": "store_true", "help": "only tell whether the worker of this state directory is well"},
            ),
            Argument(
                ("--drain",),
                {"action": "store_true", "help": "only let the worker of this state directory end after its runs"},
            ),
            JSON,
        ),
    ),
)
