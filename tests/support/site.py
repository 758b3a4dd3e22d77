"""A whole Airflow on PostgreSQL in which everything can be broken and mended again, and the ways to do so."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from air_executor.runs.record import RunState
from tests.support import airflow_env, flights, machine
from tests.support.airflow_env import Airflow
from tests.support.postgres import Postgres
from tests.support.proxy import Mode, Proxy
from tests.support.waiting import wait_for

#: How long a scheduler may take to stop, in seconds, before it is killed.
_STOP_S = 600.0

#: After this many seconds without an answer an API server is taken for hung.
_SILENT_S = 90.0


@dataclass(frozen=True)
class Site:
    """An Airflow, and what stands between its parts."""

    airflow: Airflow
    api: Proxy
    """Between task processes' supervisors and the API server."""
    database: Proxy
    """Between Airflow and its database."""
    postgres: Postgres
    disk: machine.SmallDisk | None
    """Where the state directory is, when it is a disk of its own."""

    def is_working(self) -> bool:
        """Tell whether the API answers, after reviving what has ended."""
        self.airflow.revive()
        try:
            self.airflow.api.get("/version")
        except (OSError, AssertionError):
            return False
        return True


@contextlib.contextmanager
def site(folder: Path, executor: str, *, small_disk: bool = False, **options: str) -> Iterator[Site]:
    """Start an Airflow with ``executor``, and end it with everything that belongs to it."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        postgres = Postgres()
        stack.callback(postgres.stop)
        api, database = stack.enter_context(Proxy()), stack.enter_context(Proxy(postgres.socket))
        disk = None
        if small_disk:
            (folder / "disk").mkdir()
            disk = machine.SmallDisk(folder / "disk")
            stack.enter_context(disk.mounted())
            options["AIRFLOW__AIR_EXECUTOR__STATE_DIR"] = str(disk.folder / "state")
        airflow = airflow_env.make(
            folder / "home",
            folder,
            {
                "AIRFLOW__CORE__EXECUTOR": executor,
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{api.port}/execution/",
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://postgres@127.0.0.1:{database.port}/postgres",
                **options,
            },
        )
        api.upstream = ("127.0.0.1", airflow.port)
        airflow.run("airflow", "db", "migrate")
        stack.callback(airflow.end)
        airflow.start()
        yield Site(airflow, api, database, postgres, disk)


# Faults of Airflow's parts. Each breaks something, for a number of seconds where that makes sense, and mends it.

Fault = Callable[[Site, float], None]


def scheduler_stopped(site: Site, _lasts_s: float) -> None:
    site.airflow.stop("scheduler", timeout_s=_STOP_S)
    site.airflow.start("scheduler")


def scheduler_killed(site: Site, _lasts_s: float) -> None:
    site.airflow.stop("scheduler", signum=signal.SIGKILL, alone=True)
    site.airflow.start("scheduler")


def scheduler_frozen(site: Site, lasts_s: float) -> None:
    with flights.frozen(psutil.Process(site.airflow.processes["scheduler"].pid)):
        time.sleep(lasts_s)


def second_scheduler(site: Site, lasts_s: float) -> None:
    """A second one comes, and the first is killed."""
    former = site.airflow.set_aside("scheduler")
    site.airflow.start("scheduler")
    time.sleep(lasts_s)
    site.airflow.stop(former, signum=signal.SIGKILL, alone=True)


def api_server_killed(site: Site, lasts_s: float) -> None:
    site.airflow.stop("api-server", signum=signal.SIGKILL)
    time.sleep(lasts_s)
    site.airflow.start("api-server")


def api_server(mode: Mode) -> Fault:
    return lambda site, lasts_s: _proxied(site.api, mode, lasts_s)


def api_server_flaps(site: Site, lasts_s: float) -> None:
    until_s = time.monotonic() + lasts_s
    while time.monotonic() < until_s:
        _proxied(site.api, "refuse", 3.0)
        time.sleep(3.0)


def database(mode: Mode) -> Fault:
    return lambda site, lasts_s: _proxied(site.database, mode, lasts_s)


def database_restarted(site: Site, _lasts_s: float) -> None:
    site.postgres.restart()


def database_full(site: Site, lasts_s: float) -> None:
    with site.postgres.without_slots():
        time.sleep(lasts_s)


def _proxied(proxy: Proxy, mode: Mode, lasts_s: float) -> None:
    proxy.set(mode)
    try:
        time.sleep(lasts_s)
    finally:
        proxy.set("pass")


#: What can befall any executor.
AIRFLOW_FAULTS: dict[str, Fault] = {
    "scheduler stopped": scheduler_stopped,
    "scheduler killed": scheduler_killed,
    "scheduler frozen": scheduler_frozen,
    "second scheduler": second_scheduler,
    "API server killed": api_server_killed,
    "API server refuses": api_server("refuse"),
    "API server silent": api_server("black hole"),
    "API server errs": api_server("error 500"),
    "API server slow": api_server("slow"),
    "API server flaps": api_server_flaps,
    "database restarted": database_restarted,
    "database refuses": database("refuse"),
    "database silent": database("black hole"),
    "database without slots": database_full,
}


# Faults of AirExecutor's parts. Each returns the ids of the runs that it may have ended.

AirFault = Callable[[Site, random.Random, float], set[str]]


def launcher_killed(site: Site, _rng: random.Random, _lasts_s: float) -> set[str]:
    for process in flights.launchers(site.airflow):
        process.kill()
    return set()


def launcher_frozen(site: Site, _rng: random.Random, lasts_s: float) -> set[str]:
    with contextlib.ExitStack() as stack:
        for process in flights.launchers(site.airflow):
            stack.enter_context(flights.frozen(process))
        time.sleep(lasts_s)
    return set()


def socket_deleted(site: Site, _rng: random.Random, _lasts_s: float) -> set[str]:
    for path in site.airflow.store.launchers.glob("*.sock"):
        path.unlink()
    return set()


def runners(signum: signal.Signals, which: str = "pid") -> AirFault:
    """Signal one to three runners, or task processes."""

    def fault(site: Site, rng: random.Random, lasts_s: float) -> set[str]:
        live = sorted((r for r in site.airflow.records() if r.state is RunState.RUNNING), key=lambda r: str(r.identity))
        victims = {}
        for record in rng.sample(live, min(len(live), rng.randint(1, 3))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(getattr(record, which), signum)
                victims[record.id] = getattr(record, which)
        if signum != signal.SIGSTOP:
            return set(victims)
        time.sleep(lasts_s)
        for pid in victims.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return set()

    return fault


def records_damaged(site: Site, rng: random.Random, _lasts_s: float) -> set[str]:
    live = sorted((r for r in site.airflow.records() if r.state is RunState.RUNNING), key=lambda r: str(r.identity))
    for record in rng.sample(live, min(len(live), 2)):
        with contextlib.suppress(FileNotFoundError):
            (site.airflow.store.folder(record.id) / "state.json").write_bytes(b'{"version": 1, "id"')
    return set()


def disk(fault: str) -> AirFault:
    def on_disk(site: Site, _rng: random.Random, lasts_s: float) -> set[str]:
        assert site.disk is not None
        with getattr(site.disk, fault)():
            time.sleep(lasts_s)
        return set()

    return on_disk


AIR_FAULTS: dict[str, AirFault] = {
    "launcher killed": launcher_killed,
    "launcher frozen": launcher_frozen,
    "socket deleted": socket_deleted,
    "runners killed": runners(signal.SIGKILL),
    "runners terminated": runners(signal.SIGTERM),
    "runners frozen": runners(signal.SIGSTOP),
    "tasks killed": runners(signal.SIGKILL, "task_pid"),
    "tasks crash": runners(signal.SIGSEGV, "task_pid"),
    "records damaged": records_damaged,
    "disk full": disk("full"),
    "disk read-only": disk("read_only"),
}


def mended(site: Site) -> None:
    """Wait until everything works again. An API server that stays silent is started again, as by a health check."""
    try:
        wait_for(site.is_working, "Airflow to work again", _SILENT_S, every_s=0.5)
    except AssertionError as error:
        print(f"the API server is started again: {error}; {site.airflow.log_of('api-server')[-2000:]}", flush=True)
        site.airflow.stop("api-server", signum=signal.SIGKILL)
        site.airflow.start("api-server")
        wait_for(site.is_working, "Airflow to work again", 180, every_s=0.5)
