"""Airflows whose runners reach the API server through a proxy that can fail, and work in flight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

from tests.conftest import give_postgres, own_postgres
from tests.support import airflow_env, flights
from tests.support.airflow_env import Airflow
from tests.support.flights import Flight
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def postgres(shared_dir: Path) -> Iterator[Postgres]:
    """A database server of the module's own, to be frozen and cut off."""
    server = own_postgres(shared_dir)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def components() -> tuple[str, ...]:
    """The components of this file's Airflow."""
    return airflow_env.FEW


@pytest.fixture(scope="module")
def env(
    proxy: Proxy,
    options: dict[str, str],
    components: tuple[str, ...],
    home: Path,
    shared_dir: Path,
) -> Iterator[Airflow]:
    """An Airflow on PostgreSQL whose runners reach the API server through the proxy."""
    env = airflow_env.make(home, shared_dir, {**through(proxy), **options}, components)
    give_postgres(env, shared_dir)
    proxy.upstream = ("127.0.0.1", env.port)
    try:
        env.start()
        yield env
    finally:
        env.end()


def through(proxy: Proxy) -> dict[str, str]:
    return {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{proxy.port}/execution/"}


@pytest.fixture(scope="module")
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the Airflow of a file's tests will be."""
    return tmp_path_factory.mktemp(request.module.__name__.rsplit(".", 1)[-1]) / "home"


@pytest.fixture(scope="module")
def final_check() -> Callable[[Airflow], None]:
    """What has to be true after all tests of a file."""
    return flights.check_nothing_left_behind


@pytest.fixture(scope="module")
def has_postgres() -> bool:
    """Whether a file's Airflow is on PostgreSQL: SQLite locks two schedulers out, and Airflow dies of that."""
    return False


@pytest.fixture(scope="module")
def airflow(
    proxy: Proxy,
    options: dict[str, str],
    components: tuple[str, ...],
    final_check: Callable[[Airflow], None],
    home: Path,
    shared_dir: Path,
    has_postgres: bool,
    dags: Sequence[str] | None,
) -> Iterator[Airflow]:
    """The same, by default on SQLite, where tests see that nothing is left behind in the end."""
    # What is stopped and can't end is killed sooner than by default.
    grace = {"AIRFLOW__AIR_EXECUTOR__STOP_GRACE_SECONDS": "2"}
    airflow = airflow_env.make(home, shared_dir, {**through(proxy), **grace, **options}, components, dags)
    if has_postgres:
        give_postgres(airflow, shared_dir)
    proxy.upstream = ("127.0.0.1", airflow.port)
    try:
        airflow.start()
        yield airflow
        final_check(airflow)
    finally:
        airflow.end()


Fly: TypeAlias = Callable[..., Flight]


@pytest.fixture
def fly(airflow: Airflow) -> Iterator[Fly]:
    """Trigger work in flight; at the end it is over, and has left nothing behind."""
    started: list[Flight] = []
    before = {record.id for record in flights.unfinished(airflow)}  # what a test that failed has left

    def start(name: str, tasks: int = 5, dag_id: str | None = None) -> Flight:
        run = airflow.api.trigger(dag_id or flights.DAGS[tasks], run_id=name)
        started.append(Flight(airflow, run, tasks))
        return started[-1]

    yield start
    for flight in started:
        flight.release()
    for process in airflow.ours():
        with contextlib.suppress(psutil.Error):
            process.resume()
    if "scheduler" not in airflow.processes or airflow.processes["scheduler"].poll() is not None:
        airflow.start("scheduler")
    try:
        wait_for(lambda: {r.id for r in flights.unfinished(airflow)} <= before, "all runs to have ended and been told")
        wait_for(lambda: not flights.strays(airflow), "all runners to be gone")
    finally:
        for process in flights.strays(airflow):
            with contextlib.suppress(psutil.Error):
                process.kill()  # the next test begins afresh


@pytest.fixture(autouse=True)
def _mended(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no test find what another has broken."""
    yield
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").set("pass")
