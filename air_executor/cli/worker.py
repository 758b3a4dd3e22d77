"""The command of a host that works for TemporalExecutor: worker."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from air_executor import config
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command
from air_executor.errors import AirExecutorError
from air_executor.launcher.client.backend import LocalBackend
from air_executor.machine import system
from air_executor.machine.ownership import check_state_dir
from air_executor.machine.safe_files import replace_file
from air_executor.runs.lock import KernelLock
from air_executor.runs.statedir import VARIABLE, locate

if TYPE_CHECKING:
    from air_executor.temporal.worker import HostWorker

#: Serves the logs of this host's tasks to Airflow's UI, as Airflow's own workers do.
_SERVE_LOGS = "from airflow.utils.serve_logs import serve_logs; serve_logs()"


def _option(section: str, name: str) -> str | None:
    return config.plain_getter(section)(name)


def _slots(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _worker(args: argparse.Namespace) -> int:
    try:
        from air_executor.temporal.settings import Settings
        from air_executor.temporal.worker import HostWorker
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("temporalio", "cryptography"):
            raise
        raise AirExecutorError("a worker needs the package temporalio: pip install 'air-executor[temporal]'") from None
    options = config.load_plain(str(locate().path) if VARIABLE in os.environ else None)
    settings = Settings.load(_option)
    for name in [name for name in os.environ if name.startswith("TEMPORAL_") or name == config.env_var("temporal_key")]:
        del os.environ[name]  # tasks have no business with Temporal, and one of them may be its key
    Path(options.state_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    check_state_dir(options.state_dir)
    queues = [name.strip() for name in args.queues.split(",") if name.strip()]
    if not queues:
        raise AirExecutorError("--queues names no queue: give the names of Airflow's queues, separated by commas")
    backend = LocalBackend(options)
    with _only_one(options.state_dir), contextlib.closing(backend):
        backend.open(None)
        backend.warm_up()
        with _logs_served() if args.serve_logs else contextlib.nullcontext():
            worker = HostWorker(backend, settings, args.name or system.host(), _place(options.state_dir))
            asyncio.run(_serve(worker, queues, args.slots))
    return EXIT_OK


async def _serve(worker: HostWorker, queues: list[str], slots: int) -> None:
    is_over = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, is_over.set)
    print(f"serving {', '.join(queues)} with {slots} slots each; what runs outlives this worker", flush=True)
    await worker.serve(queues, slots, is_over)


def _place(state_dir: str) -> str:
    """Return the name of a state directory, which its first worker has made up."""
    path = Path(state_dir) / "worker.id"
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        replace_file(path, uuid.uuid4().hex[:8].encode())
        return path.read_text(encoding="ascii")


@contextlib.contextmanager
def _only_one(state_dir: str) -> Iterator[None]:
    """Hold the lock of a state directory's worker.

    :raises AirExecutorError: another one has it.
    """
    lock = KernelLock(os.path.join(state_dir, "worker.lock"))
    if not lock.acquire(timeout_s=0):
        raise AirExecutorError(f"another worker serves {state_dir}; each needs a state directory of its own")
    try:
        yield
    finally:
        lock.release(keep_file=True)


@contextlib.contextmanager
def _logs_served() -> Iterator[None]:
    server = subprocess.Popen([sys.executable, "-c", _SERVE_LOGS], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


COMMANDS: tuple[Command, ...] = (
    Command(
        "worker",
        "run what TemporalExecutor orders on this host (needs the extra: pip install 'air-executor[temporal]')",
        _worker,
        (
            Argument(
                ("--queues",),
                {"default": "default", "metavar": "NAMES", "help": "Airflow's queues to serve, separated by commas"},
            ),
            Argument(
                ("--slots",),
                {
                    "type": _slots,
                    "default": 4 * (os.cpu_count() or 1),
                    "metavar": "N",
                    "help": "runs at a time from each queue (default: four for each CPU)",
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
            JSON,
        ),
    ),
)
